"""The Dag of `make scale`: one group over a table of PostgreSQL. Its tasks note each operation on the run folder."""

import os
import resource
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG

from airflow_batch_llm.core.settings import Pace
from airflow_batch_llm.operators.llm_transform_group import llm_transform_group
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.store.storage import Storage

_OPERATIONS = Path(os.environ["SCALE_OPERATIONS"])
_VERBS = (
    "create",
    "read",
    "open_read",
    "put",
    "write",
    "collect",
    "link",
    "delete",
    "delete_folder",
    "names",
    "folders",
)


class Noted:
    """A storage that appends a line for each operation: task, process, CPU seconds so far, and peak memory in kB.

    A line outlives the process that is killed after it.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._storage, name)
        if name not in _VERBS:
            return verb

        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return verb(*arguments, **named)
            finally:
                _note()

        return call


def _note() -> None:
    task = os.environ.get("AIRFLOW_CTX_TASK_ID", "?")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with _OPERATIONS.open("a") as file:
        file.write(f"{task} {os.getpid()} {time.process_time():.3f} {peak}\n")


_init = Workspace.__init__


def _noting(self: Workspace, uri: str, storage: Storage) -> None:
    _init(self, uri, Noted(storage))  # type: ignore[arg-type]


Workspace.__init__ = _noting  # type: ignore[method-assign]

with DAG("scale", schedule=None, default_args={"retries": 5, "retry_delay": timedelta(seconds=1)}):
    llm_transform_group(
        "labels",
        max_workers=4,
        deferrable=True,
        source_table="tickets",
        source_conn_id="warehouse",
        key="ticket_id",
        prompt="{{ body }}",
        output_type=["billing", "bug", "other"],
        model_id="openai:gpt-5-mini",
        target="labels",
        max_cost_usd=1_000_000,
        pace=Pace(
            poll_interval=2, max_active_batches=100, rows_per_batch=int(os.environ["SCALE_ROWS_PER_BATCH"])
        ),
    )
