"""Choose the way to ask a stage's requests, and refuse one that the provider does not have before anything is sent."""

from airflow_batch_llm.core.model import Call, Way
from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.core.settings import StageWay
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.providers.base import AnswersNow, Provider

#: From this many requests on, a batch is worth its wait.
WORTH_A_BATCH = 100


def check_way(way: StageWay, provider: Provider, call: Call) -> None:
    """Raise `InputError` if the provider cannot be asked this way."""
    if way in (StageWay.BATCH, StageWay.AUTO):
        return
    if not isinstance(provider, AnswersNow):
        raise InputError(
            f"The provider {provider.name} cannot be asked in real time. Leave out way={way.value!r}."
        )
    if way is StageWay.FLEX and (problem := provider.flex_problem(call)):
        raise InputError(f"way='flex': {problem}")


def flex_problem(provider: Provider, call: Call) -> str | None:
    """Say why this call cannot be asked in real time at half the price. None if it can be."""
    if not isinstance(provider, AnswersNow):
        return f"The provider {provider.name} cannot be asked in real time."
    return provider.flex_problem(call)


def choose_way(asked: StageWay, requests: int, problem: str | None) -> tuple[Way, str]:
    """Return the way for this many requests, and why it is chosen: "" if the stage names it.

    `problem` says why the half-price tier cannot be asked.
    """
    if asked is not StageWay.AUTO:
        return Way(asked.value), ""
    found = f"way='auto': {counted(requests, 'request')}"
    if requests >= WORTH_A_BATCH:
        return Way.BATCH, f"{found}, by batch, since there are {WORTH_A_BATCH} or more."
    if problem is not None:
        return Way.BATCH, f"{found}, by batch, since flex is not possible. {problem}"
    return Way.FLEX, f"{found}, by flex, since there are fewer than {WORTH_A_BATCH}."
