"""Name a run for other tasks, and open all that a task needs to work on it.

A handle is small enough for XCom. It names the run's folder, its provider and its target, with their connections. The
run folder holds it too, so that another Dag can collect the run by its folder or by its target. Connections are looked
up when a part is opened here, and are opened when they are first used.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any

import orjson
from airflow.providers.common.compat.sdk import conf
from airflow.sdk import Context

from airflow_batch_llm.core.settings import Pace
from airflow_batch_llm.errors import BatchLLMError, InputError
from airflow_batch_llm.hooks.arguments import deployment
from airflow_batch_llm.hooks.llm import default_conn_id, llm_provider, split_model_id
from airflow_batch_llm.hooks.object_storage import open_workspace
from airflow_batch_llm.store import Workspace

if TYPE_CHECKING:
    from airflow_batch_llm.core.budget import SharedBudget
    from airflow_batch_llm.core.journal import Doer
    from airflow_batch_llm.stage.parts import Parts, UsageTable
    from airflow_batch_llm.warehouses.base import Warehouse
    from airflow_batch_llm.warehouses.registration import Place


#: Fields of `Pace` by the names that earlier handles hold.
_EARLIER_NAMES = {"timeout_seconds": "timeout", "min_round_seconds": "min_round_time"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHandle:
    """A run's identifiers, without any key, row or prompt."""

    workspace: str | None  # None: the configured one
    run: str
    max_tries: int
    model_id: str
    target: str
    target_conn_id: str
    llm_conn_id: str | None = None
    llm_hook_params: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """`model_id` and `llm_conn_id` of the routes that have connections of their own, by name. Default: none."""
    target_hook_params: Mapping[str, Any] = field(default_factory=dict)
    pace: Mapping[str, Any] = field(default_factory=dict)
    usage_table: str | None = None
    """The ledger that the run is written to. None: the configured one, if there is one."""
    batch_ids: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()  # URIs of what was read, for lineage; none: not known
    waiter: Mapping[str, Any] | None = None
    """The task instance that waits for the run, and its successors. None: not known, or its end cancels nothing."""

    def to_json(self) -> dict[str, Any]:
        """Return the handle for XCom."""
        return {**asdict(self), "batch_ids": list(self.batch_ids), "inputs": list(self.inputs)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "RunHandle":
        """Read a handle from XCom. Fields that a later release has added are left out."""
        known = {item.name for item in fields(cls)}
        try:
            return cls(
                **{
                    **{name: value for name, value in stored.items() if name in known},
                    "batch_ids": tuple(stored.get("batch_ids", ())),
                    "inputs": tuple(stored.get("inputs", ())),
                }
            )
        except (AttributeError, TypeError):
            raise InputError(
                "This is not a run's handle. Give what SubmitLLMBatchOperator returned: handle=submit.output."
            ) from None

    def pace_settings(self) -> Pace:
        """Return the pace that the run was started with, also where an earlier release has written it."""
        known = {item.name for item in fields(Pace)}
        given = {_EARLIER_NAMES.get(name, name): value for name, value in self.pace.items()}
        return Pace(**{name: value for name, value in given.items() if name in known})

    def store(self, workspace: Workspace) -> None:
        """Leave the handle in the run folder, once for each clear."""
        data = replace(self, workspace=None, batch_ids=()).to_json()
        workspace.create(_path(self.run, self.max_tries), orjson.dumps(data))

    @classmethod
    def of_run(cls, workspace: Workspace, run: str, max_tries: int) -> "RunHandle | None":
        """Return the handle in a run folder, or None if no operator has planned the run."""
        data = workspace.read(_path(run, max_tries))
        return None if data is None else cls.from_json(orjson.loads(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Departures:
    """Notes in a run folder that its task failed by itself, and that a later try came back.

    The batches of a task that failed by itself stay, so that a clear can land them. Those of a task that a user has
    marked as failed are cancelled. The notes distinguish the two.
    """

    workspace: Workspace
    run: str

    def is_left(self) -> bool:
        """Return whether the last try failed by itself."""
        notes = [orjson.loads(data) for _, data in self.workspace.records(self._folder)]
        return bool(notes) and bool(notes[-1]["left"])

    def leave(self) -> None:
        """Note that this try fails by itself."""
        self._note(left=True)

    def come_back(self) -> None:
        """Note that a try has begun, if the one before had failed by itself."""
        if self.is_left():
            self._note(left=False)

    def _note(self, *, left: bool) -> None:
        # Two tries that run at once may write two notes at once. Either of them is true.
        self.workspace.append(self._folder, orjson.dumps({"left": left}))

    @property
    def _folder(self) -> str:
        return f"{self.run}/departures"


def _path(run: str, max_tries: int) -> str:
    return f"{run}/handles/{max_tries}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskKey:
    """One task instance, over all of its attempts."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1

    @property
    def tags(self) -> dict[str, Any]:
        """Return the tags of the task in metrics, the same in every Dag run."""
        return {"dag_id": self.dag_id, "task_id": self.task_id, "map_index": self.map_index}

    @classmethod
    def of(cls, task_instance: Any) -> "TaskKey":
        """Return the key of any object that Airflow gives as a task instance."""
        map_index = task_instance.map_index
        return cls(
            dag_id=task_instance.dag_id,
            run_id=task_instance.run_id,
            task_id=task_instance.task_id,
            map_index=-1 if map_index is None else map_index,
        )


def open_target(handle: RunHandle) -> "Warehouse":
    """Return the target's database. It is opened when it is first used."""
    from airflow_batch_llm.hooks.warehouse import warehouse

    return warehouse(
        handle.target_conn_id, handle.target_hook_params, argument="target_conn_id (default: source_conn_id)"
    )


def place_of(handle: RunHandle) -> "Place":
    """Ask the target's database where the target is."""
    target = open_target(handle)
    try:
        return target.place(handle.target)
    finally:
        with suppress(BatchLLMError):  # the answer is there
            target.close()


def usage_table(handle: RunHandle, target: "Warehouse") -> "UsageTable | None":
    """Return the ledger of a run: in the configured database, or in the target's. Returns None if no ledger is kept."""
    from airflow_batch_llm.hooks.warehouse import warehouse
    from airflow_batch_llm.stage.parts import UsageTable

    table = handle.usage_table or conf.get("batch_llm", "usage_table", fallback="")
    if not table:
        return None
    conn_id = conf.get("batch_llm", "usage_conn_id", fallback="") or handle.target_conn_id

    def opened() -> AbstractContextManager["Warehouse"]:
        if conn_id == handle.target_conn_id:
            return nullcontext(target)
        return closing(warehouse(conn_id, argument="[batch_llm] usage_conn_id"))

    return UsageTable(name=table, book=f"{deployment()}\n{conn_id}\n{table}", opened=opened)


def shared_budgets() -> "dict[str, SharedBudget]":
    """Return the budgets that the configuration has, and its ceiling."""
    from airflow_batch_llm.core.budget import read_budgets

    return read_budgets(
        conf.get("batch_llm", "budgets", fallback="") or "",
        conf.get("batch_llm", "budget_ceiling", fallback="") or "",
    )


def team(task: Any, task_instance: Any) -> str:
    """Return who pays for a task: its Dag's team in Airflow, or its owner. Returns an empty text if neither is set."""
    known = getattr(task_instance, "stats_tags", None) or {}
    unset = conf.get("operators", "default_owner", fallback="airflow")
    return str(known.get("team_name") or (task.owner if task.owner != unset else ""))


def doer(key: TaskKey, handle: RunHandle, try_number: int = 0, team: str = "") -> "Doer":
    """Return who works on a run, for its records."""
    from airflow_batch_llm.core.journal import Doer

    return Doer(
        host=gethostname(),
        team=team,
        dag_id=key.dag_id,
        task_id=key.task_id,
        run_id=key.run_id,
        map_index=key.map_index,
        try_number=try_number,
        conn_id=handle.llm_conn_id or default_conn_id(split_model_id(handle.model_id)[0]),
    )


def open_parts(context: Context, handle: RunHandle, spool: Path, log: Any) -> "Parts":
    """Open a run's parts, with the target's database as the source. Connections are looked up here, and opened when used."""
    from airflow_batch_llm.stage.parts import Parts

    target = open_target(handle)
    return Parts(
        provider=llm_provider(handle.llm_conn_id, handle.model_id, handle.llm_hook_params, handle.others),
        source=target,
        target=target,
        workspace=open_workspace(handle.workspace),
        spool=spool,
        deployment=deployment(),
        usage=usage_table(handle, target),
        budgets=shared_budgets(),
        by=doer(
            TaskKey.of(context["ti"]),
            handle,
            getattr(context["ti"], "try_number", None) or 0,
            team(context["task"], context["ti"]),
        ),
        log=lambda message: log.info("%s", message),
        log_warning=lambda message: log.warning("%s", message),
    )
