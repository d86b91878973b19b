"""Cases of Anthropic's own, beyond the contract."""

import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from airflow_batch_llm.core.model import Call
from airflow_batch_llm.errors import InputError, MissingExtra, Refused
from airflow_batch_llm.providers.anthropic import AnthropicProvider
from airflow_batch_llm.providers.anthropic.flows import creation
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.testing.provider_bench import Bench


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(batch_seconds=0.0) as simulator:
        yield simulator


def bench_of(provider: AnthropicProvider, simulator: Simulator, folder: Path) -> Bench:
    return Bench(provider=provider, simulator=simulator, folder=folder, model="claude-haiku-4-5")


def test_sampling_is_refused_for_the_version_that_the_sdk_speaks_unless_it_is_set_to_an_older_one() -> None:
    anthropic = pytest.importorskip("anthropic", minversion="2.0")
    call = Call(model="m", params={"temperature": 0.0})
    with pytest.raises(InputError, match=r"'temperature'.*2026-10-21"):
        AnthropicProvider(Access(api_key="any")).encode(call)
    older = Access(api_key="any", options={"default_headers": {"anthropic-version": "2023-06-01"}})
    assert b'"temperature":0.0' in AnthropicProvider(older).encode(call).pieces[-1]
    made = Access(
        client=lambda: anthropic.Anthropic(api_key="k", default_headers={"anthropic-version": "2023-06-01"})
    )
    assert AnthropicProvider(made).encode(call)


def test_a_client_that_was_made_elsewhere_is_used_and_closed(simulator: Simulator, tmp_path: Path) -> None:
    import anthropic

    made: list[anthropic.Anthropic] = []

    def make() -> anthropic.Anthropic:
        made.append(anthropic.Anthropic(api_key="any", base_url=simulator.url))
        return made[-1]

    provider = AnthropicProvider(Access(client=make))
    bench = bench_of(provider, simulator, tmp_path)
    batch_id = bench.submit(bench.shard(2))
    bench.ended(batch_id)
    assert len(bench.results(batch_id)) == 2
    assert provider.host == "127.0.0.1"
    provider.close()
    assert [client.is_closed() for client in made] == [True] * len(made)


def test_a_platform_without_batches_is_refused_in_clear_words() -> None:
    import anthropic

    foundry = Access(client=lambda: anthropic.AnthropicFoundry(api_key="any", resource="any"))
    with pytest.raises(Refused, match="AnthropicFoundry has no Message Batches"):
        AnthropicProvider(foundry).check(["msgbatch_1"])
    bedrock = Access(client=lambda: anthropic.AnthropicBedrock(aws_region="any"))
    with pytest.raises(Refused, match="Bedrock"):
        AnthropicProvider(bedrock).check(["msgbatch_1"])


def test_a_connection_without_a_key_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="no key"):
        AnthropicProvider(Access()).check(["msgbatch_1"])


def test_an_sdk_that_is_not_installed_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "anthropic", None)
    provider = AnthropicProvider(Access(api_key="any"))
    assert provider.encode(Call(model="m"))
    with pytest.raises(MissingExtra, match=r"airflow-batch-llm\[anthropic\]"):
        provider.check(["msgbatch_1"])


class Vendor(BaseHTTPRequestHandler):
    """An ended batch whose results are said to lie at `results_url`, and what was asked for."""

    results_url: str
    asked: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.asked.append((self.headers["Host"], self.path))
        if self.path.endswith("/results"):
            body = b'{"custom_id":"b1-0001-000000","result":{"type":"expired"}}\n'
        else:
            body = (
                b'{"id":"msgbatch_1","processing_status":"ended","archived_at":null,"results_url":"%b",'
                b'"request_counts":{"processing":0,"succeeded":0,"errored":0,"canceled":0,"expired":1}}'
                % self.results_url.encode()
            )
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


@pytest.mark.parametrize(
    ("told", "followed"),
    [
        ("http://{host}/elsewhere/results", "/elsewhere/results"),
        ("http://results.example.com/steal/results", "/v1/messages/batches/msgbatch_1/results"),
        ("https://{host}/v1/results", "/v1/messages/batches/msgbatch_1/results"),
        ("/v1/results", "/v1/messages/batches/msgbatch_1/results"),
    ],
)
def test_the_key_follows_a_results_url_to_the_configured_host_only(told: str, followed: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Vendor) as server:
        host = f"127.0.0.1:{server.server_port}"
        Vendor.results_url, Vendor.asked = told.format(host=host), []
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            provider = AnthropicProvider(Access(api_key="secret", base_url=f"http://{host}"))
            assert len(list(provider.results("msgbatch_1"))) == 1
            provider.close()
        finally:
            server.shutdown()
    assert Vendor.asked[-1] == (host, followed)


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (b'{"a":1}\n', b'{"requests":[{"a":1}]}'),
        (b'{"a":1}', b'{"requests":[{"a":1}]}'),
        (b'{"a":1}\n{"b":2}\n', b'{"requests":[{"a":1},{"b":2}]}'),
        (b'{"a":1}\n{"b":2}', b'{"requests":[{"a":1},{"b":2}]}'),
        (b'"%b"\n"y"\n' % (b"x" * 262_142), b'{"requests":["%b","y"]}' % (b"x" * 262_142)),
        (b'"%b"\n"y"\n' % (b"x" * 262_141), b'{"requests":["%b","y"]}' % (b"x" * 262_141)),
    ],
)
def test_the_body_of_a_creation_is_the_lines_with_commas_between_and_of_the_size_it_says(
    tmp_path: Path, lines: bytes, body: bytes
) -> None:
    shard = tmp_path / "lines"
    shard.write_bytes(lines)
    made = creation("/path", shard, str)
    assert b"".join([*made.pieces, made.last]) == body
    assert made.size == len(body)


def test_the_vendors_own_host_is_not_named_and_has_a_console() -> None:
    provider = AnthropicProvider(Access(api_key="any", base_url="https://api.anthropic.com"))
    assert provider.host is None
    assert "msgbatch_1" in (provider.console_url("msgbatch_1") or "")


def test_an_option_that_the_client_does_not_have_is_named() -> None:
    provider = AnthropicProvider(Access(api_key="any", options={"staging": "gs://bucket"}))

    with pytest.raises(InputError, match=r"does not take an option: .*'staging'.* llm_hook_params"):
        provider.check(["b"])
