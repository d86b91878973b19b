"""Waiting for rows."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSensorTimeout, TaskDeferred
from airflow.sdk import DAG

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.sensors.pending_rows import PendingRowsSensor
from airflow_batch_llm.triggers.pending_rows import PendingRowsTrigger
from airflow_batch_llm.triggers.watching import PendingRows
from tests.edge.conftest import World
from tests.edge.dag_runs import failures, states
from tests.edge.serialization import deserialize, serialize

Run = Callable[..., Any]


@pytest.mark.parametrize("deferrable", [True, False])
@pytest.mark.parametrize(
    "source",
    [{"table": "tickets"}, {"sql": "SELECT * FROM tickets;"}, {"sql": "SELECT\n*\nFROM\ntickets\n-- all"}],
)
def test_enough_rows_let_a_dag_go_on(
    world: World, run: Run, deferrable: bool, source: dict[str, str]
) -> None:
    with DAG("pending", schedule=None) as dag:
        PendingRowsSensor(
            task_id="wait", conn_id="warehouse", min_rows=12, deferrable=deferrable, timeout=30, **source
        )

    assert states(run(dag)) == {"wait": "success"}


async def test_the_trigger_fires_when_the_rows_have_come(world: World) -> None:
    pending = PendingRows(conn_id="warehouse", query="tickets", min_rows=13)
    trigger = PendingRowsTrigger(pending=pending.to_json(), poll_interval=0.05)
    fired = asyncio.create_task(anext(aiter(trigger.run())))
    await asyncio.to_thread(world.execute, "INSERT INTO tickets VALUES (99, 'x', 'y')")

    assert (await asyncio.wait_for(fired, 30)).payload == {"look": True}


@pytest.mark.parametrize(("hours", "enough"), [(5, True), (1, False)])
def test_a_row_that_has_waited_for_long_is_enough(world: World, hours: int, enough: bool) -> None:
    world.execute("CREATE TABLE queue (n INTEGER, arrived TIMESTAMP)")
    arrived = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=hours)
    world.execute(f"INSERT INTO queue VALUES (1, '{arrived}')")
    pending = PendingRows(conn_id="warehouse", query="queue", min_rows=9, since="arrived", max_age=3 * 3600)

    assert pending.is_enough(pending.count(), time.time()) is enough


def test_an_empty_table_is_never_enough(world: World) -> None:
    world.execute("CREATE TABLE queue (n INTEGER, arrived TIMESTAMP)")
    pending = PendingRows(conn_id="warehouse", query="queue", min_rows=1, since="arrived", max_age=0)

    assert not pending.is_enough(pending.count(), time.time())


def test_the_trigger_survives_the_way_to_the_triggerer() -> None:
    pending = PendingRows(conn_id="warehouse", query="queue", min_rows=9, since="arrived", max_age=60)
    path, kwargs = PendingRowsTrigger(pending=pending.to_json(), poll_interval=5).serialize()

    assert PendingRowsTrigger(**deserialize(serialize(kwargs))).serialize() == (path, kwargs)


def test_a_template_that_cannot_be_rendered_is_named_by_its_field(world: World, run: Run) -> None:
    with DAG("pending_mistyped", schedule=None) as dag:
        PendingRowsSensor(
            task_id="wait",
            conn_id="warehouse",
            table="{{ dss }}",
            min_rows=1,
        )

    with failures() as failed:
        run(dag)

    assert "table cannot be rendered: 'dss' is undefined. Is it 'ds'?" in str(failed[0])


def test_a_number_of_rows_that_is_none_is_refused_by_its_name(world: World, run: Run) -> None:
    with DAG("pending_none", schedule=None) as dag:
        sensor = PendingRowsSensor(task_id="wait", conn_id="warehouse", table="tickets", min_rows="few")

    with pytest.raises(InputError, match="min_rows must be an int, got 'few'"):
        sensor.trigger(0.0)
    assert states(run(dag)) == {"wait": "failed"}


def test_a_key_is_no_argument_of_a_sensor() -> None:
    with pytest.raises(InputError, match="hook_params has 'private_key_content'"):
        PendingRowsSensor(
            task_id="wait", conn_id="warehouse", table="queue", hook_params={"private_key_content": "x"}
        )


def test_an_age_needs_to_know_since_when() -> None:
    with pytest.raises(InputError, match="since is missing"):
        PendingRowsSensor(task_id="wait", conn_id="warehouse", table="queue", max_age=60)


def test_the_timeout_is_that_of_all_waits_together(world: World) -> None:
    sensor = PendingRowsSensor(
        task_id="wait", conn_id="warehouse", table="tickets", min_rows=1000, timeout=600, deferrable=True
    )
    context: Any = {}

    with pytest.raises(TaskDeferred) as first:
        sensor.execute(context)
    until = first.value.kwargs["until"]
    with pytest.raises(TaskDeferred) as second:
        sensor.look(context, {"look": True}, until=until - 400)
    with pytest.raises(AirflowSensorTimeout):
        sensor.look(context, {"look": True}, until=until - 600)

    assert (
        timedelta(seconds=590) < first.value.timeout <= timedelta(seconds=600)
    )  # the first look takes its time
    assert timedelta(seconds=190) < second.value.timeout <= timedelta(seconds=200)
    assert second.value.kwargs == {"until": until - 400}
