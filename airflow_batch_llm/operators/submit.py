"""The first of the stage in three tasks: plan, send what may be sent, and name the run."""

from dataclasses import replace
from typing import Any

from airflow.sdk import Context

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.hooks.failures import translated_errors
from airflow_batch_llm.operators.lineage import is_lineage_wanted, unfailing
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator
from airflow_batch_llm.operators.outcome import add_to_assets
from airflow_batch_llm.triggers.abandonment import TaskKey


class SubmitLLMBatchOperator(LLMTransformOperator):
    """Send the batches and return the run's handle, which a sensor waits for and a collector lands.

    It takes the arguments of `LLMTransformOperator` and never waits for a batch. Assets among its outlets get the
    handle as their event's extra, so that a Dag that starts on them can collect.
    """

    def _check(self) -> None:
        super()._check()
        if self.plan_only:
            raise InputError(
                "plan_only is for LLMTransformOperator: of a mere plan nothing can be collected."
            )

    def execute(self, context: Context) -> dict[str, Any]:
        """Go as far as can be gone without waiting for a batch."""
        from airflow_batch_llm.stage.run import Pause

        self._task_key = TaskKey.of(context["ti"])
        with translated_errors():
            self._handles = tuple(self.handles(context))
            (handle,) = self._handles
            with self.opened(context, handle) as run:
                state = run.advance()
                if isinstance(state, Pause):
                    self._link_to(run, state.watch.batch_ids)
                if is_lineage_wanted():
                    with unfailing():
                        handle = replace(handle, inputs=self.inputs(handle, run))
            if isinstance(state, Pause):
                self.log.info("%s.", state.waiting)
                handle = replace(handle, batch_ids=state.watch.batch_ids)
        sent = handle.to_json()
        add_to_assets(context, self.outlets, None, {"handle": sent})
        return sent
