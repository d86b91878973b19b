"""Resolve a stage into all that planning needs to know about the question and the routes.

All faults that can be found without a row are refused here, such as a way that the provider does not have. A chooser
picks the route of each row, by a column of the source or by a function of the row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from airflow_batch_llm.core.attachment import AttachmentRules, Uploads, uploading
from airflow_batch_llm.core.escalation import Rule, reachable
from airflow_batch_llm.core.estimate import Estimate
from airflow_batch_llm.core.model import Caching, Call, ColumnType, Way
from airflow_batch_llm.core.output_type import AnswerKind, Naming, OutputType
from airflow_batch_llm.core.packing import packed_call
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.core.prompt import (
    CompiledPrompt,
    Prompt,
    compile_prompt,
    identity,
    identity_of_examples,
    with_examples,
)
from airflow_batch_llm.core.request import LineTemplate
from airflow_batch_llm.core.settings import OWN_ROUTE, RouteFunction, RowFunction, Stage, StageWay
from airflow_batch_llm.core.spec import Spec, spec_hash
from airflow_batch_llm.errors import BudgetExceeded, InputError
from airflow_batch_llm.providers.base import AnswersNow, CapsAnswers, Provider, StoresFiles, TakesAttachments
from airflow_batch_llm.providers.routed import by_route
from airflow_batch_llm.stage.land.landing import SAMPLES, sample_keys
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.plan import PlannedRoute
from airflow_batch_llm.warehouses.arrow import int64_array, string_array
from airflow_batch_llm.warehouses.base import KNOWN_COLUMNS
from airflow_batch_llm.warehouses.side_tables import keeps_reviews

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


def output_type_of(stage: Stage) -> OutputType:
    """Return the stage's output type, with the target's columns for it."""
    shape = stage.shape
    naming = Naming(
        columns=shape.columns or None, output_column=shape.output_column, taken=(*stage.key, *shape.carry)
    )
    return OutputType.of(stage.output_type, naming)


def read_prompt(stage: Stage) -> str | RowFunction:
    """Return the current prompt, from its file if it has one."""
    if stage.prompt is not None:
        return stage.prompt
    assert stage.prompt_file is not None, "a stage has exactly one of the two"
    try:
        return stage.prompt_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(
            f"prompt_file {stage.prompt_file} cannot be read ({why}). Put the template there, or correct the path."
        ) from None


def spec_of(stage: Stage, prompt: Prompt, output_type: OutputType, provider: Provider) -> Spec:
    """Return the spec, which decides what is asked."""
    return Spec(
        prompt=identity(prompt),
        prompt_params=stage.prompt_params,
        system_prompt=stage.system_prompt,
        provider=provider.name,
        model=stage.model,
        schema=output_type.schema,
        params={**output_type.request_params, **stage.request.extra_body},
        max_tokens=stage.request.max_tokens,
        endpoint=stage.request.endpoint,
        attachments=tuple(stage.attachments) or None,
        host=provider.host,
        examples=identity_of_examples(stage.examples),
    )


def resolve(stage: Stage, parts: Parts) -> Resolved:
    """Resolve the stage, and refuse all faults that can be found without a row."""
    if stage.review_table is not None:
        keeps_reviews(parts.target)
    output_type, prompt = output_type_of(stage), read_prompt(stage)
    own = _resolved_route(OWN_ROUTE, stage, prompt, output_type, parts)
    others = (
        replace(
            _resolved_route(name, stage.under(route), prompt, output_type, parts, stage.via(route)),
            max_cost_usd=route.max_cost_usd,
        )
        for name, route in stage.routes.items()
    )
    resolved = Resolved(
        prompt=compile_prompt(prompt, stage.prompt_params),
        output_type=output_type,
        routes=(own, *others),
        rules=stage.rules(),
    )
    _check_rules(resolved, stage)
    return resolved


#: Columns that can be below a number.
_NUMBERS = (ColumnType.INTEGER, ColumnType.NUMBER, ColumnType.DECIMAL)


def _check_rules(resolved: Resolved, stage: Stage) -> None:
    """Refuse rules about columns that are not numbers of the answer, and routes whose budget cannot be kept."""
    numbers = [column.name for column in resolved.output_type.columns if column.type in _NUMBERS]
    for rule in resolved.rules:
        for name in rule.below:
            if name not in numbers:
                raise InputError(
                    f"escalate: below names {name!r}, which is not a number of the answer. Its numbers are"
                    f" {', '.join(numbers) or 'none'}."
                )
    for route in resolved.routes:
        is_next = any(rule.to == route.name for rule in resolved.rules)
        if is_next and stage.max_cost_usd is not None and not route.prices.known:
            raise BudgetExceeded(
                f"The cost of the route {route.name} cannot be estimated, so max_cost_usd={stage.max_cost_usd:g} cannot be"
                f" kept: no price of {route.call.model} is known. Give it in Guards(prices=…). Nothing was sent."
            )


def _resolved_route(
    name: str, stage: Stage, prompt: Prompt, output_type: OutputType, parts: Parts, via: str = ""
) -> ResolvedRoute:
    """Return a route of the stage. `stage` already has the route's settings. `via` names its own connection."""
    provider = by_route(parts.provider, via)
    if stage.provider != provider.name:
        raise InputError(
            f"The route {name} has a model of {stage.provider}, and its connection leads to {provider.name}."
            " Give the route the llm_conn_id of a connection to its provider."
        )
    spec = spec_of(stage, prompt, output_type, provider)
    call = Call(
        model=stage.model,
        system_prompt=with_examples(
            stage.system_prompt, stage.examples, compile_prompt(prompt, stage.prompt_params), output_type
        ),
        schema=output_type.schema,
        vector=output_type.kind is AnswerKind.VECTOR,
        max_tokens=stage.request.max_tokens,
        params=spec.params,
        endpoint=stage.request.endpoint,
        via=via,
        attachments=bool(stage.attachments),
    )
    rows = stage.request.rows_per_request
    _refuse_packed_embeddings(rows, call)
    cap = provider.answer_cap(call.model) if rows > 1 and isinstance(provider, CapsAnswers) else None
    asked = call if rows == 1 else packed_call(call, rows, cap)
    _check_way(stage.way, provider, call)
    if stage.canary is not None and stage.canary.way is not None:
        _check_way(stage.canary.way, provider, call)
    return ResolvedRoute(
        name=name,
        call=call,
        asked=asked,
        way=stage.way,
        attachments=_attachment_rules(name, provider, call, stage.request.upload_attachments),
        template=provider.encode(asked),
        spec=spec,
        spec_hash=spec_hash(spec),
        prices=PriceList.of(provider.name, stage.model, stage.guards.prices, at=parts.clock()),
        rows_per_request=rows,
        answer_cap=cap,
    )


def _refuse_packed_embeddings(rows: int, call: Call) -> None:
    if rows > 1 and call.vector:
        raise InputError(
            f"rows_per_request={rows} is for answers in words, and output_type is Embedding. Embeddings of several rows do not"
            " share anything, so there is nothing to save: leave rows_per_request out."
        )


def _check_way(way: StageWay, provider: Provider, call: Call) -> None:
    """Raise `InputError` if the provider cannot be asked this way."""
    if way in (StageWay.BATCH, StageWay.AUTO):
        return
    if not isinstance(provider, AnswersNow):
        raise InputError(
            f"The provider {provider.name} cannot be asked in real time. Leave out way={way.value!r}."
        )
    if way is StageWay.FLEX and (problem := provider.flex_problem(call)):
        raise InputError(f"way='flex': {problem}")


def _attachment_rules(name: str, provider: Provider, call: Call, uploads: Uploads) -> AttachmentRules | None:
    """Return the attachments that a route takes, or None if the stage has none. Raises `InputError` if the route takes none."""
    if not call.attachments:
        return None
    if call.vector:
        raise InputError("An embedding takes text only, and output_type is Embedding. Leave out attachments.")
    if not isinstance(provider, TakesAttachments):
        raise InputError(
            f"The provider {provider.name} of the route {name} takes no attachments. Leave out attachments, or choose a"
            " model of another provider."
        )
    rules = uploading(provider.attachment_rules(call), uploads)
    return rules if isinstance(provider, StoresFiles) else replace(rules, uploaded={})
