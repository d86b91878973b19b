"""The interface of a warehouse: read rows, and merge typed answers into a table by key.

Two verbs write. `load` stages one shard's answers, in parallel with other shards, and takes no lock on the target.
`publish` merges all staged answers, in one transaction if the database has transactions. Both may be repeated after a
crash at any point, and leave the same tables.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import TracebackType
from typing import Protocol, assert_never, runtime_checkable

import pyarrow as pa

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.core.output_type import Column
from airflow_batch_llm.core.settings import SchemaChange, Source, WriteMode
from airflow_batch_llm.errors import BatchLLMError, raise_alone
from airflow_batch_llm.warehouses.registration import Place


def _arrow_type(type_: ColumnType) -> pa.DataType:
    match type_:
        case ColumnType.STRING:
            return pa.string()
        case ColumnType.INTEGER:
            return pa.int64()
        case ColumnType.NUMBER:
            return pa.float64()
        case ColumnType.DECIMAL:
            return pa.decimal128(38, 9)
        case ColumnType.BOOLEAN:
            return pa.bool_()
        case ColumnType.TIMESTAMP:
            return pa.timestamp("us", tz="UTC")
        case ColumnType.DATE:
            return pa.date32()
        case ColumnType.JSON:
            return pa.json_(pa.string())
        case ColumnType.VECTOR:
            return pa.list_(pa.float64())
        case _:
            assert_never(type_)


#: The Arrow type of an answer's column. JSON is Arrow's canonical JSON extension type over a string.
ARROW_TYPES: Mapping[ColumnType, pa.DataType] = {type_: _arrow_type(type_) for type_ in ColumnType}


def answer_schema(columns: Iterable[Column]) -> pa.Schema:
    """Return the Arrow types of an answer's columns."""
    return pa.schema(
        [
            (
                column.name,
                pa.decimal128(*column.digits)
                if column.type is ColumnType.DECIMAL
                else ARROW_TYPES[column.type],
            )
            for column in columns
        ]
    )


_UTC = pa.timestamp("us", tz="UTC")

#: The columns that every answer has in the target table besides its own.
ANSWER_BOOKKEEPING = pa.schema(
    [
        ("_llm_input_hash", pa.string()),
        ("_llm_spec_hash", pa.string()),
        ("_llm_model", pa.string()),
        ("_llm_run_id", pa.string()),
        ("_llm_shard", pa.int64()),
        ("_llm_batch_id", pa.string()),
        ("_llm_planned_at", _UTC),
        ("_llm_processed_at", _UTC),
        ("_llm_input_tokens", pa.int64()),
        ("_llm_cached_tokens", pa.int64()),
        ("_llm_output_tokens", pa.int64()),
        ("_llm_cost_usd", pa.float64()),
        ("_llm_shared", pa.bool_()),  # the answer was bought by another row with the same request
    ]
)

#: The name of the route that a row took. Plans of an earlier release do not have it.
ROUTE_COLUMN = pa.field("_llm_route", pa.string())

#: The number of prompts that shared the request. Plans of an earlier release do not have it.
PACKED_COLUMN = pa.field("_llm_packed", pa.int64())

#: Only in the target: the run that bought the answer of which a row has a copy. NULL: the row's own run bought it.
REUSED_COLUMN = pa.field("_llm_reused_run", pa.string())

#: The columns of the failures table after the keys.
FAILURE_COLUMNS = pa.schema(
    [
        ("_llm_outcome", pa.string()),
        ("_llm_error_code", pa.string()),
        ("_llm_error_message", pa.string()),
        ("_llm_raw_excerpt", pa.string()),
        ("_llm_attempts", pa.int64()),
        ("_llm_dead", pa.bool_()),  # it will not be sent again until its row or the spec changes
        *ANSWER_BOOKKEEPING,
    ]
)

#: The columns of a row that waits for a person, after the key, the carried and the empty answer columns.
REVIEW_COLUMNS = pa.schema(
    [
        ("reviewed_by", pa.string()),
        ("reviewed_at", _UTC),
        ("_llm_outcome", pa.string()),
        ("_llm_error_code", pa.string()),
        ("_llm_error_message", pa.string()),
        ("_llm_run_id", pa.string()),
        ("_llm_input_hash", pa.string()),
        ("_llm_spec_hash", pa.string()),
        ("_llm_planned_at", _UTC),
    ]
)

#: The columns of a look-up by key: the hashes of its landed answer, and of its last failure. NULL where there is none.
KNOWN_COLUMNS = pa.schema(
    [
        ("_llm_known_input_hash", pa.string()),
        ("_llm_known_spec_hash", pa.string()),
        ("_llm_failed_input_hash", pa.string()),
        ("_llm_failed_spec_hash", pa.string()),
        ("_llm_failed_attempts", pa.int64()),
        ("_llm_failed_dead", pa.bool_()),
    ]
)


#: The columns of a look-up of answers by their two hashes.
INPUT_HASHES = pa.schema([("_llm_input_hash", pa.string())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The two tables of a stage, and their layout. Names may be dotted: `schema.table`."""

    table: str
    failures: str
    key: pa.Schema  # the key columns, with the source's types
    carried: pa.Schema = field(default_factory=lambda: pa.schema([]))
    """Source columns that are copied into the target."""
    answer: pa.Schema = field(default_factory=lambda: pa.schema([]))
    write_mode: WriteMode = WriteMode.MERGE
    on_schema_change: SchemaChange = SchemaChange.APPEND_NEW_COLUMNS
    create: bool = True  # False: no DDL on the target or the failures table
    partition_by: str | None = (
        None  # a carried or key column; it bounds merge and look-up where tables ask for that
    )
    cluster_by: tuple[str, ...] = ()
    never_null: tuple[str, ...] = ()
    """Answer columns that hold a value in every answer, as the output type says. Default: none."""
    allow_constraints: bool = False
    """Write to tables whose UNIQUE, CHECK and FOREIGN KEY constraints look at answer columns. Default: refuse them."""
    staging_schema: str | None = None  # the schema of staging tables; None: the target's
    review: str | None = None
    """The table of dead rows that people answer. Default: there is none."""
    labels: Mapping[str, str] = field(default_factory=dict)  # on warehouse jobs, where there are such
    has_route: bool = False
    """Both tables have `_llm_route`. Default: no, as an earlier release has planned."""
    has_packed: bool = False
    """Both tables have `_llm_packed`. Default: no, as an earlier release has planned."""
    has_reused: bool = False
    """The target has `_llm_reused_run`. Default: no, as an earlier release has planned."""

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of the tables that belong to the stage."""
        return tuple(filter(None, (self.table, self.failures, self.review)))

    @property
    def is_merged(self) -> bool:
        """Return whether the target keeps one row per key. Otherwise it keeps one per key and run."""
        match self.write_mode:
            case WriteMode.MERGE:
                return True
            case WriteMode.APPEND:
                return False
            case _:
                assert_never(self.write_mode)

    @property
    def answer_columns(self) -> pa.Schema:
        """Every column of the target table, in order."""
        kept = [*ANSWER_BOOKKEEPING, *self._optional, *((REUSED_COLUMN,) if self.has_reused else ())]
        return pa.schema([*self.key, *self.carried, *self.answer, *kept])

    @property
    def without_answer(self) -> "Target":
        """The target in whose shape rows are staged that get a copy of an answer."""
        return replace(self, answer=pa.schema([]), never_null=())

    @property
    def failure_columns(self) -> pa.Schema:
        """Every column of the failures table, in order. For a review it holds the carried columns, too."""
        return pa.schema([*self.failure_origin, *FAILURE_COLUMNS, *self._optional])

    @property
    def failure_origin(self) -> pa.Schema:
        """The columns of the failures table that come from the source."""
        return self.key if self.review is None else pa.schema([*self.key, *self.carried])

    @property
    def review_columns(self) -> pa.Schema:
        """Every column of the review table, in order."""
        return pa.schema([*self.key, *self.carried, *self.answer, *REVIEW_COLUMNS])

    @property
    def _optional(self) -> tuple[pa.Field, ...]:
        wanted = ((self.has_route, ROUTE_COLUMN), (self.has_packed, PACKED_COLUMN))
        return tuple(column for has, column in wanted if has)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One shard's staged answers: the unit that is staged, and may be staged again."""

    run_id: str  # names the run and its generation, unique among all runs on the target
    round: int
    shard: int  # unique within the run, whatever the round: an append replaces by (run, shard)


class Warehouse(Protocol):
    """One database. It is cheap to build: a verb imports the driver and opens a connection when it first needs them."""

    @property
    def asset_uri(self) -> str:
        """The URI of the database in Airflow's and OpenLineage's terms, without a table."""

    def place(self, table: str) -> Place:
        """Return where a table is, whether or not it exists. Equal for every spelling and every connection."""

    def read(self, source: Source) -> pa.RecordBatchReader:
        """Return the rows of a query as a stream; the client never holds the result. The schema is known before the first row."""

    def prepare(self, target: Target) -> None:
        """Create or extend the two tables, refuse what does not fit (`TargetError`), and probe that writing is allowed.

        Runs before anything is sent to a provider; repeating it changes nothing.
        """

    def known(self, target: Target, keys: pa.RecordBatch) -> pa.RecordBatch:
        """For each row of `keys` (key columns, and the partition column if there is one), in order: `KNOWN_COLUMNS`."""

    def load(
        self, target: Target, part: Part, answers: pa.RecordBatchReader, failures: pa.RecordBatchReader
    ) -> None:
        """Stage one shard's rows. They replace the rows that the same part staged before."""

    def publish(self, target: Target, parts: Sequence[Part]) -> None:
        """Merge the staged parts. An answer removes its key's failure; a failure never touches an answer.

        A row is updated only where the incoming `_llm_planned_at` is not older. A repetition leaves the same tables.
        """

    def drop_loaded(self, target: Target, parts: Sequence[Part]) -> None:
        """Drop the parts' staged rows. Missing ones are not an error."""

    def close(self) -> None:
        """Release the connection."""


@runtime_checkable
class JoinsKnown(Protocol):
    """Can join the source with the target in the database, so that no look-up is needed afterwards."""

    def read_known(self, source: Source, target: Target) -> pa.RecordBatchReader:
        """Read rows with `KNOWN_COLUMNS`, which are NULL if the target does not exist yet."""


@runtime_checkable
class ReadsRanges(Protocol):
    """Can read a part of a table: `read` and `read_known` give only the rows that are `Source.within` a range."""

    def place(self, table: str) -> Place:
        """Return the place of a table, in the form that every warehouse has."""

    def bounds(self, source: Source, column: str) -> pa.Table:
        """Return one row of two columns: the least and the greatest value of a column of the source's table."""


@runtime_checkable
class CopiesAnswers(Protocol):
    """Can give a row the answer that a table holds to the same input, without a value leaving the database."""

    def answered(
        self, target: Target, table: str, spec_hash: str, among: Sequence[str] | None
    ) -> pa.RecordBatchReader:
        """Return the input hashes that a table has answers to by this spec, in one column, perhaps more than once.

        `among` are the hashes to look for, a thousand at most. With None all are returned. Raises `TargetError` for a
        table whose answers do not fit the target.
        """

    def copy(self, target: Target, part: Part, tables: Sequence[str]) -> int:
        """Merge a part that was staged for `target.without_answer`, each row with the answer to its two hashes.

        If several tables have an answer, the first counts. A row whose answer was deleted is left out. Returns the
        number of rows that the target then holds. A repetition leaves the same tables, and returns the same number.
        """


@runtime_checkable
class KeepsReviews(Protocol):
    """Can keep a third table: the dead rows, for people to answer. All of its verbs may be repeated."""

    def prepare_reviews(self, target: Target) -> None:
        """Create or extend the review table, or raise `TargetError` if it does not fit. Comes after `prepare`."""

    def refresh_reviews(self, target: Target) -> None:
        """Update the review table from the two other tables.

        A row leaves it once the target has an answer to its key that was planned no earlier. A row without a reviewer
        leaves it if its failure has changed. Then each missing dead row is added. Other rows stay as they are.
        """

    def read_reviews(self, target: Target) -> pa.RecordBatchReader:
        """Return the rows that have a reviewer. Answer columns may come in the database's own types."""


@runtime_checkable
class WritesRecords(Protocol):
    """Can keep tables of records: a ledger, results of evaluations. No stage reads or merges into them."""

    def write_records(self, table: str, rows: pa.RecordBatch) -> None:
        """Replace the records that have these ids, and add the others. The table is created, and extended, if need be.

        The first column is the id. A repetition leaves the same table.
        """


@runtime_checkable
class SharesFile(Protocol):
    """Allows one writer for the whole database. The source is read to its end and closed before anything is written."""

    def release(self) -> None:
        """Close the file, so that another process may write. The next verb opens it again."""


@runtime_checkable
class NamesTables(Protocol):
    """Knows which tables a source reads, so that a target among them is refused."""

    def reads_table(self, source: Source, table: str) -> bool:
        """Return whether the source names this table. A view or a statement that cannot be parsed hides its tables."""


@runtime_checkable
class SweepsStaging(Protocol):
    """Keeps staged rows until a run drops them. A later run drops those of a killed worker."""

    def sweep(self, target: Target, before: datetime) -> int:
        """Drop rows that runs on any table have staged in this target's place, if they are older than `before`.

        A table is as old as the newest plan of its rows, a file as its last change. A table without rows stays. Returns
        the number of tables or files.
        """


@runtime_checkable
class RequiresValues(Protocol):
    """Knows which carried columns of an existing target are NOT NULL, so that NULL is refused in time."""

    def required_columns(self, target: Target) -> frozenset[str]:
        """Return the carried columns, as the source names them, that are NOT NULL in the target."""


# PEP 249's names of errors without a fault of the statement, such as a lost connection or a restarting server.
_MAY_PASS = {"OperationalError", "InterfaceError"}

#: MySQL's drivers use the same names for errors of a statement. These codes of the server may pass: no free connection,
#: shutdown, too long a wait for a lock, deadlock, connection killed.
_SERVER_CODES = range(1000, 2000)
_PASSING_CODES = {1040, 1053, 1205, 1213, 1927}


def may_pass(error: Exception, code: object = None) -> bool:
    """Return whether the same statement may succeed later, as far as a driver's classes and codes show."""
    if not any(kind.__name__ in _MAY_PASS for kind in type(error).__mro__):
        return False
    return code not in _SERVER_CODES or code in _PASSING_CODES


class translated:  # noqa: N801 - it is used like a function
    """Raise the error that `describe` makes of a driver's error, without the driver's error in its chain.

    A `@contextmanager` cannot do that, because Python chains the handled error to any error that a generator raises.
    """

    def __init__(
        self,
        errors: type[Exception] | tuple[type[Exception], ...],
        describe: Callable[[Exception], BatchLLMError],
    ) -> None:
        self._errors = errors
        self._describe = describe

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, self._errors):
            raise_alone(self._describe(error))
