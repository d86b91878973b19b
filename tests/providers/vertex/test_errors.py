"""Google's errors as ours: real exceptions of the real libraries, sorted once."""

import asyncio
import sys
from collections.abc import Callable

import aiohttp
import pytest
import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.genai import errors as genai

from airflow_batch_llm.errors import Later, MissingExtra, ProviderError, Refused, Unavailable, UnknownFate
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.creation import LeaseExpired
from airflow_batch_llm.providers.vertex import VertexProvider
from airflow_batch_llm.providers.vertex.errors import judge, judge_creation


def answer(code: int, **headers: str) -> Exception:
    told = requests.Response()
    told.status_code = code
    told._content = b'{"error": {"message": "why"}}'
    told.headers.update(headers)
    told.request = requests.Request("GET", "http://127.0.0.1/").prepare()
    return api.from_http_response(told)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answer(400), Refused),
        (answer(401), Refused),
        (answer(403), Refused),
        (answer(404), Refused),
        (answer(408), Unavailable),
        (answer(499), Unavailable),
        (answer(429), Unavailable),
        (answer(500), Unavailable),
        (answer(503), Unavailable),
        (answer(504), Unavailable),
        (genai.ClientError(404, {"error": {"message": "why", "status": "NOT_FOUND"}}), Refused),
        (genai.ClientError(429, {"error": {"message": "why"}}), Unavailable),
        (genai.ServerError(503, {"error": {"message": "why"}}), Unavailable),
        (requests.exceptions.ConnectionError("reset"), Unavailable),
        (requests.exceptions.ReadTimeout(), Unavailable),
        (aiohttp.ServerDisconnectedError(), Unavailable),
        (TimeoutError(), Unavailable),
        (auth.RefreshError("no"), Refused),
        (auth.RefreshError("no", retryable=True), Unavailable),
        (auth.TransportError("no"), Unavailable),
        (auth.DefaultCredentialsError("no"), Refused),
    ],
    ids=repr,
)
def test_an_error_of_a_call_that_may_be_repeated(error: Exception, kind: type[ProviderError]) -> None:
    assert type(judge(error)) is kind


@pytest.mark.parametrize(
    ("error", "sent", "kind"),
    [
        (answer(400), True, Refused),
        (answer(403), True, Refused),
        (answer(404), True, Refused),
        (answer(429), True, Later),
        (answer(408), True, UnknownFate),
        (answer(499), True, UnknownFate),
        (answer(500), True, UnknownFate),
        (answer(503), True, UnknownFate),
        (answer(504), True, UnknownFate),
        (requests.exceptions.ConnectionError("reset"), True, UnknownFate),
        (requests.exceptions.ReadTimeout(), True, UnknownFate),
        (requests.exceptions.ConnectionError("refused"), False, Unavailable),
        (LeaseExpired("over."), False, Unavailable),
        (auth.RefreshError("no"), False, Refused),
        (auth.TransportError("no"), False, Unavailable),
    ],
    ids=repr,
)
def test_an_error_of_a_creation(error: Exception, sent: bool, kind: type[ProviderError]) -> None:
    assert type(judge_creation(error, sent=sent)) is kind


def test_the_server_says_how_long_to_wait() -> None:
    told = judge(answer(429, **{"Retry-After": "7"}))
    assert isinstance(told, Unavailable)
    assert told.retry_after == 7.0


@pytest.mark.parametrize("judged", [judge, lambda error: judge_creation(error, sent=True)])
def test_an_error_of_our_own_making_is_not_taken_for_googles(
    judged: Callable[[Exception], Exception],
) -> None:
    mistake = KeyError("x")
    assert judged(mistake) is mistake


@pytest.mark.parametrize(
    ("missing", "call"),
    [
        ("google.cloud.aiplatform_v1", lambda provider: provider.check(["job"])),
        ("google.genai", lambda provider: asyncio.run(provider.acheck(["job"]))),
        ("google.cloud.storage", lambda provider: provider.discard("gs://b/f/requests.jsonl")),
    ],
)
def test_a_client_that_is_not_installed_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, missing: str, call: Callable[[VertexProvider], object]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    options = {"project": "p", "staging": "gs://b/f", "credentials": object()}
    with pytest.raises(MissingExtra, match=r"airflow-batch-llm\[google\]"):
        call(VertexProvider(Access(base_url="http://127.0.0.1:1", options=options)))
