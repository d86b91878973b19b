"""All triggers of one connection in one event loop share a client and a poll."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import pytest

from airflow_batch_llm.core.model import BatchState, BatchStatus
from airflow_batch_llm.errors import Refused
from airflow_batch_llm.hooks.llm import llm_provider
from airflow_batch_llm.providers.anthropic import flows
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.triggers import polling
from airflow_batch_llm.triggers.polling import Poller, join, leave
from tests.edge.conftest import World
from tests.edge.test_llm_batch_trigger import create_batch, event_of, trigger

MODEL = "anthropic:claude-haiku-4-5"


def calls(world: World) -> dict[str, int]:
    return dict(world.simulator.ledger()["anthropic"]["calls"])


def looks(world: World) -> int:
    seen = calls(world)
    return seen.get("list", 0) + seen.get("retrieve", 0)


async def opened() -> Provider:
    return await asyncio.to_thread(llm_provider, None, MODEL)


async def look(poller: Poller, *batch_ids: str, since: float = 0.0) -> Mapping[str, BatchStatus]:
    return await asyncio.wait_for(poller.check(batch_ids, 60, since=since), 30)


async def test_many_triggers_ask_in_one_call_and_each_hears_of_its_own_batches(world: World) -> None:
    ids = [create_batch(world) for _ in range(12)]
    waiting = [asyncio.create_task(event_of(trigger(one, watch={"poll_interval": 600.0}))) for one in ids]
    while not looks(world):  # noqa: ASYNC110 - it is the simulator that is asked
        await asyncio.sleep(0.02)
    assert len(polling._pollers[asyncio.get_running_loop()]) == 1
    assert looks(world) <= 2

    for task in waiting[1:]:
        task.cancel()
    await asyncio.gather(*waiting[1:], return_exceptions=True)
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)


async def test_triggers_that_a_busy_machine_starts_late_are_asked_for_in_the_same_round(world: World) -> None:
    ids = [create_batch(world) for _ in range(3)]
    poller = join("late", opened)

    async def looked_late(batch_id: str) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        await look(poller, batch_id)

    try:
        await poller.connected()
        first = asyncio.create_task(look(poller, ids[0]))
        await asyncio.sleep(0.05)
        time.sleep(2 * polling._GATHER_SECONDS)  # noqa: ASYNC251 - the loop is held up, as on a busy machine
        await asyncio.gather(first, *(looked_late(one) for one in ids[1:]))
        assert looks(world) == 1
    finally:
        await leave(poller)


async def test_the_first_round_reads_parts_of_the_list_side_by_side(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "_LIST_LIMIT", 4)
    ids = [create_batch(world) for _ in range(12)]
    poller = join("parts", opened)
    try:
        await poller.connected()
        await asyncio.gather(*(look(poller, one, since=number) for number, one in enumerate(ids)))
        assert calls(world)["list"] == 5  # three full pages, one after another, would do
        assert "retrieve" not in calls(world)
    finally:
        await leave(poller)


async def test_a_batch_that_cannot_be_looked_at_is_the_trouble_of_its_own_trigger(world: World) -> None:
    ids = [create_batch(world) for _ in range(5)]
    poller = join("isolation", opened)
    try:
        wrong = asyncio.create_task(look(poller, "msgbatch_of_nobody"))
        good = [asyncio.create_task(look(poller, one)) for one in ids]

        assert [await one for one in good] == [
            {one: BatchStatus(state=BatchState.RUNNING, total=1, finished=0)} for one in ids
        ]
        with pytest.raises(Refused):
            await wrong

        # From now on it is asked for alone, so the others need no second question.
        before = looks(world)
        again = [asyncio.create_task(look(poller, one)) for one in ("msgbatch_of_nobody", *ids)]
        await asyncio.gather(*again, return_exceptions=True)
        assert looks(world) - before <= 4
    finally:
        await leave(poller)


async def test_a_key_that_is_refused_is_looked_up_again(world: World) -> None:
    batch_id = create_batch(world)
    times: list[float] = []

    async def counting() -> Provider:
        times.append(time.time())
        return await opened()

    poller = join("rotation", counting)
    try:
        await look(poller, batch_id)
        for endpoint in ("list", "retrieve"):
            world.simulator.fault(provider="anthropic", endpoint=endpoint, kind="status", status=401, times=1)
        seen = await asyncio.gather(look(poller, batch_id), look(poller, batch_id))

        assert [one[batch_id].state for one in seen] == [BatchState.RUNNING] * 2
        assert len(times) == 2  # for both of them together
    finally:
        await leave(poller)


async def test_the_last_trigger_closes_the_client_and_no_earlier_one(world: World) -> None:
    batch_id = create_batch(world)
    first, second = join("closing", opened), join("closing", opened)
    assert first is second
    await look(first, batch_id)
    provider: Any = await first.connected()

    await leave(first)
    assert await look(second, batch_id)
    await leave(second)

    assert provider._clients._async is None
    assert "closing" not in polling._pollers[asyncio.get_running_loop()]


async def test_a_connection_that_hangs_stops_no_other(world: World) -> None:
    batch_id = create_batch(world)
    answers = asyncio.Event()

    async def hanging() -> Provider:
        await answers.wait()
        return await opened()

    slow, quick = join("slow", hanging), join("quick", opened)
    try:
        stuck = asyncio.create_task(look(slow, batch_id))
        await asyncio.sleep(0)

        assert (await look(quick, batch_id))[batch_id].state is BatchState.RUNNING
        assert not stuck.done()
        answers.set()
        assert (await stuck)[batch_id].state is BatchState.RUNNING
    finally:
        await leave(slow)
        await leave(quick)


async def test_a_trigger_that_leaves_takes_its_batches_along(world: World) -> None:
    stays, goes = create_batch(world), create_batch(world)
    poller = join("leaving", opened)
    try:
        gone = asyncio.create_task(look(poller, goes))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)

        assert await look(poller, stays)
        assert calls(world).get("retrieve", 0) <= 1
    finally:
        await leave(poller)
