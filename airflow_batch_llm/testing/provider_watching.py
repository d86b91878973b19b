"""The contract's cases about looking at batches and stopping them, each without and with an event loop."""

from collections import Counter

import pytest

from airflow_batch_llm.core.model import BatchState, Call, Outcome
from airflow_batch_llm.errors import ProviderError, Refused, Unavailable
from airflow_batch_llm.testing.provider_answers import BOMB_BYTES, each_page, little_memory
from airflow_batch_llm.testing.provider_bench import Bench, Driver

_MANY = 30


class WatchesBatches:
    """The contract of `check` and `cancel`, as a worker and as a trigger call them."""

    def test_a_batch_runs_until_it_has_ended(self, bench: Bench, driver: Driver) -> None:
        bench.fault(kind="hold")
        batch_id = bench.submit(bench.shard(4))
        assert driver.check([batch_id])[batch_id].state is BatchState.RUNNING
        bench.simulator.batch(batch_id, "end")
        bench.ended(batch_id)
        status = driver.check([batch_id])[batch_id]
        assert (status.state, status.later) == (BatchState.ENDED, False)
        assert status.total in (4, None)
        assert status.finished in (4, None)

    def test_many_batches_are_looked_at_in_fewer_calls_than_one_each(
        self, bench: Bench, driver: Driver
    ) -> None:
        batch_ids = [bench.submit(bench.shard(1, number=n)) for n in range(_MANY)]
        for batch_id in batch_ids:
            bench.ended(batch_id)
        before = Counter(bench.bill()["calls"])
        statuses = driver.check(batch_ids)
        calls = Counter(bench.bill()["calls"]) - before
        assert {batch_id: statuses[batch_id].state for batch_id in batch_ids} == dict.fromkeys(
            batch_ids, BatchState.ENDED
        )
        assert calls.total() <= 2, calls

    def test_one_batch_is_looked_at_by_itself(self, bench: Bench, driver: Driver) -> None:
        batch_id = bench.submit(bench.shard(1))
        before = Counter(bench.bill()["calls"])
        driver.check([batch_id])
        assert (Counter(bench.bill()["calls"]) - before).total() == 1

    def test_a_batch_that_the_listing_does_not_show_yet_is_asked_for_by_name(
        self, bench: Bench, driver: Driver
    ) -> None:
        bench.simulator.turn(list_lag=3600)
        batch_ids = [bench.submit(bench.shard(1, number=n)) for n in range(3)]
        assert set(driver.check(batch_ids)) == set(batch_ids)

    def test_no_batches_need_no_call(self, bench: Bench, driver: Driver) -> None:
        assert driver.check([]) == {}
        assert bench.bill()["calls"] == {}

    def test_a_look_that_fails_for_now_is_repeated(self, bench: Bench, driver: Driver) -> None:
        batch_id = bench.submit(bench.shard(1))
        bench.ended(batch_id)
        bench.fault(kind="status", endpoint="any", status=429, retry_after=0)
        bench.fault(kind="drop", endpoint="any", nth=2)
        assert driver.check([batch_id])[batch_id].state is BatchState.ENDED

    def test_a_wish_to_wait_long_is_handed_on_and_not_slept(self, bench: Bench, driver: Driver) -> None:
        batch_id = bench.submit(bench.shard(1))
        bench.fault(kind="status", endpoint="any", status=429, retry_after=3600)
        with pytest.raises(Unavailable) as raised:
            driver.check([batch_id])
        assert raised.value.retry_after == 3600

    def test_a_key_that_is_refused_is_not_tried_again(self, bench: Bench, driver: Driver) -> None:
        batch_id = bench.submit(bench.shard(1))
        before = Counter(bench.bill()["calls"])
        bench.fault(kind="status", endpoint="any", status=401, times=None)
        with pytest.raises(Refused):
            driver.check([batch_id])
        assert (Counter(bench.bill()["calls"]) - before).total() == 1

    @pytest.mark.parametrize("batches", [1, 3])
    def test_a_look_that_a_gateway_answers_says_nothing_about_the_batch(
        self, bench: Bench, driver: Driver, batches: int
    ) -> None:
        batch_ids = [bench.submit(bench.shard(1, number=n)) for n in range(batches)]
        for _ in each_page(bench, "any"):
            with pytest.raises(Unavailable):
                driver.check(batch_ids)

    def test_to_cancel_where_a_gateway_answers_is_not_done(self, bench: Bench, driver: Driver) -> None:
        batch_id = bench.submit(bench.shard(1))
        for _ in each_page(bench, "any"):
            with pytest.raises(Unavailable):
                driver.cancel(batch_id)

    def test_a_look_that_is_answered_with_a_bomb_stops_at_a_bound(self, bench: Bench, driver: Driver) -> None:
        batch_id = bench.submit(bench.shard(1))
        bench.fault(kind="bomb", endpoint="any", times=None, bytes=BOMB_BYTES)
        with little_memory(), pytest.raises(Unavailable):
            driver.check([batch_id])

    def test_a_batch_that_does_not_exist_is_an_error(self, driver: Driver) -> None:
        with pytest.raises(ProviderError):
            driver.check(["batch_of_nobody"])

    def test_a_batch_that_is_cancelled_ends_and_keeps_what_it_answered(
        self, bench: Bench, driver: Driver
    ) -> None:
        bench.simulator.turn(cancelled_share=0.5)
        bench.fault(kind="hold")
        shard = bench.shard(10)
        batch_id = bench.submit(shard)
        bench.simulator.clock(settle=True)  # a batch that is stopped before it runs has no rows
        driver.cancel(batch_id)
        assert bench.ended(batch_id).state is BatchState.ENDED
        assert bench.outcomes(shard, batch_id) == {Outcome.SUCCEEDED: 5, Outcome.CANCELED: 5}

    def test_to_cancel_a_batch_that_has_ended_changes_nothing(self, bench: Bench, driver: Driver) -> None:
        batch_id = bench.submit(bench.shard(3))
        bench.ended(batch_id)
        driver.cancel(batch_id)
        assert bench.ended(batch_id).state is BatchState.ENDED
        assert len(bench.results(batch_id)) == 3

    def test_tokens_are_counted_without_a_bill_or_not_at_all(self, bench: Bench) -> None:
        counts = bench.provider.count_tokens(
            Call(model=bench.model, system_prompt="Be brief."), ["short", "much longer " * 50]
        )
        assert counts is None or (len(counts) == 2 and 0 < counts[0] < counts[1])
        assert bench.bill()["rows"]["charged"] == 0

    def test_answers_of_a_simulator_do_not_pass_for_the_vendors(self, bench: Bench) -> None:
        assert bench.provider.host == "127.0.0.1"
        assert bench.provider.console_url("some_batch") is None
