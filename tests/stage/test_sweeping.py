"""Batches of processes that froze before their creation: found while the run lasts, at its end, and by the next run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_batch_llm.core.model import Lease, ShardFile
from airflow_batch_llm.stage.finishing import Finished
from tests.stage.world import Bench, let_go

ROWS = 20


class _Frozen:
    """A provider that freezes between its last look and its creation, and sends when it is told to."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._creation: Callable[[], str] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    def submit(self, shard: ShardFile, upload: str, lease: Lease) -> str:
        kept = shard.path.read_bytes()

        def send() -> str:
            shard.path.parent.mkdir(parents=True, exist_ok=True)
            shard.path.write_bytes(kept)
            late = Lease(expires_at=lease.expires_at + 1_000_000)
            return self._provider.submit(shard, upload, late)  # type: ignore[no-any-return]

        self._creation = send
        raise _Freeze

    def thaw(self) -> str:
        assert self._creation is not None
        return self._creation()


class _Freeze(BaseException):
    """The process goes no further."""


def frozen_before_its_creation(bench: Bench) -> _Frozen:
    """The run has an intent without an answer, and whoever made it is not dead."""
    run = bench.run()
    frozen = _Frozen(run.parts.provider)
    with pytest.raises(_Freeze):
        bench.run(parts={"provider": frozen}).advance()
    let_go(run)
    return frozen


def finished_by_another(bench: Bench) -> Finished:
    bench.world.sleep(1000)  # the lease is over
    return bench.complete()


def loose(bench: Bench) -> list[Path]:
    return [path for path in (bench.world.folder / "workspace" / "loose").rglob("*") if path.is_file()]


def test_a_batch_that_shows_up_after_the_end_is_cancelled_by_the_next_run(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)
    frozen = frozen_before_its_creation(openai)
    finished_by_another(openai)
    assert len(loose(openai)) == 1

    openai.world.simulator.turn(batch_seconds=3600)
    late = frozen.thaw()
    assert openai.world.ledger()["running"] == [late]
    openai.said.clear()
    openai.complete("dag/task/next")
    openai.world.sleep(900)  # the provider takes its time to cancel

    assert openai.world.ledger()["running"] == []
    assert openai.world.charged() == ROWS
    assert any(late in said and "is cancelled" in said for said in openai.said)


def test_it_is_recorded_once_and_not_cancelled_again(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)
    frozen = frozen_before_its_creation(openai)
    finished_by_another(openai)
    late = frozen.thaw()
    openai.complete("dag/task/next")
    openai.said.clear()

    openai.complete("dag/task/after_next")

    assert not any(late in said for said in openai.said)


def test_one_that_nobody_can_recognise_is_found_once_it_has_ended(anthropic: Bench) -> None:
    anthropic.world.make_tickets(ROWS)
    frozen = frozen_before_its_creation(anthropic)
    finished_by_another(anthropic)
    late = frozen.thaw()
    anthropic.world.simulator.finish(late)
    anthropic.said.clear()

    anthropic.complete("dag/task/next")

    assert any(late in said and "on the bill" in said for said in anthropic.said)


def test_a_search_that_fails_does_not_keep_the_next_run_from_its_work(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)
    frozen_before_its_creation(openai)
    finished_by_another(openai)
    openai.world.make_tickets(ROWS + 1)
    openai.fault(kind="status", status=400, endpoint="list", times=None)

    assert openai.complete("dag/task/next").report.passed
    assert len(loose(openai)) == 1


def test_after_twice_the_providers_window_it_is_no_longer_looked_for(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)
    frozen_before_its_creation(openai)
    finished_by_another(openai)
    openai.world.sleep(3 * 86_400)

    openai.complete("dag/task/next")

    assert loose(openai) == []


def test_a_run_without_an_accident_is_not_looked_for(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)

    openai.complete()

    assert loose(openai) == []
    assert "list" not in openai.world.ledger()["calls"]


def test_nor_after_that_time_where_every_search_fails(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)
    frozen_before_its_creation(openai)
    finished_by_another(openai)
    openai.world.sleep(3 * 86_400)
    openai.fault(kind="status", status=400, endpoint="list", times=None)

    openai.complete("dag/task/next")

    assert loose(openai) == []
