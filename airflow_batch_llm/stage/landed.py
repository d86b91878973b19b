"""What one landed shard tells the run: counts, money, and which of its requests are worth another try."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import orjson

from airflow_batch_llm.core.model import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Landed:
    """Small, and written again whenever the shard is landed again."""

    outcomes: Mapping[str, int]
    usage: Usage
    cost: float
    list_cost: float
    again: Sequence[tuple[int, str]] = ()
    again_rows: Mapping[str, int] = field(default_factory=dict)
    strange: Mapping[str, int] = field(default_factory=dict)  # lines that served nobody, by kind
    sample: Sequence[str] = ()  # a few keys of rows without a good answer

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> "Landed":
        fields = orjson.loads(data)
        again = tuple((request, outcome) for request, outcome in fields["again"])
        return cls(**{**fields, "again": again, "usage": Usage(**fields["usage"])})
