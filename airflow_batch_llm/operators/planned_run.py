"""A task that goes on with a run which another task has planned, perhaps in another Dag."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context

from airflow_batch_llm.hooks.handle import RunHandle
from airflow_batch_llm.operators.parts import open_parts
from airflow_batch_llm.operators.run import RunOperator

if TYPE_CHECKING:
    from airflow_batch_llm.stage.run import Run


class PlannedRunOperator(RunOperator):
    """Needs the run's frozen plan alone: neither the prompt nor the source."""

    def open_run(self, context: Context, handle: RunHandle, spool: Path) -> "Run":
        """The run by its handle."""
        from airflow_batch_llm.stage.run import Run

        return Run(
            parts=open_parts(handle, spool, self.log),
            name=handle.run,
            max_tries=handle.max_tries,
            clears=clears(context["ti"], self.retries),
            pace=handle.pace_settings(),
        )


def clears(task_instance: Any, retries: int | None) -> int:
    """A number that a clear of this very task raises and a retry does not: the planned run gets a new deadline by it."""
    raised: int = task_instance.max_tries - (retries or 0)
    return max(0, raised)
