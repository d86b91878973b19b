"""OpenAI's SDK: its clients, imported when one is opened, and what its errors mean."""

from typing import Any

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.clients import checked, unknown_option
from airflow_batch_llm.providers.failures import GeneratedSdk, VendorCodes
from airflow_batch_llm.providers.tls import with_shared_tls

SDK = GeneratedSdk(
    name="openai",
    error="OpenAIError",
    codes=VendorCodes(
        name="OpenAI",
        no_money=frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}),
        full=frozenset({"token_limit_exceeded"}),
    ),
)

#: The package's own options; the others go to the SDK's client.
OWN_OPTIONS = frozenset({"input_expires_after", "output_expires_after"})


def open_client(access: Access) -> Any:
    """A new synchronous client."""
    opened = (
        access.client() if access.client is not None else _opened(SDK.module.OpenAI, access, is_async=False)
    )
    return checked(opened, access)


def open_async_client(access: Access) -> Any:
    """A new asynchronous client."""
    make = access.async_client
    opened = make() if make is not None else _opened(SDK.module.AsyncOpenAI, access, is_async=True)
    return checked(opened, access)


def _opened(client_class: Any, access: Access, *, is_async: bool) -> Any:
    given = {name: value for name, value in access.options.items() if name not in OWN_OPTIONS}
    options = with_shared_tls(SDK.module, given, is_async=is_async)
    try:
        return client_class(**{"api_key": access.api_key, "base_url": access.base_url, **options})
    except SDK.module.OpenAIError:
        raise InputError(
            "There is no key for OpenAI. Put it into the connection's password; where a server takes any, write any."
        ) from None
    except TypeError as error:
        raise unknown_option("OpenAI", error) from None
