"""The vendor's page about a task's batch. It can be opened while the task is deferred."""

from typing import Any

from airflow.sdk import BaseOperatorLink

from airflow_batch_llm.links.page import RunPageLink


class BatchConsoleLink(BaseOperatorLink):
    """To the batch that was sent last, or to the run's own page if the vendor has no page for it.

    Airflow asks for it on the worker, whenever the task has done a piece of work.
    """

    name = "Batch at the provider"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        return getattr(operator, "console_url", None) or RunPageLink().get_link(operator, ti_key=ti_key)
