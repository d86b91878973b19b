"""The contract's cases about creating a batch: once, inside the lease, and found again when its answer was lost."""

import time
from collections.abc import Collection
from typing import Any, ClassVar

import pytest

from airflow_batch_llm.core.model import BatchState, Lease
from airflow_batch_llm.errors import Refused, ResultsGone, Unavailable, UnknownFate
from airflow_batch_llm.providers.base import DeletesBatches
from airflow_batch_llm.testing.provider_answers import BOMB_BYTES, each_page, little_memory
from airflow_batch_llm.testing.provider_bench import Bench


class CreatesOnce:
    """The contract of `submit`: what it sends, what it raises, and what `find` returns afterwards."""

    #: A 429 that time does not heal, as the simulator's fault.
    spend_limit: ClassVar[dict[str, Any]] = {"status": 403}
    #: Bodies that are an empty list in the vendor's own words.
    empty_lists: ClassVar[Collection[str]] = ()
    #: Whether a batch can be recognised by its token while it runs.
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
