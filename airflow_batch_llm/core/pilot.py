"""Compare the answers to rows that were asked both packed and alone, and decide whether a spec may be packed.

Only columns with values out of a fixed set, or that are exact, are compared: two free texts differ however the model was
asked. What is stored of an answer is a hash of each value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import orjson

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.core.request import digest

#: The rows that are asked both ways, and the fewest that decide anything.
PILOT_ROWS, LEAST_ROWS = 200, 50

_EXACT = frozenset(
    {ColumnType.BOOLEAN, ColumnType.INTEGER, ColumnType.DECIMAL, ColumnType.DATE, ColumnType.TIMESTAMP}
)

#: Hashes of one answer's compared values. None: the row has no good answer.
Sample = Sequence[str] | None


def compared_columns(output_type: OutputType) -> dict[int, str]:
    """Return the columns that a pilot compares: their places in an answer, and their names."""
    return {
        place: column.name
        for place, column in enumerate(output_type.columns)
        if column.type in _EXACT or (column.type is ColumnType.STRING and output_type.is_choice(column))
    }


def sampled(values: Sequence[Sequence[object] | None], output_type: OutputType) -> list[Sample]:
    """Return what is kept of the first answers of a shard, in the order of their items."""
    places = compared_columns(output_type)
    return [
        None if one is None else [digest(repr(one[place]).encode())[:16] for place in places]
        for one in values[:PILOT_ROWS]
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotVerdict:
    """The result of a pilot, as the workspace keeps it for a spec and a number of rows in a request."""

    packs: bool
    compared: int
    """Rows with a good answer both ways."""
    agreement: Mapping[str, float]
    """The share of them with equal values, by column."""

    @property
    def told(self) -> str:
        """The result for people."""
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.agreement.items())
        return f"{counted(self.compared, 'row')} were asked packed and alone, and agree in {shares}."

    def to_json(self) -> bytes:
        """For the workspace."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> "PilotVerdict":
        """From the workspace."""
        return cls(**orjson.loads(data))


def judge_pilot(
    alone: Sequence[Sample], packed: Sequence[Sample], names: Sequence[str], min_agreement: float
) -> PilotVerdict | None:
    """Compare the answers. Returns None if there are too few: then nothing is decided."""
    pairs = [
        (one, other)
        for one, other in zip(alone, packed, strict=False)
        if one is not None and other is not None
    ]
    if len(pairs) < LEAST_ROWS:
        return None
    agreement = {
        name: sum(one[place] == other[place] for one, other in pairs) / len(pairs)
        for place, name in enumerate(names)
    }
    packs = min(agreement.values()) >= min_agreement
    return PilotVerdict(packs=packs, compared=len(pairs), agreement=agreement)
