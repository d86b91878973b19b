"""Anthropic's SDK: its clients, imported when one is opened, the streamed creation of a batch, and what its errors mean."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from airflow_batch_llm.errors import InputError, Refused
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.clients import checked, unknown_option
from airflow_batch_llm.providers.creation import Creation
from airflow_batch_llm.providers.failures import GeneratedSdk, VendorCodes
from airflow_batch_llm.providers.tls import with_shared_tls

SDK = GeneratedSdk(
    name="anthropic",
    error="AnthropicError",
    codes=VendorCodes(
        name="Anthropic",
        no_money=frozenset({"enforced_spend_limit_reached", "contract_spend_limit_reached"}),
        # Anthropic answers 400 for these, with the code of any bad request.
        no_money_words=re.compile(r"(?i)credit balance is too low|specified API usage limits"),
        final=frozenset(
            {
                "cmek_key_disabled",
                "cmek_key_network_blocked",
                "cmek_key_unreachable",
                "cmek_feature_unsupported",
            }
        ),
    ),
)


def open_client(access: Access) -> Any:
    """A new synchronous client."""
    if access.client is not None:
        return checked(_with_batches(access.client()), access)
    return checked(_with_key(_opened(SDK.module.Anthropic, access, is_async=False)), access)


def open_async_client(access: Access) -> Any:
    """A new asynchronous client."""
    if access.async_client is not None:
        return checked(_with_batches(access.async_client()), access)
    return checked(_with_key(_opened(SDK.module.AsyncAnthropic, access, is_async=True)), access)


def _opened(client_class: Any, access: Access, *, is_async: bool) -> Any:
    options = with_shared_tls(SDK.module, access.options, is_async=is_async)
    try:
        return client_class(**{"api_key": access.api_key, "base_url": access.base_url, **options})
    except TypeError as error:
        raise unknown_option("Anthropic", error) from None


def _with_batches(client: Any) -> Any:
    """Not every platform that sells Claude has Message Batches, and the SDK's clients say so in different ways."""
    batches = None
    with contextlib.suppress(Exception):
        batches = client.messages.batches
    if batches is None:
        raise Refused(
            f"{type(client).__name__} has no Message Batches. Use Anthropic's own API or the Claude Platform on AWS; "
            "for Claude on Google Cloud use the provider 'vertex'."
        )
    return client


def _with_key(client: Any) -> Any:
    if client.api_key is None and client.auth_token is None and getattr(client, "credentials", None) is None:
        raise InputError(
            "There is no key for Anthropic. Put it into the connection's password, or into ANTHROPIC_API_KEY."
        )
    return client


_BLOCK = 256 * 1024
_PREFIX, _SUFFIX = b'{"requests":[', b"]}"


def creation(path: str, shard: Path, read: Callable[[Any], str]) -> Creation:
    """The creation of a batch from the lines in this file; `read` takes the batch's id from the answer."""
    return Creation(path=path, pieces=_pieces(shard), last=_SUFFIX, size=_size(shard), read=read)


def _pieces(path: Path) -> Iterator[bytes]:
    """All but the end: the lines with commas in place of their line ends."""
    yield _PREFIX
    separator = b""
    with path.open("rb") as lines:
        while block := lines.read(_BLOCK):
            body = block.rstrip(b"\n")
            yield separator + body.replace(b"\n", b",")
            separator = b"," if len(body) < len(block) else b""


def _size(path: Path) -> int:
    with path.open("rb") as lines:
        length = lines.seek(0, 2)
        lines.seek(max(0, length - 1))
        ends = lines.read() == b"\n"
    return len(_PREFIX) + length - ends + len(_SUFFIX)
