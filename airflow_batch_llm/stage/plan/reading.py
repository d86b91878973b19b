"""Reading the source once: each row's hash, why it is sent or not, and the prompts of those that are.

A row that cannot be sent becomes a row with a problem; it stops the others only if the user wants that.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from airflow_batch_llm.core.prompt import CompiledPrompt
from airflow_batch_llm.core.selection import SENT, Reason, table
from airflow_batch_llm.core.settings import Only, Source
from airflow_batch_llm.core.spec import input_hashes
from airflow_batch_llm.errors import PromptError, SourceError
from airflow_batch_llm.stage.land.landing import sample_keys
from airflow_batch_llm.stage.parts import ReadsSource
from airflow_batch_llm.stage.plan.choosing import Chooser, Current
from airflow_batch_llm.stage.plan.spool import (
    ATTEMPTS,
    INPUT_HASH,
    PROBLEM,
    PROMPTS,
    REASON,
    ROUTE,
    SEQ,
    Spool,
)
from airflow_batch_llm.warehouses.arrow import (
    binary_array,
    int64_array,
    int64_scalar,
    string_array,
)
from airflow_batch_llm.warehouses.base import KNOWN_COLUMNS, JoinsKnown, SharesFile, Target, Warehouse

TOO_LARGE = "too_large"
PROMPT_FAILED = "prompt_failed"

#: A look-up may scan the whole target, so it is for many rows, which wait in memory until then. A scan in this
#: process costs next to nothing, and memory is dearer.
_LOOKED_UP_ROWS, _LOOKED_UP_BYTES, _LOOKED_UP_BYTES_HERE = 100_000, 32 << 20, 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All that decides, row by row, what is to be sent."""

    key: tuple[str, ...]
    prompt: CompiledPrompt
    chooser: Chooser
    current: Current
    target: Target
    only: Only
    retry_dead: bool
    max_rows: int | None
    max_prompt_bytes: int
    required: frozenset[str] = frozenset()
    """Carried columns that take no NULL in the target. Default: none."""

    def fill(self, spool: Spool, rows: Iterator[pa.RecordBatch]) -> None:
        """Spool every row. `rows` carry `KNOWN_COLUMNS` beside the source's own."""
        reasons = table(self.only, retry_dead=self.retry_dead)
        seq = sent = 0
        for batch in rows:
            self._refuse_null_keys(batch)
            values = self._values(batch)
            hashes = string_array(input_hashes(values))
            routes = self.chooser.routes(batch)
            failed = self._same_failure(batch, hashes, routes)
            why = [reasons[code] for code in self._codes(batch, hashes, routes, failed).to_pylist()]
            wanted = [i for i, reason in enumerate(why) if reason in SENT]
            if self.max_rows is not None:
                for i in wanted[max(0, self.max_rows - sent) :]:
                    why[i] = Reason.POSTPONED
                del wanted[max(0, self.max_rows - sent) :]
            sent += len(wanted)
            self._refuse_nulls(batch, wanted)
            if len(wanted) < batch.num_rows:
                values = {name: [column[i] for i in wanted] for name, column in values.items()}
            prompts, problems = self._render(values, wanted, why)
            seqs = int64_array(range(seq, seq + batch.num_rows))
            spool.write(
                pa.RecordBatch.from_pydict(
                    {
                        SEQ: seqs,
                        REASON: string_array(why),
                        PROBLEM: string_array(list(map(problems.get, range(batch.num_rows)))),
                        INPUT_HASH: hashes,
                        ATTEMPTS: _attempts(batch, failed),
                        ROUTE: routes,
                        **{name: batch.column(name) for name in spool.columns.names},
                    }
                ),
                pa.RecordBatch.from_pydict(
                    {
                        SEQ: seqs.take(int64_array(prompts)),
                        "prompt": binary_array(list(prompts.values())),
                    },
                    schema=PROMPTS,
                ),
            )
            seq += batch.num_rows

    def _codes(self, batch: pa.RecordBatch, hashes: pa.Array, routes: pa.Array, failed: pa.Array) -> pa.Array:
        """Return the code of `Seen` for each row."""
        answered = pc.is_valid(batch.column("_llm_known_input_hash"))
        same_input = pc.equal(batch.column("_llm_known_input_hash"), hashes)
        same_spec = self.current.holds(batch.column("_llm_known_spec_hash"), routes)
        dead = pc.and_kleene(batch.column("_llm_failed_dead"), failed)
        code = int64_array([0] * batch.num_rows)
        for bit, fact in ((1, answered), (2, same_input), (4, same_spec), (8, dead)):
            code = pc.add(code, pc.multiply(_where(fact), int64_scalar(bit)))
        return code

    def _same_failure(self, batch: pa.RecordBatch, hashes: pa.Array, routes: pa.Array) -> pa.Array:
        return pc.and_kleene(
            pc.equal(batch.column("_llm_failed_input_hash"), hashes),
            self.current.holds(batch.column("_llm_failed_spec_hash"), routes),
        )

    def _values(self, batch: pa.RecordBatch) -> Mapping[str, Sequence[object]]:
        known = set(KNOWN_COLUMNS.names)
        names = (
            self.prompt.columns
            if self.prompt.columns is not None
            else [n for n in batch.schema.names if n not in known]
        )
        return {name: _plain(batch.column(name)) for name in names}

    def _render(
        self, values: Mapping[str, Sequence[object]], wanted: list[int], why: list[Reason]
    ) -> tuple[dict[int, bytes], dict[int, str]]:
        """The prompts of the wanted rows, and the problems of those that have none; these change their reason."""
        prompts: dict[int, bytes] = {}
        problems: dict[int, str] = {}
        for i, prompt in zip(wanted, self.prompt.render_batch(values), strict=True):
            if isinstance(prompt, PromptError):
                why[i], problems[i] = Reason.UNSENDABLE, f"{PROMPT_FAILED}: {prompt}"
            elif len(prompt) > self.max_prompt_bytes:
                why[i] = Reason.UNSENDABLE
                problems[i] = (
                    f"{TOO_LARGE}: the prompt has {len(prompt):,} bytes, {self.max_prompt_bytes:,} fit into a request"
                )
            else:
                prompts[i] = prompt
        return prompts, problems

    def _refuse_nulls(self, batch: pa.RecordBatch, wanted: list[int]) -> None:
        """Refuse NULL where the target takes none, in rows that are sent: their answers could not land."""
        rows = batch.take(int64_array(wanted)) if self.required else batch
        for name in sorted(self.required):
            empty = rows.filter(pc.is_null(rows.column(name)))
            if empty.num_rows:
                (key,) = sample_keys(empty.select(list(self.key)).slice(0, 1))
                raise SourceError(
                    f"The carried column {name!r} is NULL in the source's row {key}, and the target's column is NOT NULL."
                    " Fill it or leave such rows out in the source, or let the target's column be NULL. Nothing was sent."
                )

    def _refuse_null_keys(self, batch: pa.RecordBatch) -> None:
        for name in self.key:
            if batch.column(name).null_count:
                raise SourceError(
                    f"The key column {name!r} is NULL in some rows of the source. Leave these rows out, or choose another key."
                )


def with_known(
    reads: ReadsSource, source: Source, warehouse: Warehouse, target: Target
) -> pa.RecordBatchReader:
    """The source's rows with what the target knows of them: joined where they are read, otherwise looked up."""
    if reads is warehouse and isinstance(warehouse, JoinsKnown):
        return warehouse.read_known(source, target)
    reader = reads.read(source)
    columns = list(target.key.names)
    if target.partition_by is not None and target.partition_by not in columns:
        columns.append(target.partition_by)

    def looked_up() -> Iterator[pa.RecordBatch]:
        most = _LOOKED_UP_BYTES_HERE if isinstance(warehouse, SharesFile) else _LOOKED_UP_BYTES
        for group in _groups(reader, most):
            known = warehouse.known(target, pa.concat_batches([batch.select(columns) for batch in group]))
            first = 0
            for batch in group:
                beside = known.slice(first, batch.num_rows)
                yield pa.RecordBatch.from_arrays([*batch.columns, *beside.columns], schema=schema)
                first += batch.num_rows

    schema = pa.schema([*reader.schema, *KNOWN_COLUMNS])
    return pa.RecordBatchReader.from_batches(schema, looked_up())


def _groups(reader: pa.RecordBatchReader, most: int) -> Iterator[list[pa.RecordBatch]]:
    """The batches that are looked up together."""
    group: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in reader:
        if group and (rows + batch.num_rows > _LOOKED_UP_ROWS or size + batch.nbytes > most):
            yield group
            group, rows, size = [], 0, 0
        if batch.num_rows:
            group.append(batch)
            rows, size = rows + batch.num_rows, size + batch.nbytes
    if group:
        yield group


def _plain(column: pa.Array) -> Sequence[object]:
    """The column's values; JSON as what it says, so that its spelling does not matter and its fields can be used."""
    if isinstance(column.type, pa.JsonType):
        return [None if text is None else orjson.loads(text) for text in column.storage.to_pylist()]
    values: list[object] = column.to_pylist()
    return values


def _attempts(batch: pa.RecordBatch, failed: pa.Array) -> pa.Array:
    """Return the number of earlier failures of this very request; 0 where row or spec has changed since."""
    attempts = pc.coalesce(batch.column("_llm_failed_attempts"), int64_scalar(0))
    return pc.multiply(_where(failed), attempts)


def _where(fact: pa.Array) -> pa.Array:
    """1 where it is true, and 0 where it is not or not known."""
    return pc.coalesce(fact.cast(pa.int64()), int64_scalar(0))
