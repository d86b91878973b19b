"""What a gateway, a proxy or a login page answers in a vendor's place, for the contract's cases."""

import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from airflow_batch_llm.testing.provider_bench import Bench

_JSON = "application/json"

LOGIN_PAGE: Mapping[str, str] = {"text": "<html><body>Sign in</body></html>", "content_type": "text/html"}

_WRONG_TYPES = (
    '{"id": 7, "type": "message_batch", "object": "batch", "status": 3, "name": 7, "state": 9, "data": [7],'
    ' "processing_status": "ended", "request_counts": null, "batchPredictionJobs": [7]}'
)
_PAGES: Sequence[Mapping[str, str]] = (
    LOGIN_PAGE,
    *(
        {"text": text, "content_type": _JSON}
        for text in (
            "<html>", "", "{}", "[]", "null", '{"status": {"ok": true}, "data": null, "id": 7}', _WRONG_TYPES
        )
    ),
)  # fmt: skip


def each_page(bench: Bench, endpoint: str, **fault: Any) -> Iterator[str]:
    """Let a gateway answer in the vendor's place, with status 200: each body in turn, for one step of a loop."""
    for page in _PAGES:
        bench.simulator.clear_faults()
        bench.fault(kind="body", endpoint=endpoint, times=None, **page, **fault)
        yield page["text"]
    bench.simulator.clear_faults()


#: What a bomb unpacks to, and the memory that may be used while it is refused.
BOMB_BYTES, _MOST_MEMORY = 200_000_000, 120_000_000


@contextmanager
def little_memory() -> Iterator[None]:
    """No more memory than a bomb's fraction is taken within this block."""
    tracemalloc.start()
    try:
        yield
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < _MOST_MEMORY, f"{taken:,} bytes"
