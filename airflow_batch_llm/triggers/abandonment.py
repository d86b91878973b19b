"""Whether somebody has given a task up, so that nobody waits for its batches any more.

Airflow calls `on_kill` in more cases than that: a pod is evicted, another triggerer takes over, the task was cleared
and its next attempt already waits for the same batches. So the state is looked up, and only a state from which the task
does not return counts. Unknown, none, running, up for retry or a failed look-up never do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

_GIVEN_UP = frozenset({"failed", "success", "skipped", "removed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskKey:
    """One task instance, over all of its attempts."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1

    @classmethod
    def of(cls, task_instance: Any) -> "TaskKey":
        """From whatever Airflow hands out as a task instance."""
        map_index = task_instance.map_index
        return cls(
            dag_id=task_instance.dag_id,
            run_id=task_instance.run_id,
            task_id=task_instance.task_id,
            map_index=-1 if map_index is None else map_index,
        )


def is_given_up(key: TaskKey, heirs: Sequence[str] = ()) -> bool:
    """Ask Airflow whether neither the task nor one of its heirs, of the same Dag run, goes on.

    It blocks, and raises where Airflow does not answer.
    """
    return all(_is_over(one) for one in (key, *(replace(key, task_id=heir, map_index=-1) for heir in heirs)))


def _is_over(key: TaskKey) -> bool:
    states = RuntimeTaskInstance.get_task_states(
        dag_id=key.dag_id, task_ids=[key.task_id], run_ids=[key.run_id], map_index=key.map_index
    )
    found = list(states.get(key.run_id, {}).values())
    # A mapped task's state stands under `<task_id>_<map_index>`, so the name does not help. None at all: it is gone.
    return not found or (len(found) == 1 and found[0] in _GIVEN_UP)
