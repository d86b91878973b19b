"""The outcomes that Vertex has words for."""

from collections.abc import Mapping
from types import MappingProxyType

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.testing.provider_answers import ReadsAnswers

#: Vertex does not mention rows that it had no time for.
OUTCOMES: Mapping[str, Outcome | None] = MappingProxyType(
    {**ReadsAnswers.outcomes, "expired": None, "canceled": None}
)
