"""Define the frozen plan of a run. The first planner decides it once, and every later attempt follows it."""

import base64
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, assert_never

import orjson
import pyarrow as pa

from airflow_batch_llm.core.escalation import Course, Rule
from airflow_batch_llm.core.estimate import likely
from airflow_batch_llm.core.model import Call, Execution, Way
from airflow_batch_llm.core.packing import packed_call
from airflow_batch_llm.core.printing import counted, verb
from airflow_batch_llm.core.request import shard_token
from airflow_batch_llm.core.selection import SENT, Reason
from airflow_batch_llm.core.settings import OWN_ROUTE, Canary, SchemaChange, Stage, WriteMode
from airflow_batch_llm.warehouses.base import Target
from airflow_batch_llm.warehouses.registration import Place

#: The prefix that marks a shard asked in real time among the ids of batches.
ASKING = "now-"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShard:
    """One shard as it was written: its sizes, and the hashes by which its files are checked before use."""

    number: int
    requests: int
    rows: int
    bytes: int
    requests_sha256: str
    keys_sha256: str
    route: int = 0  # which of the plan's routes the requests take
    before: tuple[str, ...] = ()
    """The names of the routes that its rows took before. Default: this is their first."""
    since: int = 1
    """The round in which its rows began to take this route."""
    answered: bool = False
    """Its rows have good answers from the previous route, which stay unless there are better ones."""
    why: Mapping[str, int] = field(default_factory=dict)
    """Its rows by reason. Empty: the plan does not leave out shards after its canary."""
    repeats: int = 0
    """The number of the shard whose first prompts it asks packed, for a pilot. Its answers do not land. Default: none."""
    repeated: bool = False
    """Its first prompts are asked packed as well, by another shard. Default: no."""
    packed: int = 0
    """The items of its packed requests, all together. Default: 0, each request has one prompt."""

    @property
    def items(self) -> int:
        """The number of different prompts that its requests ask."""
        return self.packed or self.requests


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRoute:
    """A way to ask a model. Each shard takes one route; the first of a plan is the stage's own."""

    call: Call
    way: Way = Way.BATCH
    name: str = OWN_ROUTE
    provider: str = ""
    """The vendor's name. Empty: an earlier release has planned the run, and it is the plan's."""
    spec_hash: str = ""
    estimate: Mapping[str, Any] | None = None
    """The estimate of all of the route's requests. A budget may have left some out. Default: not known."""
    max_cost_usd: float | None = None
    """The most dollars that the route may cost. Default: only the run's budget counts."""
    canary: bool = False
    """Its requests in the first round are asked before all others. Default: no."""
    pilot: bool = False
    """Its requests repeat some rows, and their answers are only compared. Default: no."""
    rows_per_request: int = 1
    """The most rows that a request asks about. Default: 1, the requests are not packed."""
    answer_cap: int | None = None
    """The most tokens that the model can answer with. Default: not known."""

    @property
    def is_own(self) -> bool:
        """Return whether it is a route of the stage, and not that of its canary or pilot."""
        return not (self.canary or self.pilot)

    @property
    def asked(self) -> Call:
        """The call as its requests make it."""
        if self.rows_per_request == 1:
            return self.call
        return packed_call(self.call, self.rows_per_request, self.answer_cap)

    def part(self, items: int) -> dict[str, Any] | None:
        """Return the estimate for this many of the route's items, or None if nothing was estimated."""
        if self.estimate is None:
            return None
        wished = self.estimate.get("requests") or 0
        share = items / wished if wished else 0.0
        numbers = {name: self.estimate[name] for name in _ESTIMATED}
        spread = self.estimate.get("spread")
        return {
            **{name: None if number is None else number * share for name, number in numbers.items()},
            "variance": None if spread is None else spread * spread * share,
        }


#: The numbers of an estimate.
_ESTIMATED = ("input_tokens", "output_tokens", "expected", "low", "high")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """The limits that the user set when the run was planned. A deployment of new code during the run does not change them."""

    max_attempts: int
    min_success_ratio: float
    max_cost_usd: float | None
    rows_per_batch: int
    raw_excerpt: bool
    keep_days: float | None
    prices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    delete_at_vendor: bool = False
    canary: Canary | None = None
    warn_on_drift: float | None = None
    rows_per_request: int = 1
    min_agreement: float | None = 0.95

    @classmethod
    def of(cls, stage: Stage) -> "RunLimits":
        """Return the limits of the stage as it is written."""
        return cls(
            max_attempts=stage.guards.max_attempts,
            min_success_ratio=stage.guards.min_success_ratio,
            max_cost_usd=stage.max_cost_usd,
            rows_per_batch=stage.pace.rows_per_batch,
            raw_excerpt=stage.shape.keep_raw_excerpt,
            keep_days=stage.keep_days,
            prices=stage.guards.prices,
            delete_at_vendor=stage.guards.delete_at_vendor,
            canary=stage.canary,
            warn_on_drift=stage.guards.warn_on_drift,
            rows_per_request=stage.request.rows_per_request,
            min_agreement=stage.guards.min_agreement,
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
    unsendable_sha256: str = ""  # of the file of rows without a request of their own; empty: there are none
    donors: tuple[str, ...] = ()
    """The tables whose answers are copied to rows of that file. Empty: none are."""
    planned_by: Mapping[str, Any] = field(default_factory=dict)
    """The planner of the round, as `Doer.to_json` gives it. Empty: an earlier release planned it."""
    deployment: str = ""
    """Name of the deployment that planned the run. Default: there is only one."""
    rules: tuple[Rule, ...] = ()
    """Reasons to ask a row again by another route. Default: none."""
    replaces: Mapping[str, Mapping[str, int]] | None = None
    """Rows of the round before that this one asks again: `outcomes`, and error `codes`. None: all that might be."""
    place: Place | None = None
    """The place of the target. None: an earlier release has planned the run."""
    budgets: Mapping[str, str] = field(default_factory=dict)
    """The period of each shared budget that counts for the run, by the budget's name. Default: there is none."""
    canary_why: Mapping[str, int] = field(default_factory=dict)
    """The rows of the canary by reason. They are in `why`, too. Empty: there is no canary."""
    sends_what_fits: bool = False
    """After its canary, the shards that fit into the budget are sent. Default: all of them, or none."""
    lists_shards: bool = False
    """A shard is listed in the records of looks before its journal begins. Default: an earlier release has not."""
    execution: Execution = Execution.WORKER
    """The place where rows become requests, and answers become rows. Default: the worker, as an earlier release has planned."""

    @property
    def in_warehouse(self) -> bool:
        """Return whether no row of the plan is in the run folder."""
        match self.execution:
            case Execution.WORKER:
                return False
            case Execution.WAREHOUSE:
                return True
            case _:
                assert_never(self.execution)

    @property
    def reused(self) -> int:
        """The number of rows that get a copy of an answer."""
        return self.why.get(Reason.REUSED, 0)

    def route(self, shard: PlannedShard) -> PlannedRoute:
        """Return the route of a shard."""
        return self.routes[shard.route]

    @property
    def canary(self) -> tuple[PlannedShard, ...]:
        """The shards that are asked before all others. Empty: there are none."""
        if self.round > 1:
            return ()
        return tuple(shard for shard in self.shards if self.route(shard).canary)

    def canary_alone(self) -> "Plan":
        """Return the part of the plan that may be sent before the canary is judged."""
        return replace(self, shards=self.canary)

    @property
    def is_canary_alone(self) -> bool:
        """Return whether there is a canary that is to be judged before anything else is sent."""
        return bool(self.shards) and not self.is_stopped and len(self.canary) == len(self.shards)

    def stopped(self) -> "Plan":
        """Return the plan as it counts if the canary has ended the run: the other rows were not sent."""
        sent = {reason for reason in self.why if reason in SENT}
        rest = sum(self.why[reason] for reason in sent) - sum(self.canary_why.values())
        others = {reason: count for reason, count in self.why.items() if reason not in sent}
        return replace(self, shards=self.canary, why={**others, **self.canary_why, str(Reason.STOPPED): rest})

    def without(self, numbers: Collection[int]) -> "Plan":
        """Return the plan as it counts if these shards are not sent: their rows are left to the next run."""
        why = Counter(self.why)
        for shard in self.shards:
            if shard.number in numbers:
                why.subtract(shard.why)
                why[Reason.POSTPONED] += sum(shard.why.values())
        kept = tuple(shard for shard in self.shards if shard.number not in numbers)
        return replace(self, shards=kept, why={str(reason): count for reason, count in why.items() if count})

    @property
    def is_stopped(self) -> bool:
        """Return whether the canary has ended the run."""
        return Reason.STOPPED in self.why

    def measured(self, estimates: Mapping[int, Mapping[str, Any]]) -> "Plan":
        """Return the plan with other estimates for these of its routes."""
        routes = (
            replace(route, estimate=estimates.get(number, route.estimate))
            for number, route in enumerate(self.routes)
        )
        return replace(self, routes=tuple(routes))

    @property
    def is_routed(self) -> bool:
        """Return whether the stage has more routes than its own."""
        return any(route.name != OWN_ROUTE for route in self.routes)

    def token(self, shard: PlannedShard) -> str:
        return self.shard_token(shard.number)

    def shard_token(self, number: int) -> str:
        """Return the prefix of a shard's custom_ids."""
        return shard_token(self.run_token, number)

    def asking_id(self, shard: PlannedShard) -> str:
        """Return the name under which a shard that is asked in real time is cancelled."""
        return f"{ASKING}{self.token(shard)}"

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

    def numbers(self, shards: Collection[PlannedShard]) -> dict[str, str | int]:
        """Describe some of its shards for a trace, in numbers and names."""
        routes = [self.route(shard) for shard in shards]
        return {
            "provider": ",".join(sorted({self.vendor(route) for route in routes})),
            "model": ",".join(sorted({route.call.model for route in routes})),
            "way": ",".join(sorted({route.way for route in routes})),
            "shards": len(shards),
            "rows": sum(shard.rows for shard in shards),
            "requests": sum(shard.requests for shard in shards),
        }

    def vendor(self, route: PlannedRoute) -> str:
        """Return the name of a route's vendor."""
        return route.provider or self.provider

    @property
    def others(self) -> dict[str, str]:
        """The vendors of the routes that have connections of their own, by the name of the connection."""
        return {route.call.via: self.vendor(route) for route in self.routes if route.call.via}

    def base(self, name: str) -> PlannedRoute:
        """Return the route of this name, as it was planned."""
        return next(route for route in self.routes if route.name == name)

    def course(self, shard: PlannedShard, *, is_late: bool) -> Course:
        """Return the rules that decide which route the rows of a shard take next."""
        return Course(rules=self.rules, route=self.route(shard).name, before=shard.before, is_late=is_late)

    @property
    def is_packed(self) -> bool:
        """Return whether any of its requests ask about several rows."""
        return any(shard.packed for shard in self.shards)

    def items_by(self, route: int) -> int:
        """Return the number of different prompts that take a route."""
        return sum(shard.items for shard in self.shards if shard.route == route)

    @property
    def dollars(self) -> float | None:
        """Return the expected cost of the answers, or None if it is not known."""
        return self._estimated("expected")

    def _estimated(self, name: str) -> float | None:
        parts = [route.part(self.items_by(number)) for number, route in enumerate(self.routes)]
        amounts = [part[name] for part in parts if part is not None]
        if not amounts or any(amount is None for amount in amounts):
            return None
        return float(sum(amounts))

    @property
    def likely(self) -> tuple[float, float] | None:
        """Return the dollars between which nine runs in ten are expected to end, or None without an earlier run."""
        expected, variance = self.dollars, self._estimated("variance")
        return None if expected is None or variance is None else likely(expected, math.sqrt(variance))

    def forecast(self) -> dict[str, Any]:
        """Return the expected numbers of the plan's requests. Empty if nothing was estimated."""
        if all(route.estimate is None for route in self.routes):
            return {}
        dollars = {"usd": "expected", "usd_low": "low", "usd_high": "high"}
        amounts = {name: self._estimated(stored) for name, stored in dollars.items()}
        return {
            "rows": self.rows,
            "requests": self.requests,
            **{name: round(self._estimated(name) or 0.0) for name in ("input_tokens", "output_tokens")},
            **{name: None if amount is None else round(amount, 6) for name, amount in amounts.items()},
            "usd_likely": None if self.likely is None else [round(amount, 6) for amount in self.likely],
        }

    def described(self) -> str:
        """Describe the plan for people: its rows, the reasons why they are sent or not, and the expected cost."""
        why = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in sorted(self.why.items()))
        rows = f"{counted(sum(self.why.values()), 'row')}: {why}." if why else "No rows."
        if not self.requests:
            return f"{rows} Nothing is sent."
        cost = "an unknown amount" if self.dollars is None else f"about ${self.dollars:,.4f}"
        if self.likely is not None:
            cost += f" (likely ${self.likely[0]:,.4f} to ${self.likely[1]:,.4f})"
        guessed = [text for route in self.routes for text in (route.estimate or {}).get("assumptions", ())]
        make = verb(self.rows, "makes", "make")
        requests, batches = counted(self.requests, "request"), counted(len(self.shards), "batch")
        told = f"{rows} {self.rows:,} of them {make} {requests} in {batches}, for {cost}."
        return " ".join((told, *self._routes_described(), *dict.fromkeys(guessed)))

    def _routes_described(self) -> Iterator[str]:
        """Describe each route that is taken, if there are several."""
        for number, route in enumerate(self.routes):
            rows = sum(shard.rows for shard in self.shards if shard.route == number)
            part = route.part(self.items_by(number))
            if rows and sum(not one.pilot for one in self.routes) > 1:
                dollars = None if part is None else part["expected"]
                cost = "an unknown amount" if dollars is None else f"about ${dollars:,.4f}"
                label = f"Canary of the route {route.name}" if route.canary else f"Route {route.name}"
                yield (f"{label} ({route.call.model}, {route.way}): {counted(rows, 'row')}, for {cost}.")

    def to_json(self) -> bytes:
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["routes"] = [asdict(route) for route in self.routes]
        fields["shards"] = [asdict(shard) for shard in self.shards]
        fields["target"] = _target_fields(self.target)
        fields["limits"] = asdict(self.limits)
        fields["rules"] = [rule.to_json() for rule in self.rules]
        fields["place"] = None if self.place is None else asdict(self.place)
        return orjson.dumps(fields)

    @classmethod
    def from_json(cls, data: bytes) -> "Plan":
        fields = _with_routes(orjson.loads(data))
        return cls(
            **{
                **fields,
                "routes": tuple(map(_route, fields["routes"])),
                "shards": tuple(map(_shard, fields["shards"])),
                "rules": tuple(map(Rule.from_json, fields.get("rules", ()))),
                "donors": tuple(fields.get("donors", ())),
                "target": _target(fields["target"]),
                "limits": _limits(fields["limits"]),
                "place": Place(**place) if (place := fields.get("place")) else None,
                "execution": Execution(fields.get("execution", Execution.WORKER)),
            }
        )


def _with_routes(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a plan's fields. A plan of an earlier release knows calls, and all of its requests go in batches."""
    fields = _with_calls_as_routes(fields)
    own = {"spec_hash": fields["spec_hash"]}
    if estimate := fields.pop("estimate", None):
        own["estimate"] = estimate
    return {**fields, "routes": [own | route for route in fields["routes"]]}


def _with_calls_as_routes(fields: dict[str, Any]) -> dict[str, Any]:
    if "calls" not in fields:
        return fields
    shards = [{"route": shard.get("call", 0), **shard} for shard in fields["shards"]]
    rest = {name: value for name, value in fields.items() if name != "calls"}
    return {
        **rest,
        "routes": [{"call": call} for call in fields["calls"]],
        "shards": [{name: value for name, value in shard.items() if name != "call"} for shard in shards],
    }


def _shard(fields: Mapping[str, Any]) -> PlannedShard:
    return PlannedShard(**{**fields, "before": tuple(fields.get("before", ()))})


def _route(fields: Mapping[str, Any]) -> PlannedRoute:
    return PlannedRoute(
        **{**fields, "call": Call(**fields["call"]), "way": Way(fields.get("way", Way.BATCH))}
    )


def _limits(fields: Mapping[str, Any]) -> RunLimits:
    canary = fields.get("canary")
    return RunLimits(**{**fields, "canary": canary and Canary(**canary)})


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
