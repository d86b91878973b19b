"""Hold the resolved stage, with all that planning needs to know about the question and the routes.

A chooser picks the route of each row, by a column of the source or by a function of the row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from airflow_batch_llm.core.attachment import AttachmentRules
from airflow_batch_llm.core.escalation import Rule, reachable
from airflow_batch_llm.core.estimate import Estimate
from airflow_batch_llm.core.model import Caching, Call, Way
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.core.prompt import CompiledPrompt
from airflow_batch_llm.core.request import LineTemplate
from airflow_batch_llm.core.settings import RouteFunction, StageWay
from airflow_batch_llm.core.spec import Spec
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.stage.land.landing import SAMPLES, sample_keys
from airflow_batch_llm.stage.records.plan import PlannedRoute
from airflow_batch_llm.warehouses.arrow import int64_array, string_array
from airflow_batch_llm.warehouses.base import KNOWN_COLUMNS

#: Types of a column that can hold the names of routes. A database's enumeration comes as a dictionary of one of them.
_TEXTS = frozenset({pa.string(), pa.large_string(), pa.string_view(), pa.null()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Chooser:
    """Knows the routes by name; the first is the stage's own. Without a column and a function, every row takes it."""

    names: tuple[str, ...]
    key: tuple[str, ...]
    column: str | None = None
    function: RouteFunction | None = None

    def routes(self, batch: pa.RecordBatch) -> pa.Array:
        """Return the number of each row's route. Raises `InputError` for a name that is not a route."""
        if self.column is None and self.function is None:
            return int64_array([0] * batch.num_rows)
        found = pc.index_in(self._chosen(batch), string_array(self.names[1:]), skip_nulls=True)
        unknown = pc.and_(pc.is_null(found), pc.is_valid(self._chosen(batch)))
        if pc.any(unknown).as_py():
            self._refuse(batch.filter(unknown))
        return pc.fill_null(pc.add(found.cast(pa.int64()), 1), 0)

    def _chosen(self, batch: pa.RecordBatch) -> pa.Array:
        if self.function is None:
            column = batch.column(self.column)
            type_ = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
            if type_ not in _TEXTS:
                raise InputError(
                    f"route_column {self.column} has the type {type_}, and must hold text: the name of a route, or NULL."
                )
            return column.cast(pa.string())
        columns = [name for name in batch.schema.names if name not in KNOWN_COLUMNS.names]
        return string_array([self._called(row) for row in batch.select(columns).to_pylist()])

    def _called(self, row: dict[str, object]) -> str | None:
        assert self.function is not None, "there is a function, or a column"
        try:
            name = self.function(row)
        except Exception as error:  # noqa: BLE001 - it is the user's code, whose message may hold the row's values
            key = "/".join(str(row[part]) for part in self.key)
            raise InputError(
                f"route raised {type(error).__name__} for the row {key}. Nothing was sent."
            ) from None
        if name is not None and not isinstance(name, str):
            raise InputError(
                f"route must return the name of a route or None, and returned a {type(name).__name__}."
            )
        return name

    def _refuse(self, rows: pa.RecordBatch) -> None:
        chooser = "route" if self.function is not None else f"route_column {self.column}"
        keys = ", ".join(sample_keys(rows.select(list(self.key)).slice(0, SAMPLES)))
        raise InputError(
            f"{chooser} names no route in {counted(rows.num_rows, 'row')}, for example {keys}. The routes are"
            f" {', '.join(self.names[1:])}, and NULL for the stage's own. Nothing was sent."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Current:
    """Knows, for each route, the specs whose answers are the answers of today."""

    specs: tuple[frozenset[str], ...]

    def holds(self, hashes: pa.Array, routes: pa.Array) -> pa.Array:
        """Return for each row whether a spec hash is current for its route."""
        found: pa.Array | None = None
        for number, specs in enumerate(self.specs):
            known = pc.is_in(hashes, string_array(sorted(specs)))
            if len(self.specs) > 1:
                known = pc.and_(known, pc.equal(routes, number))
            found = known if found is None else pc.or_(found, known)
        return found

    def routes_of(self, spec_hash: str) -> Sequence[int]:
        """Return the routes for which answers by this spec are current."""
        return [number for number, specs in enumerate(self.specs) if spec_hash in specs]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRoute:
    """One of the stage's routes, resolved for planning."""

    name: str
    call: Call
    asked: Call
    """The call as the requests make it. It differs if they are packed."""
    way: StageWay
    template: LineTemplate
    spec: Spec
    spec_hash: str
    prices: PriceList
    max_cost_usd: float | None = None
    rows_per_request: int = 1
    answer_cap: int | None = None
    attachments: AttachmentRules | None = None
    """The attachments that the route's model takes. None: the prompts have none."""

    def caching(self, provider: Provider, how: bool | Caching) -> "ResolvedRoute":
        """Return the route with this setting of the vendor's cache."""
        asked = replace(self.asked, cache_system_prompt=how)
        call = replace(self.call, cache_system_prompt=how)
        return replace(self, call=call, asked=asked, template=provider.encode(asked))

    def planned(self, way: Way, guess: Estimate) -> PlannedRoute:
        """Return the route as the plan holds it."""
        return PlannedRoute(
            call=self.call,
            way=way,
            name=self.name,
            provider=self.spec.provider,
            spec_hash=self.spec_hash,
            estimate=guess.to_json(),
            max_cost_usd=self.max_cost_usd,
            rows_per_request=self.rows_per_request,
            answer_cap=self.answer_cap,
        )


#: The ways to ask, from the fastest to the slowest.
_SPEED = {StageWay.NOW: 0, StageWay.FLEX: 1, StageWay.AUTO: 2, StageWay.BATCH: 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The stage, resolved for planning before the first row is read."""

    prompt: CompiledPrompt
    output_type: OutputType
    routes: tuple[ResolvedRoute, ...]
    """The stage's own route, then the others."""
    rules: tuple[Rule, ...] = ()
    pilot: ResolvedRoute | None = None
    """The stage's own route for rows that are also asked packed. None: there is no pilot."""

    @property
    def own(self) -> ResolvedRoute:
        """The stage's own route."""
        return self.routes[0]

    @property
    def ranks(self) -> list[int]:
        """The rank of each route: of two that ask the same, the faster one answers both."""
        order = sorted(range(len(self.routes)), key=lambda number: _SPEED[self.routes[number].way])
        return [order.index(number) for number in range(len(order))]

    @property
    def specs(self) -> list[int]:
        """The number of each route's spec. Routes that differ in their way alone have the same."""
        hashes = [route.spec_hash for route in self.routes]
        return [hashes.index(one) for one in hashes]

    @property
    def current(self) -> Current:
        """The specs whose answers are current, for each route."""
        specs = {route.name: route.spec_hash for route in self.routes}
        return Current(
            specs=tuple(
                frozenset(specs[name] for name in reachable(self.rules, route.name)) for route in self.routes
            )
        )
