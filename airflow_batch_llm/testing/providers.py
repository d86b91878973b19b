"""The contract of a provider adapter, as tests to inherit. They run through the real SDK against a server on loopback.

    class TestMyProvider(ProviderContract):
        provider_name, model = "mine", "some-model"

        @classmethod
        def serve(cls) -> AbstractContextManager[ProviderServer]:
            return MyServer()

Leave `serve` out for a vendor that the package's simulator speaks.

A case that an adapter cannot pass is overridden there with an `xfail` that says why.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from airflow_batch_llm.core.model import Call, Outcome, RateLimit, Result, Way
from airflow_batch_llm.core.request import custom_id
from airflow_batch_llm.errors import ProviderError, Refused, Unavailable, UnknownFate
from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access, AnswersNow
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.testing.provider_answers import LABEL, ReadsAnswers, each_page
from airflow_batch_llm.testing.provider_batches import CreatesOnce, WatchesBatches
from airflow_batch_llm.testing.provider_bench import Bench, Driver, ProviderServer, asynchronously

__all__ = ["ProviderContract", "ProviderServer"]


class AnswersInRealTime:
    """The contract of `answer`. A provider without it is not asked."""

    #: The server's name for the call that answers one request.
    answer_endpoint: ClassVar[str] = "answer"

    #: A model that has the vendor's half-price tier in real time. None: the vendor has no such tier.
    flex_model: ClassVar[str | None] = None

    #: Refusals of all requests for want of money, as the simulator's faults.
    spend_limits: ClassVar[Sequence[Mapping[str, Any]]] = ()

    #: The kinds of limits that the headers of each answer state.
    stated_limits: ClassVar[Collection[str]] = ()

    @pytest.mark.parametrize("schema", [None, LABEL])
    def test_an_answer_in_real_time_is_what_a_batch_would_answer(
        self, bench: Bench, schema: dict[str, object] | None
    ) -> None:
        call = Call(model=bench.model, schema=schema)
        now, batch_id = _answers(bench, call), bench.submit(bench.shard(2, call=call))
        bench.ended(batch_id)
        batch = bench.results(batch_id)
        assert [now[name].outcome for name in sorted(now)] == [Outcome.SUCCEEDED] * 2
        assert [now[name].text for name in sorted(now)] == [batch[name].text for name in sorted(batch)]
        assert [now[name].usage for name in sorted(now)] == [batch[name].usage for name in sorted(batch)]

    def test_a_request_that_is_refused_for_itself_is_a_failure_of_its_row(self, bench: Bench) -> None:
        self._strike(bench, kind="status", status=400, message="a bad row")
        (refused, answered) = (result for _, result in sorted(_answers(bench).items()))
        assert (refused.outcome, refused.retryable) == (Outcome.ERRORED, False)
        assert refused.error_code
        assert answered.outcome is Outcome.SUCCEEDED

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_an_answer_that_says_no_for_now_is_paid_for_by_nobody(self, bench: Bench, status: int) -> None:
        self._strike(bench, kind="status", status=status, retry_after=7)
        with _raises(Unavailable) as errors:
            _answers(bench)
        assert [error.retry_after for error in errors if isinstance(error, Unavailable)] == [7]

    @pytest.mark.parametrize("status", [401, 403])
    def test_a_key_that_is_refused_ends_it(self, bench: Bench, status: int) -> None:
        self._strike(bench, kind="status", status=status)
        with _raises(Refused):
            _answers(bench)

    def test_a_limit_of_spending_ends_it_and_the_error_says_what_to_do(self, bench: Bench) -> None:
        for limit in self.spend_limits:
            bench.simulator.clear_faults()
            self._strike(bench, kind="status", **limit)
            with _raises(Refused) as errors:
                _answers(bench)
            assert "then clear the task" in str(errors[0])

    def test_the_limits_that_an_answer_states_are_read(self, bench: Bench) -> None:
        if not self.stated_limits:
            pytest.skip("the vendor does not state its limits")
        call, found = Call(model=bench.model, max_tokens=30), list[RateLimit]()
        for most in (200, 3000):  # what was there of the smaller limit is little of the larger one
            found.clear()
            knobs = ("requests", "tokens", "output_tokens")
            bench.simulator.turn(**{f"{kind}_per_minute": most for kind in knobs})
            _answers(bench, call, seen=found.extend)
        assert {limit.kind for limit in found} == set(self.stated_limits)
        for limit in found:
            assert limit.limit in (3000, 6000)
            assert 0 <= limit.remaining < limit.limit / 2
            assert 30 < limit.full_in <= 61

    @pytest.mark.parametrize("effect", ["before", "after"])
    def test_an_answer_that_is_lost_may_have_been_paid(self, bench: Bench, effect: str) -> None:
        self._strike(bench, kind="drop", effect=effect)
        with _raises(UnknownFate):
            _answers(bench)

    @pytest.mark.parametrize("status", [408, 502, 504])
    def test_a_gateway_that_gives_up_may_hide_an_answer_that_was_paid(
        self, bench: Bench, status: int
    ) -> None:
        self._strike(bench, kind="status", status=status, effect="after")
        with _raises(UnknownFate):
            _answers(bench)

    def test_a_page_in_the_place_of_the_answer_is_no_answer(self, bench: Bench) -> None:
        for _ in each_page(bench, self.answer_endpoint):
            try:
                results = _answers(bench)
            except (UnknownFate, ValueError):
                continue
            assert Outcome.SUCCEEDED not in {result.outcome for result in results.values()}

    def test_the_half_price_tier_is_asked_where_the_vendor_has_it_and_refused_elsewhere(
        self, bench: Bench
    ) -> None:
        provider = _answering(bench)
        if self.flex_model is None:
            assert provider.flex_problem(Call(model=bench.model))
            return
        call = Call(model=self.flex_model)
        assert provider.flex_problem(call) is None
        answers = _answers(bench, call, Way.FLEX)
        assert [(answer.outcome, answer.is_flex) for answer in answers.values()] == [
            (Outcome.SUCCEEDED, True)
        ] * 2
        assert [answer.is_flex for answer in _answers(bench, call).values()] == [False] * 2

    def test_an_answer_of_the_usual_tier_is_not_taken_for_one_at_half_the_price(self, bench: Bench) -> None:
        call = self._flex()
        bench.fault(kind="downgraded")
        answers = [answer for _, answer in sorted(_answers(bench, call, Way.FLEX).items())]
        assert [(answer.outcome, answer.is_flex) for answer in answers] == [
            (Outcome.SUCCEEDED, False),
            (Outcome.SUCCEEDED, True),
        ]

    def test_a_lack_of_room_in_the_half_price_tier_is_paid_for_by_nobody(self, bench: Bench) -> None:
        call = self._flex()
        bench.fault(kind="no_capacity")
        with _raises(Unavailable):
            _answers(bench, call, Way.FLEX)
        assert bench.bill()["rows"]["charged"] == 0

    def _flex(self) -> Call:
        if self.flex_model is None:
            pytest.skip("the vendor has no half-price tier")
        return Call(model=self.flex_model)

    def _strike(self, bench: Bench, **fault: object) -> None:
        bench.fault(endpoint=self.answer_endpoint, **fault)


@contextmanager
def _raises(kind: type[ProviderError]) -> Iterator[list[ProviderError]]:
    """Expect this error, which quotes nothing of the request."""
    errors: list[ProviderError] = []
    with pytest.raises(kind) as caught:
        yield errors
    assert "prompt" not in str(caught.value)
    errors.append(caught.value)


def _answering(bench: Bench) -> AnswersNow:
    if not isinstance(bench.provider, AnswersNow):
        pytest.skip("the provider is not asked in real time")
    return bench.provider


def _answers(
    bench: Bench,
    call: Call | None = None,
    way: Way = Way.NOW,
    seen: Callable[[Sequence[RateLimit]], object] = len,
) -> dict[str, Result]:
    """Ask two requests, one after the other."""
    call = call or Call(model=bench.model)
    shard = bench.shard(2, call=call)
    answers = _answering(bench)

    async def ask() -> dict[str, Result]:
        found = {}
        try:
            for number, line in enumerate(shard.path.read_bytes().splitlines()):
                answer = await answers.answer(call, line, way)
                seen(answer.limits)
                result = bench.provider.decode(answer.line)
                assert result.custom_id == custom_id(shard.token, number)
                found[result.custom_id] = result
        finally:
            await bench.provider.aclose()
        return found

    return asyncio.run(ask())


class OnServer:
    """A provider on a server of its own. Every case starts from an empty one."""

    provider_name: ClassVar[str]
    model: ClassVar[str]

    @classmethod
    def serve(cls) -> AbstractContextManager[ProviderServer]:
        """Start the server that speaks the vendor's API: the package's simulator, or one of your own."""
        return Simulator(batch_seconds=0.0)

    def access(self, simulator: ProviderServer) -> Access:
        """Say how to reach the server."""
        return Access(api_key="any", base_url=simulator.url)

    @pytest.fixture(scope="class")
    @classmethod
    def simulator(cls) -> Iterator[ProviderServer]:
        with cls.serve() as simulator:
            yield simulator

    @pytest.fixture
    def bench(self, simulator: ProviderServer, tmp_path: Path) -> Iterator[Bench]:
        simulator.reset()
        provider = connect(self.provider_name, self.access(simulator))
        yield Bench(provider=provider, simulator=simulator, folder=tmp_path, model=self.model)
        provider.close()

    @pytest.fixture(params=["worker", "trigger"])
    def driver(self, bench: Bench, request: pytest.FixtureRequest) -> Iterator[Driver]:
        with ExitStack() as stack:
            trigger = request.param == "trigger"
            yield stack.enter_context(asynchronously(bench.provider)) if trigger else bench.provider


class ProviderContract(ReadsAnswers, CreatesOnce, WatchesBatches, AnswersInRealTime, OnServer):
    """Everything that an adapter promises."""
