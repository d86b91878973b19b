"""Batch inference as a transformation stage: warehouse rows in, one typed answer per row out, each paid for once.

Airflow imports this package while it reads its own configuration, so a name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_batch_llm.core.evaluation import Expected
    from airflow_batch_llm.core.output_type import Embedding
    from airflow_batch_llm.core.report import Report
    from airflow_batch_llm.core.settings import (
        Canary,
        Escalation,
        Guards,
        Only,
        Pace,
        Request,
        Route,
        Shape,
        Source,
        Stage,
    )
    from airflow_batch_llm.providers import connect
    from airflow_batch_llm.providers.base import Access
    from airflow_batch_llm.stage.drive import Progress, complete
    from airflow_batch_llm.stage.land.finishing import Finished
    from airflow_batch_llm.stage.parts import Parts
    from airflow_batch_llm.stage.run import Run
    from airflow_batch_llm.store import Workspace

__version__ = "0.1.0"

__all__ = [
    "Access",
    "Canary",
    "Embedding",
    "Escalation",
    "Expected",
    "Finished",
    "Guards",
    "Only",
    "Pace",
    "Parts",
    "Progress",
    "Report",
    "Request",
    "Route",
    "Run",
    "Shape",
    "Source",
    "Stage",
    "Workspace",
    "__version__",
    "complete",
    "connect",
]

_HOMES = {
    "Access": "providers.base",
    "Canary": "core.settings",
    "Embedding": "core.output_type",
    "Escalation": "core.settings",
    "Expected": "core.evaluation",
    "Finished": "stage.land.finishing",
    "Guards": "core.settings",
    "Only": "core.settings",
    "Pace": "core.settings",
    "Parts": "stage.parts",
    "Progress": "stage.drive",
    "Report": "core.report",
    "Request": "core.settings",
    "Route": "core.settings",
    "Run": "stage.run",
    "Shape": "core.settings",
    "Source": "core.settings",
    "Stage": "core.settings",
    "Workspace": "store",
    "complete": "stage.drive",
    "connect": "providers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
