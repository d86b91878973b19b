"""Links from a task in Airflow's UI: to the page "LLM batches", and to the vendor's page about the batch sent last."""

from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from airflow.providers.common.compat.sdk import conf
from airflow.sdk import BaseOperatorLink

#: The page's path below Airflow's own.
PREFIX = "/llm-batches"


def page_path() -> str:
    """Return the path of the page on the web server: Airflow may be served below a path of its own."""
    base_url = str(conf.get("api", "base_url", fallback="") or "")
    return urlsplit(base_url).path.rstrip("/") + PREFIX


class RunPageLink(BaseOperatorLink):
    """Leads to the task's run, for any provider. Airflow asks on the worker, each time the task has done a piece of work."""

    name = "LLM batches"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002 - Airflow's signature
        from airflow_batch_llm.stage.records.folder import safe_name

        run: str | None = getattr(operator, "page_run", None)
        names = [name for name in (run or "").split("/") if not name.startswith("deployment=")]
        if run is None or len(names) < 3:
            return f"{page_path()}/"
        planner = operator.dag_id if safe_name(operator.dag_id) == names[0] else names[0]
        return f"{page_path()}/dags/{quote(planner, safe='')}/run?{urlencode({'path': run})}"


class BatchConsoleLink(BaseOperatorLink):
    """To the batch that was sent last, or to the run's own page if the vendor has no page for it.

    Airflow asks for it on the worker, whenever the task has done a piece of work.
    """

    name = "Batch at the provider"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        return getattr(operator, "console_url", None) or RunPageLink().get_link(operator, ti_key=ti_key)
