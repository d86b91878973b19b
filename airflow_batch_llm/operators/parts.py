"""The parts that a run works with, by its handle. Source and target are one object where they are one database."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_batch_llm.hooks.handle import RunHandle
from airflow_batch_llm.hooks.llm import llm_provider
from airflow_batch_llm.hooks.workspace import open_workspace

if TYPE_CHECKING:
    from airflow_batch_llm.stage.parts import Parts


def open_parts(handle: RunHandle, spool: Path, log: Any) -> "Parts":
    """The source is the target's database. Connections are looked up here, and opened when they are used."""
    from airflow_batch_llm.hooks.warehouse import warehouse
    from airflow_batch_llm.stage.parts import Parts

    target = warehouse(
        handle.target_conn_id, handle.target_hook_params, argument="target_conn_id (default: source_conn_id)"
    )
    return Parts(
        provider=llm_provider(handle.llm_conn_id, handle.model_id, handle.llm_hook_params),
        source=target,
        target=target,
        workspace=open_workspace(handle.workspace),
        spool=spool,
        say=lambda message: log.info("%s", message),
        alert=lambda message: log.warning("%s", message),
    )
