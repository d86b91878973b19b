"""Draw an evaluation as one HTML page that loads nothing from elsewhere, and follows the reader's light or dark mode.

Every text is escaped: labels, keys and names come from users' tables.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape

from airflow_batch_llm.core.evaluation import ColumnResult
from airflow_batch_llm.core.evaluation_result import EvaluationResult, Finding, GateRuling, percent
from airflow_batch_llm.core.printing import counted, printable

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1d2530; --soft: #5b6675; --line: #dde2e8; --fill: #f4f6f8;
  --right: #1a7f4b; --wrong: #b3261e; --unsure: #8a5a00; --bar: 26, 115, 232; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181d; --text: #e6e9ed; --soft: #9aa5b1; --line: #323a44;
  --fill: #1d2329; --right: #5fd394; --wrong: #ff8a80; --unsure: #f0b849; --bar: 120, 170, 255; } }
body { font: 15px/1.5 system-ui, sans-serif; background: var(--ground); color: var(--text); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; margin: .5rem 0; } .wide { overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.mark { font-weight: 700; white-space: nowrap; }
.passed { color: var(--right); } .failed { color: var(--wrong); } .unclear { color: var(--unsure); }
.note, dt { color: var(--soft); } dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dd { margin: 0; overflow-wrap: anywhere; } code { background: var(--fill); padding: 0 .3rem; border-radius: 3px; }
.keys code { display: inline-block; margin: .1rem; } .matrix td { border: 1px solid var(--line); }
.matrix td.same { outline: 2px solid var(--right); outline-offset: -2px; } .scale { fill: var(--fill); }
.range { fill: rgba(var(--bar), .35); } .point { fill: rgb(var(--bar)); } .least { stroke: var(--wrong); }
"""

_MARKS = {GateRuling.PASSED: "passed", GateRuling.FAILED: "failed", GateRuling.UNCLEAR: "can't tell"}


def page(result: EvaluationResult) -> str:
    """Return the page."""
    mark, name = ("passed", "Passed") if result.passed else ("failed", "Failed")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Evaluation: {name.lower()}</title><style>{_STYLE}</style></head><body>",
        f'<h1>Evaluation: <span class="mark {mark}">{name}</span></h1>',
        _about(result),
        "<h2>Columns</h2>",
        _columns(result),
        *([] if not result.findings else ["<h2>Gates</h2>", _gates(result.findings)]),
        *(_column(one, result.confidence) for one in result.columns),
        "</body></html>",
    ]
    return "\n".join(parts)


def _about(result: EvaluationResult) -> str:
    about = result.subject
    when = datetime.fromtimestamp(about.evaluated_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = {
        "Model": about.model_id,
        "Spec hash": about.spec_hash,
        "Answers": about.target,
        "Baseline": about.baseline or "none",
        "Run": about.run_id,
        "Evaluated": when,
        "Cost": f"${about.cost_usd:,.4f}",
        "Confidence": percent(result.confidence),
    }
    items = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
    return f"<dl>{items}</dl>"


def _columns(result: EvaluationResult) -> str:
    head = ("Column", "Metric", "Rows", "Right", "No answer", "Accuracy", "True accuracy between", "")
    rows = [
        (
            _cell(one.name),
            _cell(one.metric),
            _number(f"{one.rows:,}"),
            _number(f"{one.right:,}"),
            _number(f"{one.no_answer:,}"),
            _number(f"{one.accuracy:.1%}"),
            _number(f"{one.low:.1%} and {one.high:.1%}"),
            f"<td>{_bar(one)}</td>",
        )
        for one in result.columns
    ]
    note = '<p class="note">A row without an answer counts as wrong.</p>'
    return _table(head, rows, numbers=range(2, 7)) + note


def _bar(one: ColumnResult) -> str:
    """Draw the interval and the measured accuracy on a scale from 0 to 100 %."""
    low, high, measured = (160 * value for value in (one.low, one.high, one.accuracy))
    return (
        f'<svg width="160" height="14" role="img" aria-label="{one.accuracy:.1%}">'
        '<rect class="scale" x="0" y="2" width="160" height="10"/>'
        f'<rect class="range" x="{low:.1f}" y="2" width="{max(1.0, high - low):.1f}" height="10"/>'
        f'<rect class="point" x="{max(0.0, measured - 1):.1f}" y="0" width="2" height="14"/></svg>'
    )


def _gates(findings: Iterable[Finding]) -> str:
    rows = [
        (
            _cell(one.column),
            _cell(one.gate),
            f'<td class="mark {one.ruling.value}">{_text(_MARKS[one.ruling])}</td>',
            _cell(one.words),
        )
        for one in findings
    ]
    return _table(("Column", "Gate", "", "Why"), rows)


def _column(one: ColumnResult, confidence: float) -> str:
    parts = [f"<h2>{_text(one.name)}</h2>"]
    if one.unlabelled:
        parts.append(f'<p class="note">{one.unlabelled:,} golden rows have no value and do not count.</p>')
    if one.comparison is not None:
        parts.append(_comparison(one, confidence))
    if one.confusion:
        parts.append(_matrix(one))
    if one.worst:
        keys = " ".join(f"<code>{_text(key)}</code>" for key in one.worst)
        parts.append(
            f"<h3>Keys of wrong rows, the worst first ({len(one.worst):,} of {one.rows - one.right:,})</h3>"
            f'<p class="keys">{keys}</p>'
        )
    return "\n".join(parts)


def _comparison(one: ColumnResult, confidence: float) -> str:
    compared = one.comparison
    assert compared is not None, "only columns with a baseline are compared"
    pairs = compared.pairs
    both = compared.right - pairs.lost
    rows = [
        (_cell("Right in both"), _number(f"{both:,}")),
        (_cell("Lost: only the baseline is right"), _number(f"{pairs.lost:,}")),
        (_cell("Gained: only this candidate is right"), _number(f"{pairs.gained:,}")),
        (_cell("Wrong in both"), _number(f"{pairs.rows - compared.right - pairs.gained:,}")),
    ]
    low, high = pairs.drop_between(confidence)
    said = (
        f"<p>The accuracy changes by {-100 * pairs.drop:+.1f} points; the true change is between {-100 * high:+.1f}"
        f" and {-100 * low:+.1f} points with {percent(confidence)} confidence. McNemar's exact test gives p ="
        f" {pairs.p_different:.3g}.</p>"
    )
    if compared.left_out:
        said += f'<p class="note">Left out, without a stored answer: {counted(compared.left_out, "row")}.</p>'
    return "<h3>Beside the baseline</h3>" + _table(("", "Rows"), rows, numbers=(1,)) + said


def _matrix(one: ColumnResult) -> str:
    """Draw the confusions: golden labels down, answered labels across, darker for more rows."""
    golden = list(dict.fromkeys(expected for expected, _, _ in one.confusion))
    answered = list(dict.fromkeys([*golden, *(answer for _, answer, _ in one.confusion)]))
    counts = {(expected, answer): rows for expected, answer, rows in one.confusion}
    totals = {name: sum(counts.get((name, answer), 0) for answer in answered) for name in golden}
    rows = [
        (
            f'<th scope="row">{_text(name)}</th>',
            *(
                _shaded(counts.get((name, answer), 0), totals[name], same=name == answer)
                for answer in answered
            ),
        )
        for name in golden
    ]
    caption = "<h3>Golden labels (down) and answers (across)</h3>"
    table = _table(("", *answered), rows, numbers=range(1, len(answered) + 1))
    return caption + table.replace("<table>", '<table class="matrix">', 1)


def _shaded(rows: int, total: int, *, same: bool) -> str:
    kind = "number same" if same else "number"
    depth = 0.75 * rows / total if total else 0.0
    shown = f"{rows:,}" if rows else ""
    return f'<td class="{kind}" style="background: rgba(var(--bar), {depth:.2f})">{shown}</td>'


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], numbers: Iterable[int] = ()) -> str:
    right = set(numbers)
    heads = "".join(
        f'<th scope="col" class="number">{_text(name)}</th>'
        if place in right
        else f'<th scope="col">{_text(name)}</th>'
        for place, name in enumerate(head)
    )
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{heads}</tr>{body}</table></div>'


def _cell(text: str) -> str:
    return f"<td>{_text(text)}</td>"


def _number(text: str) -> str:
    return f'<td class="number">{_text(text)}</td>'


def _text(text: str) -> str:
    return escape(printable(text))
