"""Judge the columns of an evaluation by the gates that the user set, and keep the result.

A gate passes or fails with a confidence, or says that there are too few rows to decide, and how many are enough.

The result is drawn as one HTML page that loads nothing from elsewhere, and follows the reader's light or dark mode. Every
text in it is escaped: labels, keys and names come from users' tables.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from html import escape
from typing import Any

from airflow_batch_llm.core.evaluation import ColumnResult, Comparison, Evaluation, Pairs, rows_for_share
from airflow_batch_llm.core.printing import counted, printable, share, verb

#: The version of this table. Later versions add fields.
SCHEMA_VERSION = 1


class GateRuling(StrEnum):
    """The rulings of a gate on a column."""

    PASSED = "passed"
    FAILED = "failed"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One gate's judgement on one column. The words hold no value of a row."""

    column: str
    gate: str
    ruling: GateRuling
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The subject of an evaluation, and its baseline. Times are seconds since the epoch."""

    run_id: str
    model_id: str
    spec_hash: str
    target: str
    evaluated_at: float
    cost_usd: float
    """Dollars of this run, and of the second candidate's if there is one. Answers of earlier runs are not in them."""
    baseline: str = ""
    """The stored answers or the second candidate. Empty: there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """An evaluation as it is stored: numbers, keys of wrong rows, and the verdict."""

    subject: Subject
    confidence: float
    columns: tuple[ColumnResult, ...]
    findings: tuple[Finding, ...]
    passed: bool
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """For the run folder, and for programs."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "EvaluationResult":
        """From the run folder. What a later release has added is left out."""
        return cls(
            subject=Subject(**_known(Subject, stored["subject"])),
            confidence=stored["confidence"],
            columns=tuple(map(_column, stored["columns"])),
            findings=tuple(
                Finding(**_known(Finding, {**one, "ruling": GateRuling(one["ruling"])}))
                for one in stored["findings"]
            ),
            passed=stored["passed"],
            verdict=stored["verdict"],
        )

    @property
    def keys(self) -> frozenset[str]:
        """The keys of rows that are shown as examples."""
        return frozenset(key for one in self.columns for key in one.worst)

    def without_keys(self, keys: Iterable[str]) -> "EvaluationResult":
        """Return the result without these keys among the examples."""
        gone = set(keys)
        columns = (
            replace(one, worst=tuple(key for key in one.worst if key not in gone)) for one in self.columns
        )
        return replace(self, columns=tuple(columns))

    def to_xcom(self) -> dict[str, Any]:
        """Return a small dict for Airflow: numbers and the verdict, and no key of a row."""
        return {
            "schema_version": SCHEMA_VERSION,
            "passed": self.passed,
            "verdict": self.verdict,
            "cost_usd": round(self.subject.cost_usd, 6),
            "columns": {one.name: _numbers(one) for one in self.columns},
            "findings": [asdict(finding) for finding in self.findings],
        }


def judge(subject: Subject, evaluation: Evaluation, columns: Sequence[ColumnResult]) -> EvaluationResult:
    """Judge each column by each gate. Several columns share the confidence, so that together they err no oftener."""
    findings: list[Finding] = []
    level = 1 - (1 - evaluation.confidence) / max(1, len(columns))
    for one in columns:
        if evaluation.min_accuracy is not None:
            findings.append(_accuracy(one, evaluation.min_accuracy, evaluation.confidence))
        if evaluation.max_regression is not None and one.comparison is not None:
            findings.append(_regression(one, one.comparison, evaluation.max_regression, level))
    bad = {GateRuling.FAILED} | ({GateRuling.UNCLEAR} if evaluation.fail_when_unclear else set())
    words = [_measured(one, evaluation.confidence) for one in columns]
    return EvaluationResult(
        subject=subject,
        confidence=evaluation.confidence,
        columns=tuple(columns),
        findings=tuple(findings),
        passed=not any(finding.ruling in bad for finding in findings),
        verdict=" ".join([*words, *(finding.words for finding in findings)]),
    )


def points(value: float) -> str:
    """Return a difference of shares in points."""
    return f"{100 * value:.1f} points"


def percent(confidence: float) -> str:
    """Return a confidence as people write it."""
    return f"{100 * confidence:.4g} %"


def _measured(one: ColumnResult, confidence: float) -> str:
    said = (
        f"{one.name}: {share(one.right, one.rows, 'row')} right ({one.accuracy:.1%}; with {percent(confidence)}"
        f" confidence between {one.low:.1%} and {one.high:.1%})."
    )
    if one.no_answer:
        have = verb(one.no_answer, "has", "have")
        said += f" {counted(one.no_answer, 'row')} {have} no answer and {verb(one.no_answer, 'counts', 'count')} as wrong."
    return said


def _accuracy(one: ColumnResult, least: float, confidence: float) -> Finding:
    gate, rows = f"min_accuracy={least:g}", counted(one.rows, "row")
    if not one.rows:
        return _finding(one, gate, GateRuling.FAILED, "has no golden row to compare with")
    if one.accuracy < least:
        sure = "" if one.high < least else f", though {rows} do not show that its true accuracy is"
        return _finding(one, gate, GateRuling.FAILED, f"is below {gate}{sure}")
    if one.low >= least:
        return _finding(one, gate, GateRuling.PASSED, f"is above {gate}")
    needed = _told(rows_for_share(one.accuracy, least, confidence))
    return _finding(
        one, gate, GateRuling.UNCLEAR, f"is above {gate} as measured, but can't tell with {rows}{needed}"
    )


def _regression(one: ColumnResult, comparison: Comparison, most: float, level: float) -> Finding:
    gate, pairs = f"max_regression={most:g}", comparison.pairs
    moved = f"{pairs.lost:,} lost, {pairs.gained:,} gained"
    if not pairs.rows:
        return _finding(
            one, gate, GateRuling.UNCLEAR, f"can't be compared for {gate}: the baseline has no row"
        )
    if pairs.p_worse(most) <= 1 - level:
        words = f"is {points(pairs.drop)} worse than the baseline ({moved}; p = {pairs.p_worse(most):.2g}), which exceeds {gate}"
        return _finding(one, gate, GateRuling.FAILED, words)
    if pairs.p_better(most) <= 1 - level:
        words = f"keeps within {gate} ({moved}; p = {pairs.p_better(most):.2g})"
        return _finding(one, gate, GateRuling.PASSED, words)
    words = (
        f"moves by {-100 * pairs.drop:+.1f} points ({moved}), and can't tell with {counted(pairs.rows, 'row')} if that"
        f" exceeds {gate}: so many show drops from about {points(most + pairs.drop_seen(level))} on"
    )
    return _finding(one, gate, GateRuling.UNCLEAR, words + _told(pairs.rows_needed(most, level)))


def _told(needed: int | None) -> str:
    return "" if needed is None else f"; to tell takes about {needed:,}"


def _finding(one: ColumnResult, gate: str, ruling: GateRuling, words: str) -> Finding:
    return Finding(column=one.name, gate=gate, ruling=ruling, words=f"{one.name} {words}.")


def _numbers(one: ColumnResult) -> dict[str, Any]:
    found = {
        "rows": one.rows,
        "right": one.right,
        "no_answer": one.no_answer,
        "accuracy": round(one.accuracy, 6),
        "low": round(one.low, 6),
        "high": round(one.high, 6),
    }
    if one.comparison is not None:
        pairs = one.comparison.pairs
        found |= {
            "compared": pairs.rows,
            "baseline_right": one.comparison.right,
            "lost": pairs.lost,
            "gained": pairs.gained,
            "p_different": pairs.p_different,
        }
    return found


def result_rows(result: EvaluationResult) -> list[dict[str, Any]]:
    """Return a row of the results table for each column."""
    about = result.subject
    rulings = {
        (finding.column, finding.gate.partition("=")[0]): finding.ruling.value for finding in result.findings
    }
    return [
        {
            "evaluation_id": f"{about.run_id}/{one.name}",
            "run_id": about.run_id,
            "column_name": one.name,
            "evaluated_at": datetime.fromtimestamp(about.evaluated_at, UTC),
            "model_id": about.model_id,
            "spec_hash": about.spec_hash,
            "metric": one.metric,
            "golden_rows": one.rows,
            "right_rows": one.right,
            "no_answer_rows": one.no_answer,
            "accuracy": one.accuracy,
            "accuracy_low": one.low,
            "accuracy_high": one.high,
            "confidence": result.confidence,
            "baseline": about.baseline or None,
            "compared_rows": None if one.comparison is None else one.comparison.pairs.rows,
            "baseline_right_rows": None if one.comparison is None else one.comparison.right,
            "lost_rows": None if one.comparison is None else one.comparison.pairs.lost,
            "gained_rows": None if one.comparison is None else one.comparison.pairs.gained,
            "p_different": None if one.comparison is None else one.comparison.pairs.p_different,
            "min_accuracy": rulings.get((one.name, "min_accuracy")),
            "max_regression": rulings.get((one.name, "max_regression")),
            "passed": result.passed,
            "cost_usd": about.cost_usd,
        }
        for one in result.columns
    ]


def _column(stored: Mapping[str, Any]) -> ColumnResult:
    compared = stored.get("comparison")
    return ColumnResult(
        **{
            **_known(ColumnResult, stored),
            "confusion": tuple((golden, answer, rows) for golden, answer, rows in stored["confusion"]),
            "worst": tuple(stored["worst"]),
            "comparison": None
            if compared is None
            else Comparison(
                **{**_known(Comparison, compared), "pairs": Pairs(**_known(Pairs, compared["pairs"]))}
            ),
        }
    )


def _known(kind: type[Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in stored.items() if name in names}


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
        *(_column_html(one, result.confidence) for one in result.columns),
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


def _column_html(one: ColumnResult, confidence: float) -> str:
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
