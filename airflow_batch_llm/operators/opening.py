"""Open what a task works with: the parts of its run, from Airflow's connections and configuration."""

from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import conf
from airflow.sdk import Context

from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.hooks.arguments import deployment
from airflow_batch_llm.hooks.handle import RunHandle
from airflow_batch_llm.hooks.llm import default_conn_id, llm_provider, split_model_id
from airflow_batch_llm.hooks.object_storage import open_workspace
from airflow_batch_llm.triggers.llm_batch import TaskKey

if TYPE_CHECKING:
    from airflow_batch_llm.core.budget import SharedBudget
    from airflow_batch_llm.core.journal import Doer
    from airflow_batch_llm.stage.parts import Parts, UsageTable
    from airflow_batch_llm.warehouses.base import Warehouse
    from airflow_batch_llm.warehouses.registration import Place


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
    """Return the ledger of a run: in the configured database, or beside the target. None: none is kept."""
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
    """Return who pays for a task: its Dag's team in Airflow, or its owner. Empty: neither is set."""
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
    """The source is the target's database. Connections are looked up here, and opened when they are used."""
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
