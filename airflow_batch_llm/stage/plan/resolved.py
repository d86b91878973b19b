"""Hold the stage as written, turned into what planning needs: what is asked, and by which routes."""

from dataclasses import dataclass, replace

from airflow_batch_llm.core.attachment import AttachmentRules
from airflow_batch_llm.core.escalation import Rule, reachable
from airflow_batch_llm.core.estimate import Estimate
from airflow_batch_llm.core.model import Caching, Call, Way
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.core.prompt import CompiledPrompt
from airflow_batch_llm.core.request import LineTemplate
from airflow_batch_llm.core.settings import StageWay
from airflow_batch_llm.core.spec import Spec
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.stage.plan.choosing import Current
from airflow_batch_llm.stage.records.plan import PlannedRoute


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRoute:
    """One of the stage's routes, turned into what planning needs."""

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
        """Return the route with requests that say this of the vendor's cache."""
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


#: The ways to ask, by how soon the answers are there.
_SPEED = {StageWay.NOW: 0, StageWay.FLEX: 1, StageWay.AUTO: 2, StageWay.BATCH: 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The stage as written, turned into what planning needs. Made before the first row is read."""

    prompt: CompiledPrompt
    output_type: OutputType
    routes: tuple[ResolvedRoute, ...]
    """The stage's own route, then the others."""
    rules: tuple[Rule, ...] = ()
    pilot: ResolvedRoute | None = None
    """The stage's own route as some of its rows are asked packed, too. None: there is no pilot."""

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
