"""Write a shard's two files: the lines that are sent, and the rows that each line answers.

A file that a worker fetches and that is not the planned one is refused.
"""

import hashlib
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from airflow_batch_llm.core.packing import Layout, pack, pack_sizes
from airflow_batch_llm.core.request import (
    ORDINAL_DIGITS,
    PROMPT,
    Cutter,
    LineTemplate,
    ShardBounds,
    shard_token,
)
from airflow_batch_llm.errors import StoreError
from airflow_batch_llm.stage.plan.spool import REQUEST, Spool
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan, PlannedShard
from airflow_batch_llm.store import ahead
from airflow_batch_llm.warehouses.arrow import (
    RowGroups,
    SortedReader,
    binary_array,
    int64_array,
    int64_scalar,
)

#: The entry in the metadata of a keys file that holds the number of items of each packed request, one byte each.
_SIZES = b"llm_items"

#: The prompts that are held at once where they may be long, and their bytes at most.
_PROMPTS_AT_ONCE, _PROMPT_BYTES_AT_ONCE = 100, 8 << 20

#: The shards whose files are put into the run folder at once. A file that is being uploaded is not in memory as a whole.
_PUT_AT_ONCE = 4

# The lines that are made at once, and their bytes at most.
_LINES_AT_ONCE = 1000
_BYTES_AT_ONCE = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWriter:
    """Writes the shards of one round into the run folder. Without a folder, it only counts them."""

    folder: RunFolder | None
    scratch: Path
    nonce: str
    run_token: str
    bounds: ShardBounds
    first_number: int = 1
    rows_per_request: int = 1

    def write_requests(
        self, template: LineTemplate, prompts: Iterable[pa.BinaryArray], route: int = 0
    ) -> tuple[PlannedShard, ...]:
        """Write the lines of all shards, in the order of the prompts."""
        if template.content is not None:
            prompts = (
                binary_array([template.written(one) for one in block.to_pylist()]) for block in prompts
            )
        files = (
            self._requests_file(self.first_number + place - 1, template, (asked for _, asked in group), route)
            for place, group in groupby(self._placed(template, prompts), key=itemgetter(0))
        )
        with closing(ahead(self._put_requests, files, _PUT_AT_ONCE)) as written:
            return tuple(written)

    def _placed(
        self, template: LineTemplate, prompts: Iterable[pa.BinaryArray]
    ) -> Iterator[tuple[int, "_Asked"]]:
        """Yield the prompts, a few at a time, with the number of the shard that they belong to."""
        room = template.overhead + 1
        cutter = Cutter(self.bounds, int(self.nonce, 16))
        for block, items in packed_prompts(prompts, self.rows_per_request):
            sizes = [length + room for length in pc.binary_length(block).to_pylist()]
            fitting = _BYTES_AT_ONCE * len(sizes) // max(1, sum(sizes))
            step = max(1, min(_LINES_AT_ONCE, fitting))
            for first in range(0, len(block), step):
                some = block.slice(first, step)
                for place, start, end in cutter.cut(sizes[first : first + step]):
                    yield place, (some.slice(start, end - start), items[first + start : first + end])

    def _requests_file(
        self, number: int, template: LineTemplate, asked: Iterator["_Asked"], route: int
    ) -> tuple[PlannedShard, Path | None]:
        """Write the lines of one shard. Returns it with the file that is still to be put, if there is one."""
        lines = _Lines(template, shard_token(self.run_token, number))
        sizes = bytearray()
        blocks = map(lines.of, _noted(asked, sizes))
        aside, stays = self.scratch / f"{number:04d}.requests.jsonl", False
        if self.folder is None:
            deque(blocks, maxlen=0)
        else:
            stays = self.folder.collect_requests(self.nonce, number, blocks, aside)
        if sizes:
            self._sizes_path(number).write_bytes(sizes)
        shard = PlannedShard(
            number=number,
            requests=lines.count,
            rows=0,
            bytes=lines.size,
            requests_sha256=lines.sha.hexdigest(),
            keys_sha256="",
            route=route,
            packed=sum(sizes),
        )
        return shard, aside if stays else None

    def _put_requests(self, written: tuple[PlannedShard, Path | None]) -> PlannedShard:
        shard, aside = written
        if self.folder is not None and aside is not None:
            self.folder.put_requests(self.nonce, shard.number, aside)
            aside.unlink()
        return shard

    def write_keys(
        self, shards: tuple[PlannedShard, ...], rows: Iterator[pa.RecordBatch], schema: pa.Schema
    ) -> tuple[PlannedShard, ...]:
        """Write the rows of all shards. They come sorted by request, numbered through all shards from 0."""
        with closing(
            ahead(self._put_keys_of, self._keys_files(shards, rows, schema), _PUT_AT_ONCE)
        ) as written:
            return tuple(written)

    def _keys_files(
        self, shards: tuple[PlannedShard, ...], rows: Iterator[pa.RecordBatch], schema: pa.Schema
    ) -> Iterator[PlannedShard]:
        """Write the keys of each shard into a file on this disk. Yields the shard with the number of its rows."""
        waiting = SortedReader(rows, REQUEST, schema)
        first = 0
        for shard in shards:
            path, count = self._keys_path(shard.number), 0
            sizes = self._sizes_path(shard.number).read_bytes() if shard.packed else None
            own = schema.with_metadata(None if sizes is None else {_SIZES: sizes.hex()})
            # Statistics of all carried columns would stay in memory, and no reader needs them.
            plain: Any = {"use_dictionary": False, "write_statistics": False}
            with pq.ParquetWriter(path, own, compression="lz4", **plain) as writer:
                groups = RowGroups(writer)
                for batch in waiting.batches_below(first + shard.items):
                    ordinals = pc.subtract(batch.column(REQUEST), int64_scalar(first))
                    at = schema.get_field_index(REQUEST)
                    groups.write(batch.set_column(at, schema.field(at), ordinals))
                    count += batch.num_rows
                groups.flush()
            yield replace(shard, rows=count)
            first += shard.items

    def _put_keys_of(self, shard: PlannedShard) -> PlannedShard:
        return replace(shard, keys_sha256=self._put_keys(shard.number))

    def write_unsendable(self, rows: pa.RecordBatchReader) -> str:
        """Write the rows without a request of their own as the keys of shard 0. Returns the file's hash."""
        with pq.ParquetWriter(self._keys_path(0), rows.schema, compression="lz4") as writer:
            for batch in rows:
                writer.write_batch(batch)
        return self._put_keys(0)

    def _put_keys(self, number: int) -> str:
        """Move the keys file to the run folder. Returns its hash."""
        path = self._keys_path(number)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if self.folder is not None:
            self.folder.put_keys(self.nonce, number, path)
        path.unlink()
        return sha256

    def _keys_path(self, number: int) -> Path:
        return self.scratch / f"{number:04d}.keys.parquet"

    def _sizes_path(self, number: int) -> Path:
        return self.scratch / f"{number:04d}.items"


#: Prompts of requests, and the number of items of each. Empty if the requests are not packed.
_Asked = tuple[pa.BinaryArray, bytes]


def packed_prompts(prompts: Iterable[pa.BinaryArray], rows: int) -> Iterator[_Asked]:
    """Yield the prompts of the requests that ask these prompts, `rows` in each at most."""
    if rows == 1:
        yield from ((block, b"") for block in prompts)
        return
    waiting: list[bytes] = []
    for block in prompts:
        waiting += block.to_pylist()
        sizes = pack_sizes([len(prompt) for prompt in waiting], rows)
        yield _packed(waiting, sizes[:-1])
        del waiting[: sum(sizes[:-1])]
    if waiting:
        yield _packed(waiting, pack_sizes([len(prompt) for prompt in waiting], rows))


def prompt_blocks(prompts: Iterable[bytes]) -> Iterator[pa.BinaryArray]:
    """Yield prompts in blocks that memory holds well: attachments make them long."""
    block: list[bytes] = []
    size = 0
    for prompt in prompts:
        block.append(prompt)
        size += len(prompt)
        if len(block) == _PROMPTS_AT_ONCE or size > _PROMPT_BYTES_AT_ONCE:
            yield binary_array(block)
            block, size = [], 0
    if block:
        yield binary_array(block)


def _packed(prompts: Sequence[bytes], sizes: Sequence[int]) -> _Asked:
    starts = accumulate(sizes, initial=0)
    packs = [pack(prompts[start : start + size]) for start, size in zip(starts, sizes, strict=False)]
    return binary_array(packs), bytes(sizes)


def _noted(asked: Iterable[_Asked], sizes: bytearray) -> Iterator[pa.BinaryArray]:
    for prompts, items in asked:
        sizes += items
        yield prompts


def read_layout(keys: Path, shard: PlannedShard) -> Layout:
    """Read from a shard's keys file which items its requests ask."""
    if not shard.packed:
        return Layout.alone(shard.requests)
    return Layout.packed(bytes.fromhex(pq.read_schema(keys).metadata[_SIZES].decode()))


class _Lines:
    """Makes the lines of one shard from its prompts, block by block, and counts and hashes them."""

    def __init__(self, template: LineTemplate, token: str) -> None:
        self._holes = template.holes
        self._pieces = [binary_array([piece])[0] for piece in template.pieces_under(token)]
        self._nothing = binary_array([b""])[0]
        self.sha = hashlib.sha256()
        self.count = self.size = 0

    def of(self, prompts: pa.BinaryArray) -> memoryview:
        """Return the lines of the next prompts, in one block."""
        ordinals = int64_array(range(self.count, self.count + len(prompts))).cast(pa.string())
        digits = pc.utf8_lpad(ordinals, ORDINAL_DIGITS, "0").cast(pa.binary())
        parts = [self._pieces[0]]
        for hole, piece in zip(self._holes, self._pieces[1:], strict=True):
            parts += (prompts if hole == PROMPT else digits, piece)
        joined = pc.binary_join_element_wise(*parts, self._nothing)
        block = memoryview(joined.buffers()[2])
        self.sha.update(block)
        self.count += len(prompts)
        self.size += len(block)
        return block


def with_reasons(spool: Spool, route: int, written: Sequence[PlannedShard]) -> tuple[PlannedShard, ...]:
    """Return the shards of a route with their rows by reason."""
    done, first = [], 0
    for shard in written:
        end = first + shard.items
        reasons = spool.reasons_within(route, first, end)
        done.append(replace(shard, why={str(reason): count for reason, count in reasons.items()}))
        first = end
    return tuple(done)


def left_out_of(folder: RunFolder, plan: Plan, shard: PlannedShard) -> Mapping[int, str]:
    """Return why requests of a shard are not sent, by their numbers: the vendor refuses their attachments."""
    return folder.left_out(shard.number) if plan.route(shard).call.attachments else {}


def fetch_requests(folder: RunFolder, plan: Plan, shard: PlannedShard, path: Path) -> None:
    """Bring the request lines of a shard here."""
    _fetch(path, folder, (plan.nonce, shard.number, shard.requests_sha256), folder.get_requests)


def fetch_keys(folder: RunFolder, plan: Plan, shard: PlannedShard, path: Path) -> None:
    """Bring the rows of a shard here."""
    _fetch(path, folder, (plan.nonce, shard.number, shard.keys_sha256), folder.get_keys)


def fetch_unsendable(folder: RunFolder, plan: Plan, path: Path) -> None:
    """Fetch the rows that could not be sent: the keys of shard 0."""
    _fetch(path, folder, (plan.nonce, 0, plan.unsendable_sha256), folder.get_keys)


def _fetch(
    path: Path, folder: RunFolder, file: tuple[str, int, str], get: Callable[[str, int, Path], bool]
) -> None:
    nonce, number, sha256 = file
    arriving = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    if not get(nonce, number, arriving):
        raise StoreError(
            f"{path.name} is gone from the run folder. Clear the task to plan again. Nothing was sent twice."
        )
    with arriving.open("rb") as content:
        actual = hashlib.file_digest(content, "sha256").hexdigest()
    if actual != sha256 and actual not in folder.erased_hashes(nonce, number):
        arriving.unlink()
        raise StoreError(
            f"{path.name} in the run folder is not the file that was planned. Restore it, or clear the task."
        )
    arriving.replace(path)
