"""What a run is called: the Dag, the task, the Dag run, and the item of a mapped task. Tries are not part of it."""

import hashlib
from typing import Any

from airflow.sdk import Context

from airflow_batch_llm.store import Workspace


def run_name(context: Context, workspace: Workspace, asked: object) -> str:
    """The run folder's path. `asked` is all that tells a mapped task's item from another."""
    from airflow_batch_llm.stage.folder import run_path

    task_instance: Any = context["ti"]
    names = (task_instance.dag_id, task_instance.task_id, task_instance.run_id)
    map_index = task_instance.map_index
    if map_index is None or map_index < 0:
        return run_path(*names)
    item = _item(workspace, run_path(*names), f"{map_index}-{task_instance.max_tries}", asked)
    return run_path(*names, item)


def _item(workspace: Workspace, run: str, attempt: str, asked: object) -> str:
    """The item that a mapped task's index means.

    Between the tries of one task it is the one that the first try found, whatever templates render to now; after a
    clear it is found by what is asked, since the list may have another order by then.
    """
    record = f"{run}/items/{attempt}.json"
    item = hashlib.blake2b(repr(asked).encode(), digest_size=8).hexdigest()
    workspace.create(record, item.encode())
    recorded = workspace.read(record)
    assert recorded is not None, "it was created here, or before"
    return recorded.decode()
