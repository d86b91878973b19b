"""Compare answers with golden ones, column by column, and judge whether they are good enough.

A row without an answer counts as wrong. A result holds counts, and keys of rows that are wrong: never a row's text.

The uncertainty of a share comes from Wilson's interval. That of a comparison comes from McNemar's exact test, or from
Tango's score test if a drop up to a margin is allowed. All three hold for few rows, too.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from decimal import Decimal
from enum import StrEnum
from statistics import NormalDist
from typing import Annotated, Any, assert_never

import orjson
from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from airflow_batch_llm.core.answer import json_value
from airflow_batch_llm.core.checked import CONFIG, NotNegative, Settings, Share
from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.core.output_type import Column
from airflow_batch_llm.core.request import canonical
from airflow_batch_llm.core.value import plain
from airflow_batch_llm.errors import InputError

_NORMAL = NormalDist()
#: The share of cases in which a needed number of rows is to be enough.
_POWER = 0.8
#: More rows than this are not advised.
_MOST_ROWS = 1_000_000


def wilson(right: int, rows: int, confidence: float) -> tuple[float, float]:
    """Return Wilson's interval of a share. Without rows it is everything from 0 to 1."""
    if not rows:
        return 0.0, 1.0
    z = _NORMAL.inv_cdf((1 + confidence) / 2)
    share, spread = right / rows, z * z / rows
    center = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / rows + spread / (4 * rows))
    return max(0.0, center - half), min(1.0, center + half)


def rows_for_share(share: float, least: float, confidence: float) -> int | None:
    """Return the rows that tell a share from the least one, in four of five cases. Returns None if no number does."""
    return _rows(share * (1 - share), share - least, (1 + confidence) / 2)


@plain_dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Count the rows that two sides have answered: both right, both wrong, or only one of them right."""

    rows: int
    lost: int
    """Rows that the baseline has right and the candidate wrong."""
    gained: int
    """Rows that the candidate has right and the baseline wrong."""

    @property
    def drop(self) -> float:
        """The accuracy of the baseline less that of the candidate."""
        return (self.lost - self.gained) / self.rows if self.rows else 0.0

    @property
    def swapped(self) -> "Pairs":
        """The same rows with the two sides exchanged."""
        return Pairs(rows=self.rows, lost=self.gained, gained=self.lost)

    def p_worse(self, allowed: float = 0.0) -> float:
        """Return the chance of such a drop or a larger one if the true drop is the allowed one.

        Without an allowance this is McNemar's exact test, with one side. With one it is Tango's score test.
        """
        if allowed == 0:
            return _at_least(self.lost, self.lost + self.gained)
        return 1 - _NORMAL.cdf(self._score(allowed))

    def p_better(self, allowed: float = 0.0) -> float:
        """Return the chance of such a drop or a smaller one if the true drop is the allowed one."""
        if allowed == 0:
            return self.swapped.p_worse()
        return _NORMAL.cdf(self._score(allowed))

    @property
    def p_different(self) -> float:
        """McNemar's exact test with two sides."""
        return min(1.0, 2 * min(self.p_worse(), self.p_better()))

    def drop_between(self, confidence: float) -> tuple[float, float]:
        """Return the interval of the true drop: the values that the score test does not reject."""
        z = _NORMAL.inv_cdf((1 + confidence) / 2)
        return self._drop_at(z), self._drop_at(-z)

    def rows_needed(self, allowed: float, confidence: float) -> int | None:
        """Return the rows that tell such a drop from the allowed one, in four of five cases. Returns None if no number does."""
        return _rows(self._variance, self.drop - allowed, confidence)

    def drop_seen(self, confidence: float) -> float:
        """Return the drop beyond the allowed one that this many rows show in four of five cases."""
        distance = _NORMAL.inv_cdf(confidence) + _NORMAL.inv_cdf(_POWER)
        return distance * math.sqrt(self._variance / self.rows) if self.rows else 1.0

    @property
    def _variance(self) -> float:
        """The variance of one row's part in the drop. One more row on either side keeps it above 0."""
        if not self.rows:
            return 1.0
        return (self.lost + self.gained + 1) / self.rows - self.drop**2

    def _drop_at(self, z: float) -> float:
        """Return the true drop at which the score has this value. The score falls as the drop grows."""
        low, high = -1.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if self._score(middle) > z else (low, middle)
        return (low + high) / 2

    def _score(self, drop: float) -> float:
        """Return Tango's score: the distance of the rows from this true drop, in standard errors."""
        if drop < 0:
            return -self.swapped._score(-drop)
        rows, lost, gained = self.rows, self.lost, self.gained
        linear = drop * (2 * rows - lost + gained) - (lost + gained)
        root = math.sqrt(linear**2 + 8 * rows * gained * drop * (1 - drop))
        share_gained = (root - linear) / (4 * rows) if rows else 0.0
        variance = rows * (2 * share_gained + drop * (1 - drop))
        distance = lost - gained - rows * drop
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)


def _at_least(count: int, tosses: int) -> float:
    """Return the chance that a fair coin shows heads at least this often."""
    sequences = sum(math.comb(tosses, heads) for heads in range(count, tosses + 1))
    return sequences / int(2**tosses)


def _rows(variance: float, distance: float, level: float) -> int | None:
    if distance == 0:
        return None
    z = _NORMAL.inv_cdf(level) + _NORMAL.inv_cdf(_POWER)
    rows = math.ceil(z * z * variance / distance**2)
    return rows if rows <= _MOST_ROWS else None


#: The default name of an expected column is this prefix and the name of the answer's column.
EXPECTED = "expected_"

#: The keys of wrong rows that a result shows for each column.
WORST = 20

#: More labels than this make no table that a person reads.
_LABELS = 40
_OTHER, _NOTHING, _NO_ANSWER = "(other)", "(null)", "(no answer)"


class Metric(StrEnum):
    """Choose how an answer is compared with the golden one."""

    EXACT = "exact"
    """The two are equal. Numbers count by value."""
    CASEFOLD = "casefold"
    """The two texts are equal, except for case and white space."""
    NUMBER = "number"
    """The two numbers differ by no more than `tolerance`."""
    SET = "set"
    """The two lists share enough of their elements, in any order: `min_overlap`."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Expected(Settings):
    """Name the golden column of one answer column, and how the two are compared."""

    column: str
    """The column of the golden table."""
    metric: Metric = Metric.EXACT
    """The comparison. Default: exact."""
    tolerance: NotNegative = 0.0
    """The largest difference of two numbers that counts as right. Default: 0."""
    min_overlap: Share = 1.0
    """The least share of elements that two lists have in common, of all that either has. Default: all."""
    function: Callable[[Any, Any], bool] | None = None
    """A function of the golden value and the answer that returns whether it is right, in place of `metric`.

    Python only. Default: none.
    """


def _expected(value: Any) -> Any:
    """Take a name for a golden column that is compared exactly."""
    if not isinstance(value, Mapping):
        return value
    return {name: {"column": one} if isinstance(one, str) else one for name, one in value.items()}


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Evaluation(Settings):
    """Set what is compared, and what is good enough."""

    expected: Annotated[Mapping[str, Expected], BeforeValidator(_expected)] = Field(default_factory=dict)
    """Golden columns by answer column: `{"topic": "expected_topic"}`. Default: `expected_<column>` for each column."""
    baseline: str | None = None
    """A table, or a SELECT, with the key and the answers to compare with. Default: there is no baseline."""
    min_accuracy: Share | None = None
    """The least share of right rows, between 0 and 1, in each column. Default: no such gate."""
    max_regression: Share | None = None
    """The most by which the accuracy may fall below the baseline's: 0.02 is two points. Default: no such gate."""
    confidence: Annotated[float, Field(ge=0.5, le=0.9999)] = 0.95
    """The confidence of intervals and of `max_regression`. Default: 0.95."""
    fail_when_unclear: bool = False
    """Fail also if there are too few rows to decide. Default: no."""

    def measured(self, columns: Sequence[Column]) -> dict[str, Expected]:
        """Return the expected column of each answer column that is compared."""
        known = [column.name for column in columns]
        if unknown := sorted(self.expected.keys() - set(known)):
            raise InputError(
                f"expected names {', '.join(unknown)}, which is not a column of the answer. There are {', '.join(known)}."
            )
        return dict(self.expected) or {name: Expected(column=f"{EXPECTED}{name}") for name in known}


@plain_dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Compares the values of one answer column."""

    column: Column
    expected: Expected
    labels: tuple[str, ...] | None = None
    """The values that the column may have, for a table of confusions. None: they are not a few."""
    always_filled: bool = False
    """Every answer has a value here, so a golden row without one is not labelled."""

    def error(self, golden: Any, answer: Any) -> float:
        """Return 0 for a right answer, and more for a wrong one: the more, the worse."""
        if self.expected.function is not None:
            return 0.0 if self.expected.function(golden, answer) else 1.0
        golden, answer = _typed(golden, self.column.type), _typed(answer, self.column.type)
        match self.expected.metric:
            case Metric.EXACT:
                return float(_spelled(golden) != _spelled(answer))
            case Metric.CASEFOLD:
                return float(_folded(golden) != _folded(answer))
            case Metric.NUMBER:
                apart = _apart(golden, answer)
                return 0.0 if apart <= self.expected.tolerance * (1 + 1e-12) else apart
            case Metric.SET:
                overlap = _overlap(golden, answer)
                return 0.0 if overlap >= self.expected.min_overlap else 1.0 - overlap
            case _:
                assert_never(self.expected.metric)

    def label(self, value: Any) -> str:
        """Return the name of a value in the table of confusions."""
        value = _typed(value, self.column.type)
        if value is None:
            return _NOTHING
        name = str(value).lower() if isinstance(value, bool) else str(value)
        return name if name in (self.labels or ()) else _OTHER


Key = tuple[bytes, ...]
#: The values of the compared columns, by the row's key.
Values = Mapping[Key, Sequence[Any]]


@plain_dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One candidate's answers to the golden rows."""

    answers: Values
    is_stored: bool = False
    """They were bought before, so a row without an answer was perhaps never asked: it is left out of a comparison."""


@plain_dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One column of the candidate compared with the baseline, over the rows that both should have."""

    pairs: Pairs
    right: int
    """Rows that the baseline has right."""
    left_out: int
    """Golden rows without a stored answer, which are not compared."""


@plain_dataclass(frozen=True, slots=True, kw_only=True)
class ColumnResult:
    """One column of the answer, compared with the golden one."""

    name: str
    golden: str
    metric: str
    rows: int
    right: int
    no_answer: int
    """Rows without an answer. They count as wrong."""
    unlabelled: int
    """Golden rows without a value. They do not count."""
    low: float
    high: float
    confusion: tuple[tuple[str, str, int], ...] = ()
    """Golden label, answered label, rows. Empty: the column has no labels."""
    worst: tuple[str, ...] = ()
    """Keys of wrong rows, the worst first."""
    comparison: Comparison | None = None

    @property
    def accuracy(self) -> float:
        """The share of right rows."""
        return self.right / self.rows if self.rows else 0.0


@plain_dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """The golden rows: their keys, as values and as people read them, and the expected values."""

    values: Values
    shown: Mapping[Key, str]


def key_of(values: Iterable[object]) -> Key:
    """Return a row's key, with the same spelling of equal values from any database."""
    return tuple(map(_spelled, values))


def compare(
    measures: Sequence[Measure], golden: Golden, candidate: Side, baseline: Side | None, confidence: float
) -> tuple[ColumnResult, ...]:
    """Compare each column of the candidate's answers with the golden ones, and with the baseline's."""
    return tuple(
        _column(place, measure, golden, candidate, baseline, confidence)
        for place, measure in enumerate(measures)
    )


def _column(
    place: int, measure: Measure, golden: Golden, candidate: Side, baseline: Side | None, confidence: float
) -> ColumnResult:
    labelled = {
        key: values[place]
        for key, values in golden.values.items()
        if values[place] is not None or not measure.always_filled
    }
    errors = _errors(place, measure, labelled, candidate)
    right, rows = sum(error == 0 for error in errors.values()), len(labelled)
    low, high = wilson(right, rows, confidence)
    wrong = sorted((-error, golden.shown[key]) for key, error in errors.items() if error)
    return ColumnResult(
        name=measure.column.name,
        golden=measure.expected.column,
        metric=_metric_name(measure.expected),
        rows=rows,
        right=right,
        no_answer=sum(key not in candidate.answers for key in labelled),
        unlabelled=len(golden.values) - rows,
        low=low,
        high=high,
        confusion=_confusion(place, measure, labelled, candidate),
        worst=tuple(shown for _, shown in wrong[:WORST]),
        comparison=None
        if baseline is None
        else _comparison(errors, _errors(place, measure, labelled, baseline), baseline),
    )


def _errors(place: int, measure: Measure, labelled: Mapping[Key, Any], side: Side) -> dict[Key, float]:
    answers = side.answers
    return {
        key: measure.error(value, answers[key][place]) if key in answers else math.inf
        for key, value in labelled.items()
    }


def _comparison(mine: Mapping[Key, float], theirs: Mapping[Key, float], baseline: Side) -> Comparison:
    keys = [key for key in mine if key in baseline.answers or not baseline.is_stored]
    counts = Counter((mine[key] == 0, theirs[key] == 0) for key in keys)
    pairs = Pairs(rows=len(keys), lost=counts[False, True], gained=counts[True, False])
    return Comparison(
        pairs=pairs, right=counts[True, True] + counts[False, True], left_out=len(mine) - len(keys)
    )


def _confusion(
    place: int, measure: Measure, labelled: Mapping[Key, Any], side: Side
) -> tuple[tuple[str, str, int], ...]:
    if measure.labels is None or len(measure.labels) > _LABELS:
        return ()
    found = Counter(
        (
            measure.label(value),
            measure.label(side.answers[key][place]) if key in side.answers else _NO_ANSWER,
        )
        for key, value in labelled.items()
    )
    order = {name: number for number, name in enumerate((*measure.labels, _OTHER, _NOTHING, _NO_ANSWER))}
    cells = sorted(found.items(), key=lambda item: (order[item[0][0]], order[item[0][1]]))
    return tuple((golden, answer, count) for (golden, answer), count in cells)


def _metric_name(expected: Expected) -> str:
    if expected.function is not None:
        return f"function {getattr(expected.function, '__name__', '')}".strip()
    match expected.metric:
        case Metric.NUMBER:
            return f"{expected.metric} ± {expected.tolerance:g}"
        case Metric.SET:
            return f"{expected.metric} ≥ {expected.min_overlap:g}"
        case Metric.EXACT | Metric.CASEFOLD:
            return expected.metric.value
        case _:
            assert_never(expected.metric)


def _typed(value: Any, kind: ColumnType) -> Any:
    """Return a value in its column's type, from any database or file."""
    if value is None:
        return None
    try:
        return Decimal(value) if kind is ColumnType.DECIMAL else json_value(value, kind)
    except (ArithmeticError, TypeError, ValueError):
        return value  # it is not of this type, so it equals no answer


def _spelled(value: object) -> bytes:
    return canonical(plain(value))


def _folded(value: Any) -> object:
    return " ".join(value.casefold().split()) if isinstance(value, str) else _spelled(value)


def _apart(one: Any, other: Any) -> float:
    if one is None and other is None:
        return 0.0
    try:
        apart = abs(float(one) - float(other))
    except (TypeError, ValueError):
        return math.inf
    return math.inf if math.isnan(apart) else apart


def _overlap(one: Any, other: Any) -> float:
    """Return the shared elements of two lists as a part of all."""
    mine, theirs = _elements(one), _elements(other)
    return len(mine & theirs) / len(mine | theirs) if mine | theirs else 1.0


def _elements(value: Any) -> set[bytes]:
    if isinstance(value, str) and value.startswith("["):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return {_spelled(value)}
    if value is None:
        return set()
    return {_spelled(item) for item in value} if isinstance(value, list | tuple) else {_spelled(value)}
