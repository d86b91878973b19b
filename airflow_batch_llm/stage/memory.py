"""The memory that a worker's process keeps for Arrow."""

import os

import pyarrow as pa


def keep_little() -> None:
    """Let Arrow give back what it no longer needs.

    Its own allocators keep far more than is in use: 70 MB where a shard takes six. Whoever has chosen one keeps it.
    """
    if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
        pa.set_memory_pool(pa.system_memory_pool())
