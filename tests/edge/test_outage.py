"""A provider that cannot be reached: what tasks and sensors say, whom they tell, and that their time ends all the same."""

from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSensorTimeout
from airflow.sdk import DAG

from airflow_batch_llm.core.settings import Pace
from airflow_batch_llm.sensors.llm_batch import LLMBatchSensor
from tests.edge.conftest import TICKETS, World
from tests.edge.dag_runs import failures, states
from tests.edge.logs import told
from tests.edge.tasks import transform
from tests.edge.test_llm_batch_trigger import create_batch

Run = Callable[..., Any]


def cut_off(world: World) -> None:
    """Let batches be created, and fail every other call about them."""
    for endpoint in ("retrieve", "list", "cancel"):
        world.simulator.fault(provider="anthropic", endpoint=endpoint, kind="drop", times=None)


@pytest.mark.parametrize("deferrable", [True, False])
def test_the_time_of_a_run_ends_while_the_provider_cannot_be_reached(
    world: World, run: Run, deferrable: bool
) -> None:
    cut_off(world)
    with DAG(f"cut_off_{deferrable}".lower(), schedule=None) as dag:
        transform(
            deferrable=deferrable,
            pace=Pace(poll_interval=0.1, timeout=8),
        )

    with failures() as failed:
        done = run(dag)

    assert states(done) == {"label": "failed"}
    assert str(failed[0]).startswith(
        "DeadlinePassed: The run's time is over and the provider cannot be reached"
    )


def test_somebody_is_told_once_of_an_outage_and_its_end_is_told_too(world: World, run: Run) -> None:
    warned: list[str] = []
    world.simulator.fault(provider="anthropic", kind="hold", times=None)
    cut_off(world)

    def tell(context: Any) -> None:
        warned.append(context["run_id"])
        world.simulator.clear_faults()
        for batch_id in world.simulator.ledger()["anthropic"]["running"]:
            world.simulator.batch(batch_id, "end")

    with DAG("outage", schedule=None) as dag:
        transform(deferrable=True, on_warning=tell, pace=Pace(poll_interval=0.1, timeout=60))

    with told() as log:
        done = run(dag)

    assert states(done) == {"label": "success"}
    assert warned == [done.run_id]
    assert log.warns("The provider could not be reached 3 times in a row, since ")
    assert log.tells("The provider answers again. It could not be reached 4 times in a row, from ")
    assert world.rows_charged() == len(TICKETS)


def test_a_sensor_waits_an_outage_out_and_ends_with_its_timeout(world: World) -> None:
    batch_id = create_batch(world)
    cut_off(world)
    sensor = LLMBatchSensor(
        task_id="wait",
        batch_ids=[batch_id],
        model_id="anthropic:claude-haiku-4-5",
        poke_interval=0.1,
        timeout=1,
        deferrable=False,
    )

    with told() as log, pytest.raises(AirflowSensorTimeout):
        sensor.execute({})

    assert log.tells("The provider could not be reached, and is asked again: ")
