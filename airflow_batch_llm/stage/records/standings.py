"""Read what a run folder says of its rounds, and what each landed shard tells the run."""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import orjson

from airflow_batch_llm.core.canary import CanaryVerdict
from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.pilot import Sample
from airflow_batch_llm.core.report import Report
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan


def read_rounds(folder: RunFolder) -> Iterator[Plan]:
    """The plans of the rounds so far, from the first. If the canary has ended the run, it is all of the first."""
    return (read_judged(folder, plan) for plan in read_plans(folder))


def read_plans(folder: RunFolder) -> Iterator[Plan]:
    """The plans of the rounds so far as they were frozen."""
    number = 1
    while (data := folder.read_plan(number)) is not None:
        yield Plan.from_json(data)
        number += 1


def read_judged(folder: RunFolder, plan: Plan) -> Plan:
    """Return a plan as it counts after the verdict on its canary: the same if there is no canary, or no verdict."""
    return _judged(plan, folder.read_canary()) if plan.canary else plan


def read_sendable(folder: RunFolder, plan: Plan) -> Plan:
    """Return a plan as far as it may be sent: its canary alone, until that is judged."""
    if not plan.canary:
        return plan
    data = folder.read_canary()
    return plan.canary_alone() if data is None else _judged(plan, data)


def _judged(plan: Plan, data: bytes | None) -> Plan:
    return plan if data is None else ruled(plan, CanaryVerdict.from_json(data))


def ruled(plan: Plan, verdict: CanaryVerdict) -> Plan:
    """Return a plan as it counts after this verdict on its canary."""
    return plan.measured(verdict.estimates).without(verdict.left_out) if verdict.goes else plan.stopped()


class Again(NamedTuple):
    """A request, or an item of a packed one, that is worth another try."""

    request: int
    outcome: Outcome
    code: str | None = None
    """The error code of its rows. None: there is none, or an earlier release has landed the shard."""
    to: str | None = None
    """The name of the route that it takes next. None: the same."""
    rows: int | None = None
    """The most rows of the request that asks it next. None: as its route has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """Written again whenever the shard is landed again."""

    report: Report
    again: Sequence[Again] = ()
    again_rows: Mapping[Outcome, int] = field(default_factory=dict)  # the rows that wait for these requests
    again_codes: Mapping[str, int] = field(default_factory=dict)  # the same rows by error code
    words: Mapping[str, str] = field(default_factory=dict)  # what a vendor said, by error code: for logs
    samples: Sequence[str] = ()  # a few keys of rows without a good answer
    failed_keys: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """A few keys of rows that are not asked again, by error code. Default: there are none, or an earlier release landed it."""
    again_keys: Mapping[str, Sequence[str]] = field(
        default_factory=dict
    )  # likewise of rows that wait for another try
    sample: Sequence[Sample] = ()  # what a pilot compares of its answers
    batches: Sequence[str] = ()  # whose lines were read: the shard's own, and strays that had ended by then

    def shown_keys(self) -> set[str]:
        """Return all keys that the record shows."""
        by_code = (*self.failed_keys.values(), *self.again_keys.values())
        return {*self.samples, *(key for keys in by_code for key in keys)}

    def without(self, keys: AbstractSet[str]) -> "ShardResult":
        """Return the record without these keys."""
        return replace(
            self,
            samples=[key for key in self.samples if key not in keys],
            failed_keys=_without(self.failed_keys, keys),
            again_keys=_without(self.again_keys, keys),
        )

    def to_json(self) -> bytes:
        return orjson.dumps(
            {
                "report": self.report.to_json(),
                "again": [tuple(one) for one in self.again],
                "again_rows": {outcome.value: count for outcome, count in self.again_rows.items()},
                "again_codes": self.again_codes,
                "words": self.words,
                "samples": self.samples,
                "failed_keys": self.failed_keys,
                "again_keys": self.again_keys,
                "batches": self.batches,
                **({"sample": self.sample} if self.sample else {}),
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> "ShardResult":
        fields = orjson.loads(data)
        return cls(
            report=Report.from_json(fields["report"]),
            again=tuple(
                Again(request, Outcome(outcome), *rest) for request, outcome, *rest in fields["again"]
            ),
            again_rows={Outcome(name): count for name, count in fields["again_rows"].items()},
            again_codes=fields.get("again_codes", {}),
            words=fields.get("words", {}),
            samples=fields["samples"],
            failed_keys=fields.get("failed_keys", {}),
            again_keys=fields.get("again_keys", {}),
            sample=fields.get("sample", ()),
            batches=fields.get("batches", ()),  # a file that an earlier release wrote does not tell
        )


def _without(by_code: Mapping[str, Sequence[str]], keys: AbstractSet[str]) -> dict[str, list[str]]:
    left = {code: [key for key in shown if key not in keys] for code, shown in by_code.items()}
    return {code: shown for code, shown in left.items() if shown}


def read_landed(folder: RunFolder, number: int) -> ShardResult:
    """Read the results of a loaded shard."""
    data = folder.read_landed(number)
    assert data is not None, "it is written before the journal says that the shard is staged"
    return ShardResult.from_json(data)
