"""The request that creates a batch, streamed from the lines of a shard: it is never in memory as a whole."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from airflow_batch_llm.providers.creation import Creation

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
