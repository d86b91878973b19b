"""Receive what Airflow's own StatsD client sends, on loopback."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import statsd

from airflow_batch_llm.hooks import monitoring
from airflow_batch_llm.operators import reporting

#: Room for what a few runs send before it is read.
_BUFFER = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One metric, as it came."""

    name: str
    kind: str
    """`c` for a counter, `g` for a gauge."""
    value: float
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Receiver:
    """A socket that StatsD lines come in by."""

    socket: socket.socket

    def samples(self) -> list[Sample]:
        """Return what has come since the last call."""
        found = []
        with suppress(BlockingIOError):
            while True:
                found += [_sample(line) for line in self.socket.recv(65_536).decode().splitlines()]
        return found


def _sample(line: str) -> Sample:
    """Read `name,tag=value:1|c`."""
    name, _, rest = line.partition(":")
    value, _, kind = rest.partition("|")
    name, *tags = name.split(",")
    return Sample(name=name, kind=kind, value=float(value), tags=dict(tag.split("=", 1) for tag in tags))


def _logger(client: statsd.StatsClient) -> Any:
    """Make the object that Airflow sends metrics by where `statsd_influxdb_enabled` is set."""
    try:
        from airflow.sdk._shared.observability.metrics.statsd_logger import SafeStatsdLogger
    except ImportError:  # Airflow 3.1
        from airflow.metrics.statsd_logger import SafeStatsdLogger

        return SafeStatsdLogger(client, influxdb_tags_enabled=True)
    return SafeStatsdLogger(client, influxdb_tags_enabled=True, statsd_influxdb_enabled=True)


@contextmanager
def receiving(patch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """Switch Airflow's StatsD on for this process."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        client = statsd.StatsClient("127.0.0.1", server.getsockname()[1], "airflow")
        logger = _logger(client)
        for module in (reporting, monitoring):
            patch.setattr(module, "Stats", logger)
        try:
            yield Receiver(server)
        finally:
            client.close()
