"""Read the source once: compute each row's hash and reason, and render the prompts of the rows that are sent.

A row that cannot be sent becomes a row with a problem. It stops the others only if the user wants that.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from airflow_batch_llm.core.attachment import Unattachable
from airflow_batch_llm.core.prompt import CompiledPrompt
from airflow_batch_llm.core.selection import SENT, Reason, table
from airflow_batch_llm.core.settings import Only, Source, Stage
from airflow_batch_llm.core.spec import earlier_input_hashes, input_hashes
from airflow_batch_llm.errors import PromptError, SourceError
from airflow_batch_llm.stage.land.landing import sample_keys
from airflow_batch_llm.stage.parts import Parts, ReadsSource
from airflow_batch_llm.stage.plan.attaching import ATTACHED_AT_ONCE, Attaching, BatchAttachments
from airflow_batch_llm.stage.plan.resolved import Chooser, Current, Resolved
from airflow_batch_llm.stage.plan.spool import (
    ATTEMPTS,
    EARLIER_HASH,
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
    cut,
    int64_array,
    int64_scalar,
    string_array,
)
from airflow_batch_llm.warehouses.base import (
    KNOWN_COLUMNS,
    JoinsKnown,
    RequiresValues,
    SharesFile,
    Target,
    Warehouse,
)

#: The prompts with attachments that are written at once, in bytes.
_ATTACHED_BYTES = 8 << 20

TOO_LARGE = "too_large"
PROMPT_FAILED = "prompt_failed"

#: A look-up may scan the whole target, so it is for many rows, which wait in memory. Fewer wait for a scan in this process.
_LOOKED_UP_ROWS, _LOOKED_UP_BYTES, _LOOKED_UP_BYTES_HERE = 100_000, 32 << 20, 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Everything that decides, row by row, which rows are sent."""

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
    """Carried columns that are NOT NULL in the target. Default: none."""
    attaching: Attaching | None = None
    """Attaches images and PDFs to the prompts. Default: there are none."""

    @classmethod
    def of(
        cls,
        stage: Stage,
        resolved: Resolved,
        target: Target,
        parts: Parts,
        max_prompt_bytes: int,
        attaching: Attaching | None,
    ) -> "Reading":
        """Return the `Reading` of a stage."""
        names = tuple(route.name for route in resolved.routes)
        return cls(
            key=tuple(stage.key),
            prompt=resolved.prompt,
            chooser=Chooser(
                names=names, key=tuple(stage.key), column=stage.route_column, function=stage.route
            ),
            current=resolved.current,
            target=target,
            only=stage.only,
            retry_dead=stage.guards.retry_dead,
            max_rows=stage.max_rows,
            max_prompt_bytes=max_prompt_bytes,
            required=required_columns(parts.target, target),
            attaching=attaching,
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The needed columns of the source. Empty means all, since a function gets the whole row."""
        if self.prompt.columns is None or self.chooser.function is not None:
            return ()
        target = self.target
        attached = () if self.attaching is None else self.attaching.columns
        optional = filter(None, (self.chooser.column, target.partition_by))
        named = (*self.key, *self.prompt.columns, *target.carried.names, *attached, *optional)
        return tuple(dict.fromkeys(named))

    def fill(self, spool: Spool, rows: Iterator[pa.RecordBatch], first: int = 0) -> None:
        """Spool every row. `rows` have `KNOWN_COLUMNS` besides the source's own. `first` is the number of the first row."""
        reasons = table(self.only, retry_dead=self.retry_dead)
        seq, sent = first, 0
        for batch in cut(rows):
            self._refuse_null_keys(batch)
            values = self._values(batch)
            attached = None if self.attaching is None else self.attaching.of(batch)
            inputs = Inputs.of({**values, **(attached.hashed() if attached else {})})
            routes = self.chooser.routes(batch)
            failed = self._same_failure(batch, inputs, routes)
            why = [reasons[code] for code in self._codes(batch, inputs, routes, failed).to_pylist()]
            wanted = [i for i, reason in enumerate(why) if reason in SENT]
            if self.max_rows is not None:
                for i in wanted[max(0, self.max_rows - sent) :]:
                    why[i] = Reason.POSTPONED
                del wanted[max(0, self.max_rows - sent) :]
            sent += len(wanted)
            self._refuse_nulls(batch, wanted)
            if len(wanted) < batch.num_rows:
                values = {name: [column[i] for i in wanted] for name, column in values.items()}
            problems: dict[int, str] = {}
            for prompts in self._rendered(values, attached, wanted, problems):
                spool.write_prompts(_prompts(prompts, seq))
            for i in problems:
                why[i] = Reason.UNSENDABLE
            spool.write(
                pa.RecordBatch.from_pydict(
                    {
                        SEQ: int64_array(range(seq, seq + batch.num_rows)),
                        REASON: string_array(why),
                        PROBLEM: string_array(list(map(problems.get, range(batch.num_rows)))),
                        INPUT_HASH: inputs.hashes,
                        EARLIER_HASH: inputs.earlier,
                        ATTEMPTS: _attempts(batch, failed),
                        ROUTE: routes,
                        **{name: batch.column(name) for name in spool.columns.names},
                    }
                )
            )
            seq += batch.num_rows

    def _codes(self, batch: pa.RecordBatch, inputs: "Inputs", routes: pa.Array, failed: pa.Array) -> pa.Array:
        """Return the code of `Seen` for each row."""
        answered = pc.is_valid(batch.column("_llm_known_input_hash"))
        same_input = inputs.are(batch.column("_llm_known_input_hash"))
        same_spec = self.current.holds(batch.column("_llm_known_spec_hash"), routes)
        dead = pc.and_kleene(batch.column("_llm_failed_dead"), failed)
        code = int64_array([0] * batch.num_rows)
        for bit, fact in ((1, answered), (2, same_input), (4, same_spec), (8, dead)):
            code = pc.add(code, pc.multiply(_where(fact), int64_scalar(bit)))
        return code

    def _same_failure(self, batch: pa.RecordBatch, inputs: "Inputs", routes: pa.Array) -> pa.Array:
        return pc.and_kleene(
            inputs.are(batch.column("_llm_failed_input_hash")),
            self.current.holds(batch.column("_llm_failed_spec_hash"), routes),
        )

    def _values(self, batch: pa.RecordBatch) -> Mapping[str, Sequence[object]]:
        known = set(KNOWN_COLUMNS.names)
        if (
            self.attaching is not None
        ):  # a function sees no attachment: its URI may get another signature each day
            known.update(self.attaching.columns)
        names = (
            self.prompt.columns
            if self.prompt.columns is not None
            else [n for n in batch.schema.names if n not in known]
        )
        return {name: _plain(batch.column(name)) for name in names}

    def _rendered(
        self,
        values: Mapping[str, Sequence[object]],
        attached: BatchAttachments | None,
        wanted: Sequence[int],
        problems: dict[int, str],
    ) -> Iterator[dict[int, bytes]]:
        """Yield the prompts of the wanted rows, in pieces that fit into memory. Rows without one get a problem instead."""
        prompts: dict[int, bytes] = {}
        size = 0
        texts = self._texts(values, len(wanted))
        for i, prompt in zip(
            wanted, texts if attached is None else _with(attached, wanted, texts), strict=True
        ):
            if not isinstance(prompt, bytes):
                code = prompt.code if isinstance(prompt, Unattachable) else PROMPT_FAILED
                problems[i] = f"{code}: {prompt}"
            elif len(prompt) > self.max_prompt_bytes:
                problems[i] = (
                    f"{TOO_LARGE}: the prompt has {len(prompt):,} bytes, {self.max_prompt_bytes:,} fit into a request"
                )
            else:
                prompts[i] = prompt
                size += len(prompt)
            if attached is not None and size > _ATTACHED_BYTES:
                yield prompts
                prompts, size = {}, 0
        if prompts:
            yield prompts

    def _texts(self, values: Mapping[str, Sequence[object]], rows: int) -> list[bytes | PromptError]:
        if self.prompt.columns == ():  # the rows differ by what is attached
            return [orjson.dumps(self.prompt.render({}))] * rows
        return self.prompt.render_batch(values)

    def _refuse_nulls(self, batch: pa.RecordBatch, wanted: list[int]) -> None:
        """Refuse NULL in carried columns of sent rows if the target's columns are NOT NULL: the answers could not land."""
        rows = batch.take(int64_array(wanted)) if self.required else batch
        for name in sorted(self.required):
            empty = rows.filter(pc.is_null(rows.column(name)))
            if empty.num_rows:
                (key,) = sample_keys(empty.select(list(self.key)).slice(0, 1))
                raise null_carried(name, f"the source's row {key}")

    def _refuse_null_keys(self, batch: pa.RecordBatch) -> None:
        for name in self.key:
            if batch.column(name).null_count:
                raise null_key(name)


def doubled_key(key: Sequence[str], twice: Sequence[str], reread: str = "") -> SourceError:
    """Return the error for a source that has these keys more than once. `reread` says how it is read again."""
    return SourceError(
        f"The key {key} is not unique in the source: {', '.join(twice)} stand there more than once, for example."
        f" Choose a key that is, or leave the repetitions out of the source.{reread} Nothing was sent."
    )


def null_key(name: str) -> SourceError:
    """Return the error for a source with a NULL in its key."""
    return SourceError(
        f"The key column {name!r} is NULL in some rows of the source. Leave these rows out, or choose another key."
    )


def null_carried(name: str, where: str) -> SourceError:
    """Return the error for a NULL in a column that is NOT NULL in the target: the row's answer could not land."""
    return SourceError(
        f"The carried column {name!r} is NULL in {where}, and the target's column is NOT NULL."
        " Fill it or leave such rows out in the source, or let the target's column be NULL. Nothing was sent."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The hashes of a batch's inputs: those of today, and those that a table of an earlier release holds."""

    hashes: pa.Array
    earlier: pa.Array

    @classmethod
    def of(cls, values: Mapping[str, Sequence[object]]) -> "Inputs":
        return cls(
            hashes=string_array(input_hashes(values)), earlier=string_array(earlier_input_hashes(values))
        )

    def are(self, known: pa.Array) -> pa.Array:
        """Return whether each row has the input that a table knows. NULL where it knows none."""
        return pc.or_kleene(pc.equal(known, self.hashes), pc.equal(known, self.earlier))


def required_columns(warehouse: Warehouse, target: Target) -> frozenset[str]:
    """Return the carried columns that are NOT NULL in the target, as far as the warehouse knows."""
    if not target.carried.names or not isinstance(warehouse, RequiresValues):
        return frozenset()
    return warehouse.required_columns(target)


def with_known(
    reads: ReadsSource, source: Source, warehouse: Warehouse, target: Target
) -> pa.RecordBatchReader:
    """Return the source's rows with the target's hashes for them, by a join in the database or by look-ups."""
    if reads is warehouse and isinstance(warehouse, JoinsKnown):
        return warehouse.read_known(source, target)
    reader = reads.read(source)
    columns = list(target.key.names)
    if target.partition_by is not None and target.partition_by not in columns:
        columns.append(target.partition_by)

    def looked_up() -> Iterator[pa.RecordBatch]:
        most = _LOOKED_UP_BYTES_HERE if isinstance(warehouse, SharesFile) else _LOOKED_UP_BYTES
        for group in _groups(cut(reader), most):
            known = warehouse.known(target, pa.concat_batches([batch.select(columns) for batch in group]))
            first = 0
            for batch in group:
                beside = known.slice(first, batch.num_rows)
                yield pa.RecordBatch.from_arrays([*batch.columns, *beside.columns], schema=schema)
                first += batch.num_rows

    schema = pa.schema([*reader.schema, *KNOWN_COLUMNS])
    return pa.RecordBatchReader.from_batches(schema, looked_up())


def _groups(reader: pa.RecordBatchReader, most: int) -> Iterator[list[pa.RecordBatch]]:
    """Yield the batches that are looked up together."""
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


def _with(
    attached: BatchAttachments, rows: Sequence[int], texts: Sequence[bytes | PromptError]
) -> Iterator[bytes | PromptError | Unattachable]:
    """Yield the prompts of some rows with their attachments."""
    for first in range(0, len(rows), ATTACHED_AT_ONCE):
        some = slice(first, first + ATTACHED_AT_ONCE)
        for text, found in zip(texts[some], attached.of_rows(rows[some]), strict=True):
            yield (
                found
                if isinstance(found, Unattachable)
                else (text if isinstance(text, PromptError) else attached.attaching.joined(text, found))
            )


def _prompts(prompts: Mapping[int, bytes], seq: int) -> pa.RecordBatch:
    """Return the prompts of a batch of the source whose first row has this number."""
    seqs, texts = int64_array([seq + i for i in prompts]), binary_array(list(prompts.values()))
    return pa.RecordBatch.from_pydict({SEQ: seqs, "prompt": texts}, schema=PROMPTS)


def _plain(column: pa.Array) -> Sequence[object]:
    """Return the column's values, with JSON parsed, so that its spelling does not matter and its fields can be used."""
    if isinstance(column.type, pa.JsonType):
        return [None if text is None else orjson.loads(text) for text in column.storage.to_pylist()]
    values: list[object] = column.to_pylist()
    return values


def _attempts(batch: pa.RecordBatch, failed: pa.Array) -> pa.Array:
    """Return the number of earlier failures of this request, or 0 if the row or the spec has changed since."""
    attempts = pc.coalesce(batch.column("_llm_failed_attempts"), int64_scalar(0))
    return pc.multiply(_where(failed), attempts)


def _where(fact: pa.Array) -> pa.Array:
    """Return 1 where the value is true, and 0 where it is false or NULL."""
    return pc.coalesce(fact.cast(pa.int64()), int64_scalar(0))


def let_go(parts: Parts) -> None:
    """Close databases that only one process can write at a time."""
    for part in (parts.source, parts.target):
        if isinstance(part, SharesFile):
            part.release()
