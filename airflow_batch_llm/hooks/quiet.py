"""Quiet SDKs in tasks and triggers, unless the configuration asks for their log."""

from airflow.providers.common.compat.sdk import conf


def quiet_sdks() -> None:
    """In a task's own process: let SDKs and drivers log warnings only."""
    if not _are_wanted():
        from airflow_batch_llm.stage.quiet import quiet_process

        quiet_process()


def quiet_sdks_here() -> None:
    """The same in a triggerer, for this trigger alone: the process is not ours."""
    if not _are_wanted():
        from airflow_batch_llm.stage.quiet import quiet_context

        quiet_context()


def _are_wanted() -> bool:
    return bool(conf.getboolean("batch_llm", "sdk_logs", fallback=False))
