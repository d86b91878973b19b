"""The plugin that Airflow loads in every process: a name in the navigation, a tab on tasks, and a page.

Only the API server imports the page.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import AirflowPlugin, conf

from airflow_batch_llm.links import PREFIX, page_path

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Scope]]
_Send = Callable[[_Scope], Awaitable[None]]


class LazyPage:
    """The page's application, imported at its first request: workers and Dag processors load plugins, too."""

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if self._app is None:
            self._app = await asyncio.to_thread(_build)
        await self._app(scope, receive, send)


def _build() -> Any:
    from airflow_batch_llm.plugins.page.app import build

    return build()


#: The operators whose tasks have the tab, by the names that Airflow shows.
TAB_OPERATORS = (
    "@task.llm_transform",
    "CollectLLMBatchOperator",
    "CollectPortionOperator",
    "DriveRunOperator",
    "FinishRunOperator",
    "LLMBatchSensor",
    "LLMEvaluateOperator",
    "LLMTransformOperator",
    "OpenSourceOperator",
    "PlanRunOperator",
    "SubmitLLMBatchOperator",
    "SubmitPortionOperator",
)


def task_tab(airflow: str) -> list[dict[str, Any]]:
    """Return the tab on task instances. Airflow before 3.4 would show it on those of all operators, so it is not there.

    `[batch_llm] task_tab` adds it there all the same.
    """
    release = tuple(int(part) for part in re.findall(r"\d+", airflow)[:2])
    if release < (3, 4) and not conf.getboolean("batch_llm", "task_tab", fallback=False):
        return []
    query = "run_id={RUN_ID}&task_id={TASK_ID}&map_index={MAP_INDEX}"
    return [
        {
            "name": "LLM batches",
            "href": f"{page_path()}/dags/{{DAG_ID}}/task?{query}",
            "destination": "task_instance",
            "url_route": "llm-batches-task",
            "applies_to": {"operator_name": list(TAB_OPERATORS)},
        }
    ]


class LLMBatchesPlugin(AirflowPlugin):
    """The page "LLM batches"."""

    name = "llm_batches"
    fastapi_apps = [{"app": LazyPage(), "url_prefix": PREFIX, "name": "LLM batches"}]  # noqa: RUF012 - as Airflow's base has it
    external_views = [  # noqa: RUF012
        {
            "name": "LLM batches",
            "href": f"{page_path()}/",
            "destination": "nav",
            "category": "browse",
            "url_route": "llm-batches",
        },
        *task_tab(airflow_version),
    ]
