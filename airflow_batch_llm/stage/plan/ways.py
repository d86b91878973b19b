"""Refuse a way to ask that the provider does not have, before anything is sent."""

from airflow_batch_llm.core.model import Call, Way
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.providers.base import AnswersNow, Provider


def check_way(way: Way, provider: Provider, call: Call) -> None:
    """Raise `InputError` if the provider cannot be asked this way."""
    if not way.in_real_time:
        return
    if not isinstance(provider, AnswersNow):
        raise InputError(
            f"The provider {provider.name} cannot be asked in real time. Leave out way={way.value!r}."
        )
    if way is Way.FLEX and (problem := provider.flex_problem(call)):
        raise InputError(f"way='flex': {problem}")
