"""The vendor's page about a task's batch. It can be opened while the task is deferred."""

from typing import Any

from airflow.sdk import BaseOperatorLink


class BatchConsoleLink(BaseOperatorLink):
    """To the batch that was sent last. Airflow asks for it on the worker, whenever the task has done a piece of work."""

    name = "Batch at the provider"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002 - Airflow's signature
        return getattr(operator, "console_url", None) or ""
