"""Dags of tests, run in this process as Airflow would run them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def run_dag(dag: Any, **options: Any) -> Any:
    """Run a Dag, and give the finished Dag run."""
    synchronised(dag)
    return dag.test(**options)


def synchronised(dag: Any) -> None:
    """Put the Dag where Airflow looks for it."""
    from airflow.models.dagbundle import DagBundleModel
    from airflow.utils.session import create_session

    try:
        from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    except ImportError:  # Airflow 3.1
        from airflow.models.dagbag import DagBag, sync_bag_to_db

    with create_session() as session:
        session.merge(DagBundleModel(name="tests"))
    bag = DagBag(dag_folder="/dev/null", bundle_path=None)
    bag.bag_dag(dag)
    sync_bag_to_db(bag, "tests", "1")


def read_dags(path: Path, bundle: Path) -> dict[str, Any]:
    """The Dags of a file or a folder, read as Airflow reads them."""
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # Airflow 3.1
        from airflow.models.dagbag import DagBag

    bag = DagBag(dag_folder=str(path), bundle_path=bundle)
    assert not bag.import_errors
    return dict(bag.dags)


class _Failures:
    """Listen for tasks that fail."""

    def __init__(self) -> None:
        from airflow.listeners import hookimpl

        self.errors: list[BaseException] = []

        @hookimpl
        def on_task_instance_failed(error: Any) -> None:
            self.errors.append(error)

        self.on_task_instance_failed = on_task_instance_failed


@contextmanager
def failures() -> Iterator[list[BaseException]]:
    """Collect the errors of the tasks that fail in this block. Airflow 3.1's `dag.test()` shows callbacks none."""
    try:
        from airflow.sdk.listener import get_listener_manager
    except ImportError:  # Airflow 3.1
        from airflow.listeners.listener import get_listener_manager

    listening = _Failures()
    manager = get_listener_manager()
    manager.add_listener(listening)
    try:
        yield listening.errors
    finally:
        manager.pm.unregister(listening)


def states(dag_run: Any) -> dict[str, str]:
    """The states of a run's tasks, mapped ones by their index."""
    return {_name(ti): str(ti.state) for ti in dag_run.get_task_instances()}


def xcom(dag_run: Any, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
    """Return the value that a task pushed."""
    task_instance = dag_run.get_task_instance(task_id, map_index=map_index)
    return task_instance.xcom_pull(task_ids=task_id, key=key, map_indexes=map_index)


def asset_extras(dag_run: Any) -> list[dict[str, Any]]:
    """The extra of each asset event of a run."""
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        query = select(AssetEvent.extra).where(
            AssetEvent.source_dag_id == dag_run.dag_id, AssetEvent.source_run_id == dag_run.run_id
        )
        return list(session.scalars(query))


def _name(task_instance: Any) -> str:
    index = task_instance.map_index
    return task_instance.task_id if index < 0 else f"{task_instance.task_id}[{index}]"
