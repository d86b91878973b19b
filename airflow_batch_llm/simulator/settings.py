"""What a simulator is started with and keeps until it stops."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of the `simulate` command."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 0
    allow_remote: bool = False
    """Whether other machines may reach it. Default: loopback only, and the Host header must name this machine."""
    batch_seconds: float | None = None
    """None: what the data directory remembers, or the default."""
    api_key: str | None = field(default=None, repr=False)
    responder: str | None = None
    upstream: str | None = None
    upstream_key: str | None = field(default=None, repr=False)
    upstream_concurrency: int = 16
    storage_url: str | None = None
