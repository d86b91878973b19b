"""The trigger with a real provider on the simulator: what it fires, and what it cancels."""

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import anthropic
import orjson
import pytest
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import TaskStatesResult

from airflow_batch_llm.core.settings import Pace
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator
from airflow_batch_llm.stage import telemetry
from airflow_batch_llm.triggers.llm_batch import LLMBatchTrigger
from tests.edge.conftest import World
from tests.edge.logs import root_messages, told
from tests.edge.serialization import deserialize, serialize
from tests.edge.tasks import transform


class AirflowThatKnows:
    """Answers what a supervisor answers about a task's state; an exception instead of states is raised."""

    def __init__(self, states: Mapping[str, Any] | Exception) -> None:
        self._states = states

    def send(self, message: Any) -> TaskStatesResult:
        if isinstance(self._states, Exception):
            raise self._states
        asked = {name: state for name, state in self._states.items() if name.startswith(*message.task_ids)}
        return TaskStatesResult(task_states={"run": asked} if asked else {})


def create_batch(world: World) -> str:
    """A batch that does not end by itself."""
    world.simulator.fault(provider="anthropic", kind="hold", times=None)
    client = anthropic.Anthropic(base_url=world.simulator.url, api_key="any")
    message = {"role": "user", "content": "hello"}
    params = {"model": "claude-haiku-4-5", "max_tokens": 5, "messages": [message]}
    with client:
        return client.messages.batches.create(requests=[{"custom_id": "one", "params": params}]).id


def trigger(*batch_ids: str, **changes: Any) -> LLMBatchTrigger:
    now = time.time()
    watch = {"batch_ids": batch_ids, "since": now, "deadline": now + 600, "poll_interval": 0.05}
    watch |= changes.pop("watch", {})
    made = LLMBatchTrigger(
        model_id="anthropic:claude-haiku-4-5",
        llm_conn_id=None,
        watch=watch,
        **{"cancel_on_kill": True, **changes},
    )
    made.task_instance = SimpleNamespace(dag_id="dag", run_id="run", task_id="task", map_index=-1)
    return made


async def event_of(waiting: LLMBatchTrigger) -> Any:
    return (await asyncio.wait_for(anext(aiter(waiting.run())), 30)).payload


async def killed(waiting: LLMBatchTrigger) -> None:
    """Treat a trigger as Airflow does if its task is not deferred any more."""
    try:
        await waiting.on_kill()
    finally:
        await waiting.cleanup()


def is_running(world: World, batch_id: str) -> bool:
    return batch_id in world.simulator.ledger()["anthropic"]["running"]


def is_cancelled(world: World, batch_id: str) -> bool:
    return world.simulator.ledger()["anthropic"]["calls"].get("cancel", 0) == 1


async def test_it_fires_a_few_bytes_when_the_batch_has_ended(world: World) -> None:
    batch_id = create_batch(world)
    waiting = asyncio.create_task(event_of(trigger(batch_id)))
    await asyncio.sleep(0)
    world.simulator.batch(batch_id, "end")

    assert await waiting == {"look": True}
    assert len(orjson.dumps(await waiting)) < 100


async def test_each_look_is_told_with_the_time_of_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "0.1")
    batch_id = create_batch(world)
    with told() as log:
        now = time.time()
        await event_of(trigger(batch_id, watch={"not_before": now + 0.5, "deadline": now + 3}))

    assert log.messages[0].startswith("0 of 1 batch has ended; looked at again in 0 s, at ")
    assert log.messages[1].startswith(
        "0 of 1 batch has ended, 0 of 1 request is done; looked at again in 0 s"
    )
    assert log.messages[-1] == "The task goes on: the run's time ends."


async def test_http_clients_are_quiet_in_this_trigger_and_speak_in_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry._gate, "everywhere", False)  # a task may have run in this process
    client = logging.getLogger("httpx2")
    client.setLevel(logging.DEBUG)
    batch_id = create_batch(world)
    with root_messages() as messages:
        await asyncio.create_task(event_of(trigger(batch_id, watch={"deadline": time.time() + 1})))
        assert not any("HTTP Request" in message for message in messages)
        client.info("HTTP Request: of another")

    assert "HTTP Request: of another" in messages


def test_it_survives_the_way_to_the_triggerer() -> None:
    waiting = trigger(
        "a",
        "b",
        watch={"wake_at": 7.0},
        llm_hook_params={"timeout": 3},
        successors=["finish"],
        others={"mine": {"model_id": "openai:gpt-5", "llm_conn_id": "mine"}},
    )
    path, kwargs = waiting.serialize()

    again = LLMBatchTrigger(**deserialize(serialize(kwargs)))

    assert path == "airflow_batch_llm.triggers.llm_batch.LLMBatchTrigger"
    assert again.serialize() == (path, kwargs)
    assert again.watch == waiting.watch


@pytest.mark.parametrize("state", ["failed", "success", "skipped", "removed", "gone"])
async def test_batches_of_a_task_that_was_given_up_are_cancelled(
    world: World, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    states = {} if state == "gone" else {"task": state}
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", AirflowThatKnows(states), raising=False)
    batch_id = create_batch(world)

    await killed(trigger(batch_id))

    assert is_cancelled(world, batch_id)


@pytest.mark.parametrize(
    "state", ["deferred", "scheduled", "queued", "running", "restarting", "up_for_retry", None]
)
async def test_batches_that_somebody_waits_for_are_left_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, state: str | None
) -> None:
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", AirflowThatKnows({"task": state}), raising=False)
    batch_id = create_batch(world)

    await killed(trigger(batch_id))

    assert is_running(world, batch_id)
    assert not is_cancelled(world, batch_id)


@pytest.mark.parametrize(
    ("heir", "cancelled"), [("failed", True), ("skipped", True), ("deferred", False), (None, False)]
)
async def test_batches_of_a_task_that_was_given_up_are_left_to_an_heir_that_was_not(
    world: World, monkeypatch: pytest.MonkeyPatch, heir: str | None, cancelled: bool
) -> None:
    comms = AirflowThatKnows({"task": "failed", "collect": "success", "finish": heir})
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)
    batch_id = create_batch(world)

    await killed(trigger(batch_id, successors=["collect", "finish"]))

    assert is_cancelled(world, batch_id) is cancelled


async def test_a_mapped_task_is_found_by_its_index(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        task_runner, "SUPERVISOR_COMMS", AirflowThatKnows({"task_3": "failed"}), raising=False
    )
    batch_id = create_batch(world)
    waiting = trigger(batch_id)
    waiting.task_instance.map_index = 3

    await killed(waiting)

    assert is_cancelled(world, batch_id)


async def test_a_call_that_airflow_breaks_off_again_and_again_cancels_all_batches(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", AirflowThatKnows({"task": "failed"}), raising=False)
    batch_ids = [create_batch(world) for _ in range(3)]
    killing = asyncio.create_task(asyncio.wait_for(killed(trigger(*batch_ids)), 30))
    for _ in range(3):  # once a second, until the trigger has ended
        await asyncio.sleep(0)
        killing.cancel("user-action")
    await asyncio.gather(killing, return_exceptions=True)

    for _ in range(600):
        if not any(is_running(world, batch_id) for batch_id in batch_ids):
            break
        await asyncio.sleep(0.05)
    assert world.simulator.ledger()["anthropic"]["calls"].get("cancel", 0) == len(batch_ids)


async def test_a_failed_look_up_cancels_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    comms = AirflowThatKnows(RuntimeError("no answer"))
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)
    batch_id = create_batch(world)

    with pytest.raises(RuntimeError, match="no answer"):  # Airflow logs it
        await killed(trigger(batch_id))

    assert is_running(world, batch_id)


async def test_handing_over_to_another_triggerer_cancels_nothing(world: World) -> None:
    batch_id = create_batch(world)
    waiting = trigger(batch_id)
    running = asyncio.create_task(event_of(waiting))
    await asyncio.sleep(0.2)
    running.cancel()

    await waiting.cleanup()

    assert is_running(world, batch_id)


async def test_nothing_is_cancelled_after_it_has_fired(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", AirflowThatKnows({"task": "failed"}), raising=False)
    batch_id = create_batch(world)
    waiting = trigger(batch_id, watch={"wake_at": time.time()})
    await event_of(waiting)

    await killed(waiting)

    assert is_running(world, batch_id)


async def test_cancel_on_kill_can_be_switched_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", AirflowThatKnows({"task": "failed"}), raising=False)
    batch_id = create_batch(world)

    await killed(trigger(batch_id, cancel_on_kill=False))

    assert is_running(world, batch_id)


async def test_batches_are_cancelled_at_the_deadline_by_the_wall_clock(world: World) -> None:
    batch_id = create_batch(world)
    watch = {"deadline": time.time() - 1, "cancel_at_deadline": True}

    assert await event_of(trigger(batch_id, watch=watch)) == {"look": True}
    assert is_cancelled(world, batch_id)


async def test_failing_checks_are_no_verdict(world: World) -> None:
    batch_id = create_batch(world)
    world.simulator.fault(provider="anthropic", endpoint="retrieve", kind="status", status=500, times=3)
    waiting = asyncio.create_task(event_of(trigger(batch_id)))
    await asyncio.sleep(0)
    world.simulator.batch(batch_id, "end")

    assert await waiting == {"look": True}


@pytest.mark.parametrize(
    ("state", "cancelled"), [("failed", True), ("up_for_retry", False), ("running", False)]
)
def test_a_worker_that_is_told_to_end_cancels_by_the_same_rule(
    world: World, monkeypatch: pytest.MonkeyPatch, state: str, cancelled: bool
) -> None:
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", AirflowThatKnows({"task": state}), raising=False)
    operator = _with_a_running_batch(world)

    operator.on_kill()

    assert bool(world.simulator.ledger()["anthropic"]["calls"].get("cancel")) is cancelled


def test_a_worker_that_asks_in_real_time_stops_if_its_task_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", AirflowThatKnows({"label": "failed"}), raising=False)
    world.simulator.turn(answer_latency=3.0)
    operator = transform(way="now", pace=Pace(max_concurrency=1))
    ti = SimpleNamespace(dag_id="dag", run_id="run", task_id="label", map_index=-1, max_tries=0)
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(operator.execute, {"ti": ti, "run_id": "run", "task": operator})
        while not asking.done() and not world.simulator.ledger()["anthropic"]["rows"]["charged"]:
            time.sleep(0.05)
        operator.on_kill()
        report = asking.result(timeout=60)

    answered = world.simulator.ledger()["anthropic"]["rows"]["charged"]
    assert report["outcomes"] == {"succeeded": answered, "canceled": 12 - answered}
    assert 0 < answered < 12
    assert world.query("SELECT count(*) FROM labels") == [(answered,)]


@pytest.mark.parametrize(("heir", "cancelled"), [("failed", True), ("scheduled", False)])
def test_a_worker_leaves_the_batches_to_an_heir_by_the_same_rule(
    world: World, monkeypatch: pytest.MonkeyPatch, heir: str, cancelled: bool
) -> None:
    comms = AirflowThatKnows({"task": "failed", "finish": heir})
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)
    operator = _with_a_running_batch(world)
    operator.successors = ("finish",)

    operator.on_kill()

    assert bool(world.simulator.ledger()["anthropic"]["calls"].get("cancel")) is cancelled


def test_a_worker_that_learns_nothing_leaves_the_batches_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", AirflowThatKnows(OSError()), raising=False)
    operator = _with_a_running_batch(world)

    with told() as log:
        operator.on_kill()

    assert log.tells("Batches may be left running")
    assert not world.simulator.ledger()["anthropic"]["calls"].get("cancel")


def test_a_task_that_waits_names_its_heirs_to_the_triggerer(world: World) -> None:
    operator = transform(deferrable=True)
    operator.successors = ["finish"]

    assert _deferred(world, operator).successors == ("finish",)


def test_on_kill_before_the_first_step_does_nothing() -> None:
    transform().on_kill()


def _with_a_running_batch(world: World) -> LLMTransformOperator:
    operator: LLMTransformOperator = transform(deferrable=True)
    _deferred(world, operator)
    return operator


def _deferred(world: World, operator: LLMTransformOperator) -> Any:
    """Return the trigger that the operator defers to."""
    from airflow.providers.common.compat.sdk import TaskDeferred

    world.simulator.fault(provider="anthropic", kind="hold", times=None)
    ti = SimpleNamespace(dag_id="dag", run_id="run", task_id="task", map_index=-1, max_tries=0)
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute({"ti": ti, "run_id": "run", "task": operator})
    return deferred.value.trigger
