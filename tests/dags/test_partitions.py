"""A backfill over partitions asks about each row in the run of its partition, and nowhere else."""

from datetime import UTC, date, datetime
from typing import Any

import duckdb
import pytest

from tests.dags.conftest import Stand, read_dags
from tests.edge.dag_runs import states, synchronised, xcom

DAYS = 10
FIRST = date(2026, 3, 1)


def backfill(dag: Any, first: date, last: date) -> list[Any]:
    """Let Airflow create the runs of a backfill, run them one after the other, and give them back."""
    from airflow.models.backfill import ReprocessBehavior, _create_backfill
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    synchronised(dag)
    made = _create_backfill(
        dag_id=dag.dag_id,
        from_date=datetime(first.year, first.month, first.day, tzinfo=UTC),
        to_date=datetime(last.year, last.month, last.day, 23, tzinfo=UTC),
        max_active_runs=1,
        reverse=False,
        dag_run_conf=None,
        triggering_user_name="tests",
        reprocess_behavior=ReprocessBehavior.NONE,
    )
    with create_session() as session:
        runs = list(session.scalars(select(DagRun).where(DagRun.backfill_id == made.id)))
        for dag_run in runs:
            finish(dag, dag_run, session)
    return runs


def finish(dag: Any, dag_run: Any, session: Any) -> None:
    """Run the tasks of a Dag run as `dag.test()` does, which cannot be given a partition key."""
    from airflow.sdk.definitions.dag import _run_task
    from airflow.serialization.serialized_objects import DagSerialization
    from airflow.utils.state import DagRunState, TaskInstanceState

    dag_run.dag = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
    dag_run.state = DagRunState.RUNNING
    while dag_run.state == DagRunState.RUNNING:
        ready, _ = dag_run.update_state(session=session)
        for task_instance in ready:
            task_instance.try_number += 1
            task_instance.state = TaskInstanceState.SCHEDULED
        session.commit()
        for task_instance in dag_run.get_task_instances(session=session):
            if task_instance.state == TaskInstanceState.SCHEDULED:
                _run_task(ti=task_instance, task=dag.get_task(task_instance.task_id), run_triggerer=True)
        session.expire_all()


def without_retries(dag: Any) -> Any:
    for task in dag.tasks:
        task.retries = 0
    return dag


def by_hand(dag: Any, key: str) -> Any:
    """Run the Dag for a key that a user has typed."""
    from airflow.serialization.serialized_objects import DagSerialization
    from airflow.utils.session import create_session
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    with create_session() as session:
        dag_run = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag)).create_dagrun(
            run_id="by_hand",
            run_after=datetime.now(UTC),
            run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST,
            state="running",
            partition_key=key,
            session=session,
        )
        finish(dag, dag_run, session)
    return dag_run


def keys_of_events(dag_id: str) -> list[str]:
    """The partition keys of the asset events that a Dag has caused."""
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        query = select(AssetEvent.partition_key).where(AssetEvent.source_dag_id == dag_id)
        return sorted(str(key) for key in session.scalars(query))


def test_a_backfill_of_ten_partitions_asks_each_row_once(stand: Stand) -> None:
    pytest.importorskip("airflow.sdk.definitions.partition_mappers", reason="Airflow 3.2")
    with duckdb.connect(stand.folder / "warehouse.duckdb") as connection:
        connection.execute(f"UPDATE support.tickets SET day = DATE '{FIRST}' + (ticket_id % {DAYS})::INTEGER")
    dag, follower = (without_retries(read_dags()[name]) for name in ("mood_of_day", "apologies_of_day"))

    runs = backfill(dag, FIRST, FIRST.replace(day=FIRST.day + DAYS - 1))

    reports = {run.partition_key: xcom(run, "judge") for run in runs}
    answered = {
        day: one["outcomes"]["succeeded"] + one["why"].get("reused", 0) for day, one in reports.items()
    }
    per_day = stand.ask("SELECT day::VARCHAR, count(*)::INTEGER FROM support.tickets GROUP BY 1")
    texts = "SELECT DISTINCT subject, body FROM support.tickets"
    assert answered == dict(per_day)
    assert [states(run) for run in runs] == DAYS * [{"judge": "success"}]
    assert keys_of_events(dag.dag_id) == sorted(day for day, _ in per_day)
    assert stand.number(f"SELECT count(*) FROM ({texts})") == stand.charged()
    assert stand.ask("SELECT day, ticket_id FROM support.day_moods ORDER BY ALL") == stand.ask(
        "SELECT day, ticket_id FROM support.tickets ORDER BY ALL"
    )

    [(day, angry)] = stand.ask(
        "SELECT day::VARCHAR, count(body) FROM support.day_moods JOIN support.tickets USING (ticket_id, day)"
        " WHERE mood = 'angry' GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1"
    )
    synchronised(follower)
    assert states(by_hand(follower, day)) == {"apologise": "success"}
    assert stand.number("SELECT count(apology) FROM support.day_apologies") == angry > 0
    spent = stand.charged()

    typed = by_hand(dag, f"{FIRST}' OR '1' = '1")

    assert states(typed) == {"judge": "failed"}
    assert stand.charged() == spent
