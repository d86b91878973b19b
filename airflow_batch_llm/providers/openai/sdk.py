"""OpenAI's SDK: its clients, imported when one is opened, and what its errors mean."""

from typing import Any

from airflow_batch_llm.errors import InputError, MissingExtra, ProviderError, Refused, raise_alone
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.clients import checked, unknown_option
from airflow_batch_llm.providers.failures import (
    CallFailure,
    VendorCodes,
    detail,
    failure_of,
    judge,
    judge_answer,
)

VENDOR = VendorCodes(
    name="OpenAI",
    no_money=frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}),
    full=frozenset({"token_limit_exceeded"}),
)

#: The package's own options; the others go to the SDK's client.
OWN_OPTIONS = frozenset({"input_expires_after", "output_expires_after"})


def sdk() -> Any:
    """The module `openai`."""
    try:
        import openai
    except ModuleNotFoundError as error:
        raise MissingExtra("The provider 'openai'", "openai", error) from error
    return openai


def open_client(access: Access) -> Any:
    """A new synchronous client."""
    opened = access.client() if access.client is not None else _opened(sdk().OpenAI, access)
    return checked(opened, access)


def open_async_client(access: Access) -> Any:
    """A new asynchronous client."""
    make = access.async_client
    opened = make() if make is not None else _opened(sdk().AsyncOpenAI, access)
    return checked(opened, access)


def judged(error: Exception, *, creating: bool = False) -> Exception:
    """An SDK's error in the package's tree; another's as it is."""
    if isinstance(error.__cause__, ProviderError):  # raised by us while the SDK was sending
        return error.__cause__
    if failure := failure_of(error, sdk()):
        return judge(failure, VENDOR, creating=creating)
    if isinstance(error, sdk().OpenAIError):
        # Raised by the SDK itself before it sent anything: no credentials, say, or a platform without the call.
        return Refused(f"OpenAI's SDK refuses the call: {detail(error)}")
    return error


def refused_now(error: Exception) -> CallFailure:
    """Return the vendor's refusal of this request alone. Raises every other error of a call in real time."""
    failure = failure_of(error, sdk())
    if failure is None:
        raise_alone(judged(error))
    judgement = judge_answer(failure, VENDOR)
    if judgement is not None:
        raise_alone(judgement)
    return failure


def judged_creation(error: Exception) -> Exception:
    """The same for a creation."""
    return judged(error, creating=True)


def _opened(client_class: Any, access: Access) -> Any:
    options = {name: value for name, value in access.options.items() if name not in OWN_OPTIONS}
    try:
        return client_class(**{"api_key": access.api_key, "base_url": access.base_url, **options})
    except sdk().OpenAIError:
        raise InputError(
            "There is no key for OpenAI. Put it into the connection's password; where a server takes any, write any."
        ) from None
    except TypeError as error:
        raise unknown_option("OpenAI", error) from None
