"""Writing a shard's two files: the lines that are sent, and the rows that each line answers."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from airflow_batch_llm.core.request import LineTemplate, shard_token
from airflow_batch_llm.core.shard import Bounds, cut
from airflow_batch_llm.stage.ahead import Ahead
from airflow_batch_llm.stage.folder import RunFolder
from airflow_batch_llm.stage.plan import PlannedShard
from airflow_batch_llm.stage.spool import REQUEST
from airflow_batch_llm.warehouses.columns import number

_LINES_AT_ONCE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWriter:
    """Writes the shards of one round, here and then into the run folder."""

    scratch: Path
    nonce: str
    run_token: str
    bounds: Bounds
    first_number: int = 1

    def write_requests(
        self, template: LineTemplate, prompts: Iterable[bytes], call: int = 0
    ) -> tuple[PlannedShard, ...]:
        """The lines of all shards, in the order of the prompts."""
        room = template.overhead + 1
        seed = int(self.nonce, 16)
        numbered = cut(prompts, lambda prompt: len(prompt) + room, self.bounds, seed)
        return tuple(
            self._requests_file(
                self.first_number + number - 1, template, (prompt for _, prompt in group), call
            )
            for number, group in groupby(numbered, key=lambda pair: pair[0])
        )

    def _requests_file(
        self, number: int, template: LineTemplate, prompts: Iterator[bytes], call: int
    ) -> PlannedShard:
        token = shard_token(self.run_token, number)
        sha = hashlib.sha256()
        requests = size = 0
        with self.requests_path(number).open("wb") as file:
            while some := list(islice(prompts, _LINES_AT_ONCE)):
                data = template.lines(token, some, first=requests)
                file.write(data)
                sha.update(data)
                requests += len(some)
                size += len(data)
        return PlannedShard(
            number=number,
            requests=requests,
            rows=0,
            bytes=size,
            requests_sha256=sha.hexdigest(),
            keys_sha256="",
            call=call,
        )

    def write_keys(
        self, shards: tuple[PlannedShard, ...], rows: Iterator[pa.RecordBatch], schema: pa.Schema
    ) -> tuple[PlannedShard, ...]:
        """The rows of all shards. They come sorted by request, numbered through all shards from 0."""
        done = []
        waiting = Ahead(rows, REQUEST, schema)
        first = 0
        for shard in shards:
            path, count = self.keys_path(shard.number), 0
            with pq.ParquetWriter(path, schema, compression="lz4", use_dictionary=False) as writer:
                for batch in waiting.below(first + shard.requests).to_batches():
                    ordinals = pc.subtract(batch.column(REQUEST), number(first))
                    at = schema.get_field_index(REQUEST)
                    writer.write_batch(batch.set_column(at, schema.field(at), ordinals))
                    count += batch.num_rows
            done.append(replace(shard, rows=count, keys_sha256=_sha256(path)))
            first += shard.requests
        return tuple(done)

    def write_unsendable(self, rows: pa.RecordBatchReader) -> str:
        """The rows that no request stands for, as the keys of shard 0; returns the file's hash."""
        path = self.keys_path(0)
        with pq.ParquetWriter(path, rows.schema, compression="lz4") as writer:
            for batch in rows:
                writer.write_batch(batch)
        return _sha256(path)

    def publish(self, folder: RunFolder, shards: tuple[PlannedShard, ...]) -> None:
        """Put the files where every worker finds them; the copies here are gone afterwards."""
        for shard in shards:
            requests, keys = self.requests_path(shard.number), self.keys_path(shard.number)
            folder.put_shard(self.nonce, shard.number, requests, keys)
            requests.unlink()
            keys.unlink()
        if (unsendable := self.keys_path(0)).exists():
            folder.put_keys(self.nonce, 0, unsendable)

    def requests_path(self, number: int) -> Path:
        return self.scratch / f"{number:04d}.requests.jsonl"

    def keys_path(self, number: int) -> Path:
        return self.scratch / f"{number:04d}.keys.parquet"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
