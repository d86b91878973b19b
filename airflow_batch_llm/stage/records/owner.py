"""Tell a run of one's own from one that another deployment, or another database, has under the same name.

Dag, task and run are named alike in every deployment of a Dag. A run of somebody else's is never gone on with, and its
report is never returned: its answers are in another table.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from airflow_batch_llm.errors import BatchLLMError, TargetError
from airflow_batch_llm.stage.records.folder import RunFolder, generations
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.warehouses.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Where a run of today would put its answers, and for whom."""

    deployment: str
    """Name of the deployment. Empty if there is only one."""
    table: str
    """Name of the target, as the stage has it."""
    place: Place

    def refuse_other(self, folder: RunFolder, plan: Plan) -> None:
        """Raise `TargetError` if the plan was made for another deployment or another target.

        A plan of an earlier release does not say its database. It counts as one's own if the table is named alike.
        """
        if plan.place is None:
            is_own = plan.target.table == self.table
        else:
            is_own = (plan.deployment, plan.place) == (self.deployment, self.place)
        if not is_own:
            raise other_target(folder, plan, self.place, self.deployment)

    def refuse_other_database(self, folder: RunFolder, plan: Plan) -> None:
        """Raise `TargetError` if the plan is of another deployment or database. Its table may be another one."""
        if plan.place is not None:
            same_table = replace(self, place=replace(self.place, table=plan.place.table))
            same_table.refuse_other(folder, plan)


def own_name(workspace: Workspace, name: str, place: Callable[[], Place]) -> str:
    """Return the run that is one's own: this one, or one below it if a run for another database was finished here.

    If that other run is unfinished, nobody can tell whether the connection now has another name for the same database,
    so that its rows would be paid twice: `TargetError`.
    """
    folder = RunFolder(workspace=workspace, run=name)
    data = folder.read_plan()
    if data is None or (plan := Plan.from_json(data)).place is None:
        return name
    try:
        own = place()
    except BatchLLMError:
        return name  # the run asks the database again, so that the failure is one of the run
    if plan.place.database == own.database:
        return name
    beside = f"{name}/database={hashlib.blake2b(own.database.encode(), digest_size=8).hexdigest()}"
    is_begun = RunFolder(workspace=workspace, run=beside).read_plan() is not None
    if is_begun or all(one.read_report() is not None for one in generations(workspace, name)):
        return beside
    raise other_target(folder, plan, own)


def other_target(folder: RunFolder, plan: Plan, own: Place, deployment: str | None = None) -> TargetError:
    """Return the error that names both targets. `deployment`: None if it does not matter."""
    planned = plan.target.table if plan.place is None else str(plan.place)
    asked = str(own)
    if deployment is not None and plan.deployment != deployment:
        planned, asked = f"{planned} {_of(plan.deployment)}", f"{asked} {_of(deployment)}"
    return TargetError(
        f"The run {folder.path} was planned for {planned}, and this one is for {asked}. If two deployments share the"
        " workspace, set [batch_llm] deployment in each (on the command line --deployment), to a name of its own. If the"
        " target or its connection has changed, change it back until the run is finished, or begin another run."
        " Nothing was sent."
    )


def _of(deployment: str) -> str:
    return f"of the deployment {deployment!r}" if deployment else "of no named deployment"
