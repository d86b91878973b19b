"""Judge the columns of an evaluation by the gates that the user set, and keep what was found.

A gate passes or fails with a confidence, or says that there are too few rows to tell, and how many would do.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from airflow_batch_llm.core.confidence import Pairs, rows_for_share
from airflow_batch_llm.core.evaluation import ColumnResult, Comparison, Evaluation
from airflow_batch_llm.core.printing import counted, share, verb

#: Of this table. Later numbers add fields.
SCHEMA_VERSION = 1


class GateRuling(StrEnum):
    """Tell what a gate says of a column."""

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
    """Say what was evaluated, and against what. Times are seconds since the epoch."""

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
        """A small dict for Airflow: numbers and the verdict, and no key of a row."""
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
