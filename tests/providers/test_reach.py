"""Keys and rows go to the host that was named, and nowhere else."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from airflow_batch_llm.core.model import Call, Lease, ShardFile
from airflow_batch_llm.errors import InputError, Refused
from airflow_batch_llm.providers import PROVIDERS, connect
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.reach import check_base_url, is_trusted

KEY, ROW = "canary-key-0123456789", "canary-row"


class Stranger:
    """A server that writes down what it is sent. With a target it redirects everything there."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.target: str | None = None
        self.status = 307
        stranger = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None: ...

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                stranger.seen.append(
                    f"{self.command} {self.path} {dict(self.headers)} {body.decode(errors='replace')}"
                )
                self.send_response(stranger.status if stranger.target else 200)
                if stranger.target:
                    self.send_header("Location", stranger.target + self.path)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def url(self, host: str) -> str:
        return f"http://{host}:{self.server.server_port}"


@contextmanager
def running() -> Iterator[Stranger]:
    stranger = Stranger()
    thread = threading.Thread(target=stranger.server.serve_forever)
    thread.start()
    try:
        yield stranger
    finally:
        stranger.server.shutdown()
        thread.join()
        stranger.server.server_close()


@pytest.fixture
def hosts() -> Iterator[tuple[Stranger, Stranger]]:
    """The host that a connection names, and the one that it redirects to."""
    with running() as named, running() as other:
        named.target = other.url("localhost")
        yield named, other


def access(name: str, url: str) -> Access:
    if name == "vertex":
        from google.oauth2.credentials import Credentials

        credentials: Any = Credentials
        options = {"credentials": credentials(KEY), "project": "p", "staging": "gs://b/f"}
        return Access(base_url=url, options=options)
    return Access(api_key=KEY, base_url=url, options={"default_headers": {"x-gateway": KEY}})


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("status", [302, 307, 308])
async def test_a_redirect_to_another_host_gets_no_row_and_no_key(
    hosts: tuple[Stranger, Stranger], tmp_path: Path, name: str, status: int
) -> None:
    named, other = hosts
    named.status = status
    provider = connect(name, access(name, named.url("127.0.0.1")))
    call = Call(model="claude-haiku-4-5" if name == "anthropic" else "gpt-5-mini")
    path = tmp_path / "lines.jsonl"
    path.write_bytes(provider.encode(call).line("r-1-1", json.dumps(ROW).encode()) + b"\n")
    shard = ShardFile(path=path, token="r-1", call=call, requests=1, bytes=path.stat().st_size)
    batch_id = "projects/p/locations/l/batchPredictionJobs/1" if name == "vertex" else "batch_1"

    with pytest.raises(Refused, match="redirects to localhost"):
        provider.submit(shard, "file-1", Lease(expires_at=time.time() + 30))
    with pytest.raises(Refused, match="redirects to localhost"):
        provider.count_tokens(call, [ROW])
    if name == "openai":
        with pytest.raises(Refused, match="redirects to localhost"):
            provider.upload(shard)
    assert other.seen == []

    with suppress(Exception):  # what the stranger answers is nothing
        provider.check([batch_id])
    with suppress(Exception):
        next(iter(provider.results(batch_id)))
    with suppress(Exception):
        await provider.acheck([batch_id])
    provider.close()
    await provider.aclose()
    assert other.seen, "a question without a key may be redirected"
    assert not any(KEY in seen or ROW in seen for seen in other.seen)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://gateway.internal/v1", "unencrypted"),
        ("http://10.0.0.7:8080", "unencrypted"),
        ("http://2130706433", "unencrypted"),
        ("https://169.254.169.254/latest", "keeps credentials"),
        ("https://[fe80::1]/", "keeps credentials"),
        ("https://[::ffff:169.254.169.254]/", "keeps credentials"),
        ("http://metadata.google.internal", "keeps credentials"),
    ],
)
def test_a_base_url_in_clear_or_to_the_clouds_own_credentials_is_refused_unless_allowed(
    url: str, words: str
) -> None:
    with pytest.raises(InputError, match=f"{words}.*allow_insecure_base_url"):
        Access(base_url=url)
    assert Access(base_url=url, allow_insecure=True).base_url == url


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/", "gateway.internal", "https://", "https://h:x/"]
)
def test_a_base_url_that_is_none_is_refused_in_any_case(url: str) -> None:
    with pytest.raises(InputError, match="no URL of the form"):
        check_base_url(url, allow_insecure=True)


def test_a_password_in_a_base_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match="user or a password") as refused:
        check_base_url("https://me:hunter22@gateway.example/v1", allow_insecure=True)
    assert "hunter22" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["https://gateway.example/v1", "http://127.0.0.1:8080", "http://localhost/v1", "http://[::1]:1/"]
)
def test_encrypted_and_local_addresses_need_no_word(url: str) -> None:
    check_base_url(url, allow_insecure=False)


@pytest.mark.parametrize(
    ("url", "trusted"),
    [
        ("https://a/x", True),
        ("https://a:443/x", True),
        ("https://b/x", False),
        ("https://a:8443/x", False),
        ("http://a/x", False),
    ],
)
def test_only_the_same_origin_is_trusted(url: str, trusted: bool) -> None:
    assert is_trusted(url, "https://a/v1") is trusted
    assert is_trusted("https://a/x", "http://a/v1")


@pytest.mark.parametrize(
    ("name", "variable"), [("anthropic", "ANTHROPIC_BASE_URL"), ("openai", "OPENAI_BASE_URL")]
)
async def test_an_sdks_own_variable_is_held_to_the_same_rule(
    monkeypatch: pytest.MonkeyPatch, name: str, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://gateway.internal/v1")
    provider = connect(name, Access(api_key=KEY))
    with pytest.raises(InputError, match="unencrypted"):
        provider.check(["batch_1"])
    with pytest.raises(InputError, match="unencrypted"):
        await provider.acheck(["batch_1"])
