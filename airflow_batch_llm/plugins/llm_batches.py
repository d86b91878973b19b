"""The plugin that Airflow loads in every process: a name in the navigation, and a page that only the API server imports."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from airflow.providers.common.compat.sdk import AirflowPlugin

from airflow_batch_llm.links.page import PREFIX, page_path

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
        }
    ]
