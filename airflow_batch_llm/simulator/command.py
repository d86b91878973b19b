"""The `simulate` command."""

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from airflow_batch_llm.simulator.controls import SimulatorSettings

READY = "simulator ready at "

_Host = Annotated[str, typer.Option(help="Another address than loopback needs --allow-remote.")]
_DataDir = Annotated[
    Path | None, typer.Option(help="Where state lives. Without it, state ends with the simulator.")
]
_BatchSeconds = Annotated[float | None, typer.Option(help="How long a batch takes (default 2).", min=0)]
_ApiKey = Annotated[
    str | None,
    typer.Option(
        help="Refuse every other key, also for the control endpoints. Without it, any key is taken.",
        envvar="SIMULATOR_API_KEY",
    ),
]
_Upstream = Annotated[
    str | None, typer.Option(help="Base URL of an OpenAI-compatible endpoint that answers instead, …/v1.")
]
_UpstreamKey = Annotated[str | None, typer.Option(help="The key for --upstream.", envvar="UPSTREAM_API_KEY")]
_StorageUrl = Annotated[
    str | None, typer.Option(help="Cloud Storage for Vertex.", envvar="STORAGE_EMULATOR_HOST")
]
_BigQueryUrl = Annotated[
    str | None, typer.Option(help="BigQuery for Vertex.", envvar="BIGQUERY_EMULATOR_HOST")
]


def simulate(
    port: Annotated[int, typer.Option(help="0 picks a free port.")] = 8765,
    host: _Host = "127.0.0.1",
    allow_remote: Annotated[bool, typer.Option(help="Let other machines reach it, by any name.")] = False,
    data_dir: _DataDir = None,
    batch_seconds: _BatchSeconds = None,
    api_key: _ApiKey = None,
    responder: Annotated[str | None, typer.Option(help="module:function(request) -> the answer.")] = None,
    upstream: _Upstream = None,
    upstream_key: _UpstreamKey = None,
    upstream_concurrency: Annotated[int, typer.Option(help="Requests at once to --upstream.", min=1)] = 16,
    storage_url: _StorageUrl = None,
    bigquery_url: _BigQueryUrl = None,
    end_with_stdin: Annotated[bool, typer.Option(help="Stop when stdin closes.", hidden=True)] = False,
) -> None:
    """Stand in for Anthropic, OpenAI and Vertex on loopback: their batch APIs without a key or a bill."""
    # The server gives a signal back once it has served what was open; ending the process there would leave the state.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with _state(data_dir) as folder:
        settings = SimulatorSettings(
            data_dir=folder,
            host=host,
            allow_remote=allow_remote,
            port=port,
            batch_seconds=batch_seconds,
            api_key=api_key,
            responder=responder,
            upstream=upstream,
            upstream_key=upstream_key,
            upstream_concurrency=upstream_concurrency,
            storage_url=storage_url,
            bigquery_url=bigquery_url,
        )
        if end_with_stdin:
            threading.Thread(target=_end_with_stdin, daemon=True).start()
        _serve(settings)


@contextmanager
def _state(data_dir: Path | None) -> Iterator[Path]:
    if data_dir is not None:
        yield data_dir
        return
    with tempfile.TemporaryDirectory(prefix="batch-llm-simulator-") as scratch:
        yield Path(scratch)


def _serve(settings: SimulatorSettings) -> None:
    from airflow_batch_llm.simulator.server import serve

    try:
        serve(settings, lambda url: typer.echo(READY + url))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    except OSError as error:
        raise typer.BadParameter(
            f"{settings.host}:{settings.port} cannot be listened on: {error.strerror}"
        ) from error


def _end_with_stdin() -> None:
    """End when standard input closes: the process that started the simulator has gone."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
