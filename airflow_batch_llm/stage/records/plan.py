"""The frozen plan of a run. The first planner decides it once, and every later attempt follows it."""

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson
import pyarrow as pa

from airflow_batch_llm.core.model import Call, Way
from airflow_batch_llm.core.printing import counted, verb
from airflow_batch_llm.core.request import shard_token
from airflow_batch_llm.core.settings import SchemaChange, Stage, WriteMode
from airflow_batch_llm.warehouses.base import Target
from airflow_batch_llm.warehouses.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShard:
    """One shard as it was written: sizes, and the hashes by which its files are checked before they are used."""

    number: int
    requests: int
    rows: int
    bytes: int
    requests_sha256: str
    keys_sha256: str
    route: int = 0  # which of the plan's routes the requests take


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRoute:
    """A way to ask a model. Each shard takes one route."""

    call: Call
    way: Way = Way.BATCH


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """The limits that the user set when the run was planned. A deploy in the night does not change them."""

    max_attempts: int
    min_success_ratio: float
    max_cost_usd: float | None
    rows_per_batch: int
    raw_excerpt: bool
    keep_days: float | None
    prices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    delete_at_vendor: bool = False

    @classmethod
    def of(cls, stage: Stage) -> "RunLimits":
        """Those of the stage as it is written."""
        return cls(
            max_attempts=stage.guards.max_attempts,
            min_success_ratio=stage.guards.min_success_ratio,
            max_cost_usd=stage.max_cost_usd,
            rows_per_batch=stage.pace.rows_per_batch,
            raw_excerpt=stage.shape.keep_raw_excerpt,
            keep_days=stage.keep_days,
            prices=stage.guards.prices,
            delete_at_vendor=stage.guards.delete_at_vendor,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One round of a run. Later rounds repeat the first one's spec, under a nonce of their own."""

    round: int
    nonce: str
    run_token: str
    planned_at: float
    max_tries: int
    spec_hash: str
    spec: Mapping[str, object]
    provider: str
    model: str
    routes: tuple[PlannedRoute, ...]
    output_type: Mapping[str, object]
    target: Target
    limits: "RunLimits"
    shards: tuple[PlannedShard, ...] = ()
    why: Mapping[str, int] = field(default_factory=dict)
    problems: Mapping[str, int] = field(default_factory=dict)  # rows that cannot be sent, by error code
    unsendable_sha256: str = ""  # of the file of rows that could not be sent; empty: there are none
    estimate: Mapping[str, Any] | None = None
    planned_by: Mapping[str, Any] = field(default_factory=dict)
    """Who planned the round, as `Doer.to_json` gives it. Empty: an earlier release did."""
    deployment: str = ""
    """Name of the deployment that planned the run. Default: there is only one."""
    place: Place | None = None
    """Where the target is. None: an earlier release has planned the run."""

    def route(self, shard: PlannedShard) -> PlannedRoute:
        """Return the route of a shard."""
        return self.routes[shard.route]

    def token(self, shard: PlannedShard) -> str:
        return self.shard_token(shard.number)

    def shard_token(self, number: int) -> str:
        """Return what the custom_ids of a shard begin with."""
        return shard_token(self.run_token, number)

    @property
    def registered_as(self) -> str:
        """The target's name in the registers."""
        return self.target.table if self.place is None else str(self.place)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def requests(self) -> int:
        return sum(shard.requests for shard in self.shards)

    @property
    def dollars(self) -> float | None:
        """Return the expected cost of the answers. The estimate is of all requests; a budget may have left some out."""
        estimate = self.estimate or {}
        expected: float | None = estimate.get("expected")
        wished: int = estimate.get("requests", 0)
        return expected if expected is None or not wished else expected * self.requests / wished

    def forecast(self) -> dict[str, float | None]:
        """Return what the requests of the plan are expected to take, in numbers. Empty if nothing was estimated."""
        if self.estimate is None:
            return {}
        wished = self.estimate.get("requests") or 0
        part = self.requests / wished if wished else 0.0
        tokens = {name: round(self.estimate[name] * part) for name in ("input_tokens", "output_tokens")}
        dollars = {"usd": "expected", "usd_low": "low", "usd_high": "high"}
        amounts = {name: self.estimate[stored] for name, stored in dollars.items()}
        return {
            "rows": self.rows,
            "requests": self.requests,
            **tokens,
            **{name: None if amount is None else round(amount * part, 6) for name, amount in amounts.items()},
        }

    def described(self) -> str:
        """For people: how many rows there are, why they are sent or not, and what the answers may cost."""
        why = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in sorted(self.why.items()))
        rows = f"{counted(sum(self.why.values()), 'row')}: {why}." if why else "No rows."
        if not self.requests:
            return f"{rows} Nothing is sent."
        cost = "an unknown amount" if self.dollars is None else f"about ${self.dollars:,.4f}"
        guessed = " ".join((self.estimate or {}).get("assumptions", ()))
        make = verb(self.rows, "makes", "make")
        requests, batches = counted(self.requests, "request"), counted(len(self.shards), "batch")
        return f"{rows} {self.rows:,} of them {make} {requests} in {batches}, for {cost}. {guessed}".rstrip()

    def to_json(self) -> bytes:
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["routes"] = [asdict(route) for route in self.routes]
        fields["shards"] = [asdict(shard) for shard in self.shards]
        fields["target"] = _target_fields(self.target)
        fields["limits"] = asdict(self.limits)
        fields["place"] = None if self.place is None else asdict(self.place)
        return orjson.dumps(fields)

    @classmethod
    def from_json(cls, data: bytes) -> "Plan":
        fields = _with_routes(orjson.loads(data))
        return cls(
            **{
                **fields,
                "routes": tuple(map(_route, fields["routes"])),
                "shards": tuple(PlannedShard(**shard) for shard in fields["shards"]),
                "target": _target(fields["target"]),
                "limits": RunLimits(**fields["limits"]),
                "place": Place(**place) if (place := fields.get("place")) else None,
            }
        )


def _with_routes(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a plan's fields. A plan of an earlier release knows calls, and all of its requests go in batches."""
    if "calls" not in fields:
        return fields
    shards = [{"route": shard.get("call", 0), **shard} for shard in fields["shards"]]
    rest = {name: value for name, value in fields.items() if name != "calls"}
    return {
        **rest,
        "routes": [{"call": call} for call in fields["calls"]],
        "shards": [{name: value for name, value in shard.items() if name != "call"} for shard in shards],
    }


def _route(fields: Mapping[str, Any]) -> PlannedRoute:
    return PlannedRoute(call=Call(**fields["call"]), way=Way(fields.get("way", Way.BATCH)))


def new_run_token(nonce: str, round_number: int) -> str:
    """Return the beginning of a round's custom_ids: a letter, then the planner's nonce and the round."""
    return f"r{nonce}{round_number:x}"


def _target_fields(target: Target) -> dict[str, Any]:
    fields: dict[str, Any] = {name: getattr(target, name) for name in Target.__slots__}
    for name in ("key", "carried", "answer"):
        schema: pa.Schema = fields[name]
        fields[name] = base64.b64encode(schema.serialize().to_pybytes()).decode()
    return fields


def _target(fields: dict[str, Any]) -> Target:
    schemas = {name: _schema(fields[name]) for name in ("key", "carried", "answer")}
    words = {
        "write_mode": WriteMode(fields["write_mode"]),
        "on_schema_change": SchemaChange(fields["on_schema_change"]),
        "cluster_by": tuple(fields["cluster_by"]),
        "never_null": tuple(fields["never_null"]),
    }
    return Target(**{**fields, **schemas, **words})


def _schema(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
