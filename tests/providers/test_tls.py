"""All clients of a process share one TLS context, and the certificates that the user names still count."""

import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from airflow_batch_llm.providers.anthropic import flows as anthropic_sdk
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.incoming import http_library
from airflow_batch_llm.providers.openai import flows as openai_sdk
from airflow_batch_llm.providers.vertex.clients import AsyncJobs
from airflow_batch_llm.providers.vertex.storage import StoragePlace

SDKS = pytest.mark.parametrize("sdk", [anthropic_sdk, openai_sdk], ids=["anthropic", "openai"])


def _context(client: Any) -> ssl.SSLContext:
    return client._client._transport._pool._ssl_context  # type: ignore[no-any-return]


def _certificate(folder: Path) -> Path:
    """Make a certificate for this machine that no authority knows, with its key in the same file."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "own.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def url(certificate: Path) -> Iterator[str]:
    """The address of a server whose certificate only `SSL_CERT_FILE` can vouch for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


@SDKS
def test_all_clients_share_one_context(sdk: Any) -> None:
    first, second = (sdk.open_client(Access(api_key="one")), sdk.open_client(Access(api_key="two")))
    third = sdk.open_async_client(Access(api_key="three"))

    assert _context(first) is _context(second) is _context(third)


@SDKS
def test_a_certificate_that_the_user_names_counts_from_then_on(
    sdk: Any, url: str, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answered() -> bool:
        client = sdk.open_client(Access(api_key="any", base_url=url))
        try:
            return bool(client._client.get(url).status_code == 204)
        except http_library(client._client).ConnectError as error:
            return "CERTIFICATE_VERIFY_FAILED" not in str(error)
        finally:
            client.close()

    assert not answered()

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert answered()

    # A file that is replaced, as when an authority is renewed, is read again.
    (other := tmp_path / "other").mkdir()
    moving = tmp_path / "moving.pem"
    moving.write_bytes(_certificate(other).read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(moving))
    assert not answered()
    moving.write_bytes(certificate.read_bytes())
    assert answered()


@SDKS
def test_an_http_client_that_the_user_gives_stays(sdk: Any) -> None:
    own = sdk.SDK.module.DefaultHttpxClient(verify=False)

    client = sdk.open_client(Access(api_key="any", options={"http_client": own}))

    assert client._client is own


def test_the_client_of_google_makes_no_context_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    place = StoragePlace.of(
        Access(base_url="http://127.0.0.1:1", options={"project": "any", "staging": "gs://any/any"})
    )
    AsyncJobs.open(place)
    made: list[object] = []
    make = ssl.create_default_context

    def counting(*arguments: Any, **named: Any) -> ssl.SSLContext:
        made.append(arguments)
        return make(*arguments, **named)

    monkeypatch.setattr(ssl, "create_default_context", counting)
    AsyncJobs.open(place)

    assert made == []
