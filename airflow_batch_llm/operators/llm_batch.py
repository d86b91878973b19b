"""The stage in three tasks: submit, which names the run, and collect, which lands it, perhaps in another Dag."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from airflow.sdk import Context

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.hooks.arguments import deployment, one_of
from airflow_batch_llm.hooks.handle import RunHandle, TaskKey, open_parts, place_of
from airflow_batch_llm.hooks.monitoring import translated_errors
from airflow_batch_llm.hooks.object_storage import open_workspace
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator
from airflow_batch_llm.operators.reporting import add_to_assets, is_lineage_wanted, unfailing
from airflow_batch_llm.operators.run import Ended, RunOperator, run_name
from airflow_batch_llm.store import Workspace

if TYPE_CHECKING:
    from airflow_batch_llm.stage.records.folder import RunFolder
    from airflow_batch_llm.stage.records.plan import Plan
    from airflow_batch_llm.stage.run import Run


class PlannedRunOperator(RunOperator):
    """Works on a run by its frozen plan, without the prompt and the source."""

    def open_run(self, context: Context, handle: RunHandle, spool: Path) -> "Run":
        """Open the run that the handle names."""
        from airflow_batch_llm.stage.run import Run

        return Run(
            parts=open_parts(context, handle, spool, self.log),
            name=handle.run,
            max_tries=handle.max_tries,
            clears=clears(context["ti"], self.retries),
            pace=handle.pace_settings(),
        )


def clears(task_instance: Any, retries: int | None) -> int:
    """Return a number that a clear of this task raises and a retry does not.

    A raised number gives the planned run a new deadline.
    """
    raised: int = task_instance.max_tries - (retries or 0)
    return max(0, raised)


class SubmitLLMBatchOperator(LLMTransformOperator):
    """Send the batches and return the run's handle, which a sensor waits for and a collector lands.

    It takes the arguments of `LLMTransformOperator` and never waits for a batch. Assets among its outlets get the
    handle as their event's extra, so that a Dag that starts on them can collect.
    """

    def _check(self) -> None:
        super()._check()
        if self.plan_only:
            raise InputError("plan_only is for LLMTransformOperator: a plan alone has no batches to collect.")

    def waiter(self, context: Context) -> None:
        """Return None, because the task that collects may be in another Dag."""

    def execute(self, context: Context) -> dict[str, Any]:
        """Move the run as far as it goes without waiting for a batch."""
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


_NO_HANDLE = "was not planned by an operator, so it names no connections. Finish it where it began, such as on the command line."


class CollectLLMBatchOperator(PlannedRunOperator):
    """Bring runs to their end: wait for open batches, send the remaining shards, and merge.

    :param handle: the return value of `SubmitLLMBatchOperator`
    :param run_folder: the run's folder below the workspace: ``<dag>/<task>/<run>``
    :param pending_for: a target's name: all runs on it that have not ended, oldest first
    """

    template_fields: Sequence[str] = ("handle", "run_folder", "pending_for", "workspace")

    def __init__(
        self,
        *,
        handle: Mapping[str, Any] | None = None,
        run_folder: str | None = None,
        pending_for: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        one_of(handle=handle, run_folder=run_folder, pending_for=pending_for)
        self.handle = handle
        self.run_folder = run_folder
        self.pending_for = pending_for

    def handles(self, context: Context) -> Sequence[RunHandle]:
        """Return the runs that existed at the first look, also those that have ended since."""
        if self.handle is not None:
            return [RunHandle.from_json(self.handle)]
        workspace = open_workspace(self.workspace)
        asked = (self.run_folder, self.pending_for)
        record = f"{run_name(context, workspace, asked)}/collected/{context['ti'].max_tries}.json"
        workspace.create(record, orjson.dumps(self._found(workspace)))
        data = workspace.read(record)
        assert data is not None, "it was created here, or before"
        handles = []
        for run, max_tries in orjson.loads(data):
            handle = RunHandle.of_run(workspace, run, max_tries)
            if handle is not None:
                handles.append(replace(handle, workspace=self.workspace))
            elif self.run_folder is not None:
                raise InputError(f"{workspace.uri}/{run} {_NO_HANDLE}")
            else:
                self.log.info("Left alone: %s/%s %s", workspace.uri, run, _NO_HANDLE)
        return handles

    def _found(self, workspace: Workspace) -> list[tuple[str, int]]:
        """Return the names of the runs, each with the number by which its folder knows it."""
        from airflow_batch_llm.stage.records.folder import RunFolder
        from airflow_batch_llm.stage.records.plan import Plan
        from airflow_batch_llm.stage.records.registers import Registers

        if self.run_folder is not None:
            folder = RunFolder(workspace=workspace, run=self.run_folder)
            while replace(folder, generation=folder.generation + 1).read_plan() is not None:
                folder = replace(folder, generation=folder.generation + 1)
            folders = [folder]
        else:
            assert self.pending_for is not None, "one of the three is checked to be there"
            folders = Registers(workspace=workspace).all_open_runs()
        plans = [(folder, folder.read_plan()) for folder in folders]
        known = [(folder, Plan.from_json(data)) for folder, data in plans if data is not None]
        if self.pending_for is not None:
            known = [pair for pair in known if self._is_pending(workspace, *pair)]
        if self.run_folder is not None and not known:
            raise InputError(f"No run was planned in {workspace.uri}/{self.run_folder}. Look at the name.")
        known.sort(key=lambda pair: pair[1].planned_at)
        return [(folder.run, plan.max_tries) for folder, plan in known]

    def _is_pending(self, workspace: Workspace, folder: "RunFolder", plan: "Plan") -> bool:
        """Return whether a run is on the target, in the database that the run's connection leads to here."""
        if (plan.target.table, plan.deployment) != (self.pending_for, deployment()):
            return False
        handle = RunHandle.of_run(workspace, folder.run, plan.max_tries)
        if handle is None or plan.place is None or place_of(handle) == plan.place:
            return True
        self.log.info("Left alone: %s/%s is for %s.", workspace.uri, folder.run, plan.place)
        return False

    def returned(self, context: Context, ended: Sequence[Ended]) -> Any:  # noqa: ARG002 - the runs are enough
        """Return the report of the run, or with `pending_for` the reports of all."""
        for one in ended:
            one.finished.raise_for_verdict()
        reports = [one.report for one in ended]
        return reports if self.pending_for is not None else reports[0]
