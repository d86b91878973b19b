"""Notice that the answers' labels are distributed otherwise than in earlier runs.

The measure is the population stability index. Few rows spread by chance, so a shift counts only if chance alone would
cause it in fewer than one of 1,000 runs.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from airflow_batch_llm.core.answer_schema import closed_values
from airflow_batch_llm.core.output_type import OutputType

#: Rows by label, by answer column.
LabelMix = Mapping[str, Mapping[str, int]]

#: Runs before this one that it is compared with.
TRAILING_RUNS = 10

#: More labels, or more columns, are not counted.
_LABELS, _COLUMNS = 50, 20
_SURE = NormalDist().inv_cdf(0.999)
#: The name of NULL among the labels.
NOTHING = "(null)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """A column's labels compared with those of the runs before."""

    column: str
    index: float
    """The population stability index: 0 is the same spread, 0.1 to 0.2 a small shift."""
    is_sure: bool
    """Chance alone would not shift this number of rows this far."""
    label: str
    """The label whose share has changed most."""
    before: float
    now: float


def closed_columns(output_type: OutputType) -> tuple[str, ...]:
    """Return the answer columns that hold one of a few texts, or a boolean."""
    if output_type.schema is None:
        return ()
    found = {column.name: closed_values(output_type.schema, column.path) for column in output_type.columns}
    return tuple(name for name, labels in found.items() if labels and len(labels) <= _LABELS)[:_COLUMNS]


def label_of(value: object) -> str:
    """Return the name of a value of such a column."""
    if value is None:
        return NOTHING
    return str(value).lower() if isinstance(value, bool) else str(value)


def add_mixes(mixes: Iterable[LabelMix]) -> dict[str, dict[str, int]]:
    """Return the sum of these counts."""
    total: dict[str, Counter[str]] = {}
    for mix in mixes:
        for column, labels in mix.items():
            total.setdefault(column, Counter()).update(labels)
    return {column: dict(labels) for column, labels in total.items()}


def shifts(before: LabelMix, now: LabelMix) -> list[Shift]:
    """Return the shift of each column that both have."""
    return [_shift(name, before[name], now[name]) for name in now if before.get(name) and now[name]]


def _shift(column: str, before: Mapping[str, int], now: Mapping[str, int]) -> Shift:
    labels = sorted({*before, *now})
    mine, theirs = _shares(labels, now), _shares(labels, before)
    parts = [(one - other) * math.log(one / other) for one, other in zip(mine, theirs, strict=True)]
    index = math.fsum(parts)
    place = max(range(len(labels)), key=lambda number: abs(mine[number] - theirs[number]))
    rows, rows_before = sum(now.values()), sum(before.values())
    return Shift(
        column=column,
        index=index,
        is_sure=index / (1 / rows + 1 / rows_before) > _most_by_chance(len(labels) - 1),
        label=labels[place],
        before=before.get(labels[place], 0) / rows_before,
        now=now.get(labels[place], 0) / rows,
    )


def _shares(labels: Sequence[str], counts: Mapping[str, int]) -> list[float]:
    """Return the share of each label. Half a row more for each keeps a label without rows above 0."""
    total = sum(counts.values()) + len(labels) / 2
    return [(counts.get(label, 0) + 0.5) / total for label in labels]


def _most_by_chance(degrees: int) -> float:
    """Return the chi-square value that chance exceeds in one of 1,000 cases, by Wilson and Hilferty's formula."""
    if degrees < 1:
        return math.inf
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + _SURE * math.sqrt(spread)) ** 3


def told(shift: Shift, limit: float, runs: str) -> str:
    """Say for a log what has shifted."""
    return (
        f"The labels of {shift.column} have drifted from those of the last {runs}: the population stability index"
        f" {shift.index:.2f} is above warn_on_drift={limit:g}. {shift.label!r} was {shift.before:.1%} of the answers, and"
        f" is {shift.now:.1%}."
    )
