"""The identity of a request: what makes two of them the same purchase.

The key, the labels and the metadata of a request are left out, so that a ledger sees a row that was bought twice
even where it was sent under another name.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import orjson

_UNPAID = frozenset({"metadata", "labels", "user", "safety_identifier", "prompt_cache_key"})


def content_digest(scope: str, body: Mapping[str, Any]) -> bytes:
    """Sixteen bytes that depend on what the request asks, within a vendor's endpoint and model."""
    if not _UNPAID.isdisjoint(body):
        body = {key: value for key, value in body.items() if key not in _UNPAID}
    text = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    return blake2b(text, digest_size=16, key=scope.encode()[:64]).digest()


def seed_of(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little")
