"""The task that the tests vary."""

from typing import Any, Literal

from pydantic import BaseModel

from airflow_batch_llm.core.settings import Pace
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator


class Label(BaseModel):
    topic: Literal["bug", "billing"]
    urgent: bool


#: Looks often, for tests.
QUICK = Pace(poll_interval=0.1)


def arguments(**changes: Any) -> dict[str, Any]:
    """Return the arguments that label twelve tickets; `...` leaves an argument out."""
    found: dict[str, Any] = {
        "task_id": "label",
        "source_table": "tickets",
        "source_conn_id": "warehouse",
        "key": "ticket_id",
        "prompt": "{{ subject }}\n\n{{ body }}",
        "output_type": Label,
        "model_id": "anthropic:claude-haiku-4-5",
        "target": "labels",
        "pace": QUICK,
        **changes,
    }
    return {name: value for name, value in found.items() if value is not ...}


def transform(*, partial: bool = False, **changes: Any) -> Any:
    make = LLMTransformOperator.partial if partial else LLMTransformOperator
    return make(**arguments(**changes))
