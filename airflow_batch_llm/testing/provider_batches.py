"""The contract's cases about batches: created once inside the lease, found when the answer was lost, watched and stopped."""

import time
from collections import Counter
from collections.abc import Collection
from typing import Any, ClassVar

import pytest

from airflow_batch_llm.core.model import BatchState, Call, Lease, Outcome
from airflow_batch_llm.errors import ProviderError, Refused, ResultsGone, Unavailable, UnknownFate
from airflow_batch_llm.providers.base import DeletesBatches
from airflow_batch_llm.testing.provider_answers import BOMB_BYTES, each_page, little_memory
from airflow_batch_llm.testing.provider_bench import Bench, Driver


class CreatesOnce:
    """The contract of `submit`: what it sends, what it raises, and what `find` returns afterwards."""

    #: A 429 that time does not heal, as the simulator's fault.
    spend_limit: ClassVar[dict[str, Any]] = {"status": 403}
    #: Bodies that are an empty list in the vendor's own words.
    empty_lists: ClassVar[Collection[str]] = ()
    #: A batch can be recognised by its token while it runs.
    is_recognisable: ClassVar[bool] = True

    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param({"kind": "drop", "effect": "after"}, id="drop"),
            pytest.param({"kind": "status", "effect": "after", "status": 500}, id="500"),
            pytest.param({"kind": "status", "effect": "after", "status": 503}, id="503"),
        ],
    )
    def test_a_batch_whose_answer_was_lost_is_found(self, bench: Bench, fault: dict[str, Any]) -> None:
        shard = bench.shard(7)
        bench.fault(endpoint="create", **fault)
        with pytest.raises(UnknownFate):
            bench.submit(shard)
        assert bench.bill()["calls"]["create"] == 1
        sightings = bench.provider.find(bench.search(shard))
        assert [sighting.batch_id.rpartition("/")[2] for sighting in sightings] == bench.bill()["batches"]
        assert [sighting.token for sighting in sightings] in ([shard.token], [None])

    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param({"kind": "drop", "effect": "before"}, id="drop"),
            pytest.param({"kind": "status", "effect": "before", "status": 500}, id="500"),
        ],
    )
    def test_a_batch_that_was_not_created_is_surely_absent_and_is_sent_again(
        self, bench: Bench, fault: dict[str, Any]
    ) -> None:
        shard = bench.shard(7)
        bench.fault(endpoint="create", **fault)
        # A connection that broke while the request was on its way shows that it did not arrive whole.
        with pytest.raises((UnknownFate, Unavailable)):
            bench.submit(shard)
        assert bench.provider.find(bench.search(shard)) == []
        bench.submit(shard)
        assert len(bench.bill()["batches"]) == 1

    def test_a_lost_batch_is_surely_recognised_once_it_has_ended(self, bench: Bench) -> None:
        shard = bench.shard(7)
        bench.fault(kind="drop", endpoint="create", effect="after")
        with pytest.raises(UnknownFate):
            bench.submit(shard)
        (seen,) = bench.provider.find(bench.search(shard))
        bench.ended(seen.batch_id)
        (sighting,) = bench.provider.find(bench.search(shard))
        assert (sighting.batch_id, sighting.token) == (seen.batch_id, shard.token)
        assert sighting.state is BatchState.ENDED
        assert len(bench.results(sighting.batch_id)) == 7

    def test_a_running_batch_is_recognised_only_where_the_vendor_allows_a_mark(self, bench: Bench) -> None:
        bench.fault(kind="hold")
        shard = bench.shard(7)
        bench.submit(shard)
        (sighting,) = bench.provider.find(bench.search(shard))
        assert sighting.state is BatchState.RUNNING
        assert sighting.token == (shard.token if self.is_recognisable else None)

    def test_batches_of_others_and_batches_that_are_known_are_not_found(self, bench: Bench) -> None:
        shard, other = bench.shard(7, number=1), bench.shard(7, number=2)
        first, second = bench.submit(shard), bench.submit(other)
        for batch_id in (first, second):
            bench.ended(batch_id)
        found = bench.provider.find(bench.search(shard, other, known=[first]))
        assert [(sighting.batch_id, sighting.token) for sighting in found] == [(second, other.token)]
        stranger = Bench(
            provider=bench.provider, simulator=bench.simulator, folder=bench.folder, model=bench.model
        )
        assert bench.provider.find(stranger.search(stranger.shard(7))) == []

    def test_a_batch_shows_once_the_listing_has_caught_up(self, bench: Bench) -> None:
        bench.simulator.turn(list_lag=bench.provider.limits.list_lag_seconds)
        shard = bench.shard(7)
        bench.submit(shard)
        bench.simulator.clock(advance_seconds=bench.provider.limits.list_lag_seconds)
        assert len(bench.provider.find(bench.search(shard))) == 1

    @pytest.mark.parametrize("effect", ["before", "after"])
    def test_a_creation_that_a_gateway_answers_leaves_the_fate_open(self, bench: Bench, effect: str) -> None:
        for number, _ in enumerate(each_page(bench, "create", effect=effect), start=1):
            shard = bench.shard(7, number=number)
            # An answer that comes before the request was sent whole shows that no batch exists.
            with pytest.raises(UnknownFate if effect == "after" else (UnknownFate, Unavailable)):
                bench.submit(shard)
            assert bench.bill()["calls"]["create"] == number
            assert len(bench.bill()["batches"]) == (number if effect == "after" else 0)

    def test_a_search_that_a_gateway_answers_is_not_an_empty_one(self, bench: Bench) -> None:
        shard = bench.shard(7)
        bench.submit(shard)
        for body in each_page(bench, "list"):
            if body not in self.empty_lists:
                with pytest.raises(Unavailable):
                    bench.provider.find(bench.search(shard))

    def test_an_upload_that_a_gateway_answers_did_not_take_place(self, bench: Bench) -> None:
        for _ in each_page(bench, "upload"):
            try:
                bench.provider.upload(bench.shard(1))
            except Unavailable:
                continue
            assert bench.bill()["calls"].get("upload", 0) == 0, "an answer of a gateway passed for a file"

    def test_a_creation_that_a_gateway_answers_with_a_bomb_leaves_the_fate_open(self, bench: Bench) -> None:
        shard = bench.shard(7)
        bench.fault(kind="bomb", endpoint="create", effect="after", bytes=BOMB_BYTES)
        with little_memory(), pytest.raises(UnknownFate):
            bench.submit(shard)
        assert len(bench.provider.find(bench.search(shard))) == 1

    def test_a_creation_that_is_told_to_wait_is_not_repeated_and_says_for_how_long(
        self, bench: Bench
    ) -> None:
        bench.fault(kind="status", endpoint="create", status=429, retry_after=17)
        with pytest.raises(Unavailable) as raised:
            bench.submit(bench.shard(1))
        assert raised.value.retry_after == 17
        assert bench.bill()["calls"]["create"] == 1
        assert bench.bill()["batches"] == []

    @pytest.mark.parametrize("status", [400, 401, 403])
    def test_a_definite_refusal_means_that_no_batch_exists(self, bench: Bench, status: int) -> None:
        bench.fault(kind="status", endpoint="create", status=status)
        with pytest.raises(Refused):
            bench.submit(bench.shard(1))
        assert bench.bill()["calls"]["create"] == 1

    def test_a_limit_of_spending_is_a_refusal_and_not_a_reason_to_wait(self, bench: Bench) -> None:
        bench.fault(kind="status", endpoint="create", **self.spend_limit)
        with pytest.raises(Refused):
            bench.submit(bench.shard(1))

    def test_where_nobody_listens_nothing_was_sent(self, bench: Bench) -> None:
        shard = bench.shard(1)
        upload = bench.provider.upload(shard)
        bench.simulator.kill()
        try:
            with pytest.raises(Unavailable):
                bench.provider.submit(shard, upload, Lease(expires_at=time.time() + 5))
        finally:
            bench.simulator.start()

    def test_after_the_lease_nothing_is_sent(self, bench: Bench) -> None:
        shard = bench.shard(1)
        upload = bench.provider.upload(shard)
        with pytest.raises(Unavailable):
            bench.provider.submit(shard, upload, Lease(expires_at=time.time() - 1))
        assert bench.bill()["calls"].get("create", 0) == 0

    def test_an_answer_that_does_not_come_within_the_lease_leaves_the_fate_open(self, bench: Bench) -> None:
        shard = bench.shard(7)
        upload = bench.provider.upload(shard)
        bench.fault(kind="delay", endpoint="create", effect="after", seconds=30)
        with pytest.raises(UnknownFate):
            bench.provider.submit(shard, upload, Lease(expires_at=time.time() + 0.7))
        assert len(bench.provider.find(bench.search(shard))) == 1

    def test_an_upload_is_deleted_and_deleting_it_again_is_no_error(self, bench: Bench) -> None:
        upload = bench.provider.upload(bench.shard(1))
        bench.provider.discard(upload)
        bench.provider.discard(upload)

    def test_a_batch_is_deleted_with_its_answers_once_it_has_ended(self, bench: Bench) -> None:
        if not isinstance(bench.provider, DeletesBatches):
            pytest.skip("the adapter does not delete batches")
        shard = bench.shard(2)
        upload = bench.provider.upload(shard)
        batch_id = bench.provider.submit(shard, upload, Lease(expires_at=time.time() + 60))
        bench.ended(batch_id)
        assert len(bench.results(batch_id)) == 2

        bench.provider.delete_batch(batch_id, "")

        with pytest.raises((ResultsGone, Refused)):
            bench.results(batch_id)
        bench.provider.discard(upload)
        bench.provider.delete_batch(batch_id, upload)

    def test_a_batch_that_runs_is_not_deleted(self, bench: Bench) -> None:
        if not isinstance(bench.provider, DeletesBatches):
            pytest.skip("the adapter does not delete batches")
        bench.fault(kind="hold")
        batch_id = bench.submit(bench.shard(1))
        with pytest.raises(Refused):
            bench.provider.delete_batch(batch_id, "")
        assert bench.provider.check([batch_id])[batch_id].state is BatchState.RUNNING


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
