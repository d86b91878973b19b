"""Read from PostgreSQL: the rows of a query in Arrow's types, and the catalogue.

Rows come by COPY as CSV, or by a cursor on the server. The catalogue has a table's columns, its unique keys, and the rules
that it enforces.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.csv as csv

from airflow_batch_llm.errors import InputError, SourceError, raise_alone
from airflow_batch_llm.warehouses.arrow import batches, typed, typed_array
from airflow_batch_llm.warehouses.base import Target
from airflow_batch_llm.warehouses.kind import ColumnKind, of_arrow
from airflow_batch_llm.warehouses.postgres.registration import DIALECT
from airflow_batch_llm.warehouses.publication import Table, Tables
from airflow_batch_llm.warehouses.target import Constraint, ConstraintKind, Rules

if TYPE_CHECKING:
    from psycopg import Column, Connection, Copy, RawCursor, ServerCursor
    from psycopg.pq.abc import PGconn


_BY_OID: dict[int, pa.DataType] = {
    16: pa.bool_(),
    17: pa.binary(),
    20: pa.int64(),
    21: pa.int16(),
    23: pa.int32(),
    114: pa.json_(pa.string()),
    700: pa.float32(),
    701: pa.float64(),
    1005: pa.list_(pa.int16()),
    1007: pa.list_(pa.int32()),
    1009: pa.list_(pa.string()),
    1015: pa.list_(pa.string()),
    1016: pa.list_(pa.int64()),
    1021: pa.list_(pa.float32()),
    1022: pa.list_(pa.float64()),
    1082: pa.date32(),
    1083: pa.time64("us"),
    1114: pa.timestamp("us"),
    1184: pa.timestamp("us", tz="UTC"),
    2950: pa.uuid(),
    3802: pa.json_(pa.string()),
}
_NUMERIC = 1700


def arrow_schema(description: "Sequence[Column]") -> pa.Schema:
    """Return the schema of a result. A type that Arrow lacks, such as a number without a scale, is text."""
    return pa.schema([(column.name, _arrow_type(column)) for column in description])


def _arrow_type(column: "Column") -> pa.DataType:
    if column.type_code == _NUMERIC and column.precision is not None:
        # NUMERIC(5, -2) holds 9999900, and NUMERIC(3, 5) holds 0.00999.
        places = column.scale or 0
        digits = max(column.precision - min(places, 0), places)
        return pa.decimal128(digits, max(places, 0)) if digits <= 38 else pa.string()
    return _BY_OID.get(column.type_code, pa.string())


def csv_type(type_: pa.DataType) -> pa.DataType:
    """Return the type that Arrow reads from COPY's CSV for a column of a result. Bytes are left for psycopg to read."""
    if isinstance(type_, pa.BaseExtensionType):
        return pa.string()
    return pa.binary() if pa.types.is_nested(type_) else type_


def read_as_text(cursor: "ServerCursor[Any]", columns: "Sequence[Column]", schema: pa.Schema) -> None:
    """Let a cursor return the server's text for every column that is text in the package, or made from text."""
    from psycopg.types.string import TextLoader

    for column, type_ in zip(columns, schema.types, strict=True):
        # A number without a scale comes as a Decimal, since another column of the result may have one.
        if csv_type(type_) == pa.string() and column.type_code != _NUMERIC:
            cursor.adapters.register_loader(column.type_code, TextLoader)


def copy_rows(batch: pa.RecordBatch) -> memoryview:
    """Return a plain record batch as COPY … (FORMAT csv) reads it: texts quoted, NULL an empty field without quotes."""
    arrays = [_csv_column(column) for column in batch.columns]
    sink = pa.BufferOutputStream()
    csv.write_csv(
        pa.RecordBatch.from_arrays(arrays, names=batch.schema.names),
        sink,
        csv.WriteOptions(include_header=False, quoting_style="all_valid"),
    )
    return memoryview(sink.getvalue())


def _csv_column(column: pa.Array) -> pa.Array:
    kind = of_arrow(column.type)
    if kind is ColumnKind.BINARY:
        texts: list[Any] = [None if value is None else "\\x" + value.hex() for value in column.to_pylist()]
        return pa.array(texts, pa.string())
    if kind is ColumnKind.TIMESTAMPTZ:
        # The sessions are in UTC, and writing the zone would take Arrow thirty times as long.
        return column.cast(pa.timestamp("us"))
    if kind in (ColumnKind.DECIMAL, ColumnKind.TIME) or pa.types.is_float16(column.type):
        return column.cast(pa.string())
    return column


#: The bytes of the CSV that are parsed at once. A single row may be larger.
_CSV_BYTES = 2 * 1024 * 1024
_MOST_ROWS = 20_000
_CANCEL_SECONDS = 5.0


class PostgresRead:
    """A query that is declared on a connection of its own, in a transaction that nothing else may end."""

    def __init__(
        self, connection: "Connection[Any]", query: str, parameters: Any, key: Sequence[str] = ()
    ) -> None:
        """`key` are the columns that name a row in messages."""
        from psycopg import IsolationLevel
        from psycopg.adapt import Transformer

        self._connection = connection
        self._key = key
        self._opened = ExitStack()
        self._opened.callback(connection.close)
        with ExitStack() as failed:
            failed.callback(self.close)
            self._query = query.encode()
            # Later copies show what the cursor saw when it was declared.
            connection.isolation_level = IsolationLevel.REPEATABLE_READ
            (limit,) = connection.execute("SHOW statement_timeout").fetchone() or ("0",)
            self._cursor = self._declared(parameters)
            self._columns: list[Column] = self._cursor.description or []
            self.schema = arrow_schema(self._columns)
            # The limit holds for each fetch of a cursor, but for the whole of a COPY, however slowly it is taken.
            self._copied = parameters is None and limit == "0" and bool(self._columns)
            if self._copied:
                read_as_text(self._cursor, self._columns, self.schema)
            else:
                # A cursor settles how a type is read when it first sees its result, so another cursor is needed.
                self._cursor.close()
                self._cursor = self._declared(parameters, self._columns)
            self._loaders = Transformer(self._cursor)
            failed.pop_all()

    def _declared(self, parameters: Any, columns: "Sequence[Column]" = ()) -> "ServerCursor[Any]":
        """Return a cursor that has begun the query and reads these columns as they should be."""
        cursor = self._connection.cursor(name=f"_llm_{uuid4().hex}")
        self._opened.callback(cursor.close)
        read_as_text(cursor, columns, arrow_schema(columns))
        cursor.execute(self._query, parameters)
        return cursor

    def close(self) -> None:
        """End the query, wherever it is, and close its connection."""
        with suppress(Exception):  # the connection may be broken already
            self._opened.close()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows, once."""
        with self._opened:
            if self._copied:
                yield from self._by_copy()
            else:
                yield from batches(self._fetch, self.schema)

    def _fetch(self, count: int) -> Sequence[Sequence[Any]]:
        from psycopg import DataError

        try:
            return self._cursor.fetchmany(count)
        except DataError:
            times = [field.name for field in self.schema if pa.types.is_temporal(field.type)]
        raise _unreadable(f"One of the columns {', '.join(times)} holds")

    def _by_copy(self) -> Iterator[pa.RecordBatch]:
        self._cursor.close()
        statement = b"COPY (" + self._query + b"\n) TO STDOUT (FORMAT csv)"
        copy = self._opened.enter_context(self._connection.cursor().copy(statement))
        self._opened.callback(self._abandon)
        # A header of our own: the query's names may repeat, and Arrow would take a first U+FEFF for a mark of the file's.
        header = ",".join(map(str, range(len(self.schema)))).encode() + b"\n"
        for text in _pieces(copy, header):
            yield from self._parsed(text)

    def _abandon(self) -> None:
        """Leave before the end: to read on until the server has stopped could take as long as the whole read."""
        from psycopg.pq import TransactionStatus

        if self._connection.info.transaction_status is TransactionStatus.ACTIVE:
            with suppress(Exception):
                self._connection.cancel_safe(timeout=_CANCEL_SECONDS)
        self._connection.close()

    def _parsed(self, text: bytearray) -> Iterator[pa.RecordBatch]:
        types = [csv_type(type_) for type_ in self.schema.types]
        try:
            table = _read_csv(text, types)
        except pa.ArrowInvalid:
            # A value that Arrow cannot read, such as the date 'infinity': psycopg reads or refuses it, as by the cursor.
            table = _read_csv(text, [pa.binary()] * len(types))
        for batch in table.to_batches(_MOST_ROWS):
            arrays = [self._array(place, batch) for place in range(batch.num_columns)]
            yield pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _array(self, place: int, batch: pa.RecordBatch) -> pa.Array:
        from psycopg import DataError
        from psycopg.pq import Format

        field, column = self.schema.field(place), batch.column(place)
        if column.type != pa.binary():
            return typed(column, field.type)
        load = self._loaders.get_loader(self._columns[place].type_code, Format.TEXT).load
        values = column.to_pylist()
        try:
            return typed_array([None if value is None else load(value) for value in values], field)
        except (DataError, SourceError):
            row = next(row for row, value in enumerate(values) if not _is_carried(value, load, field))
        raise _unreadable(f"The column {field.name} of {self._named(row, batch)} holds")

    def _named(self, row: int, batch: pa.RecordBatch) -> str:
        """Return the row's key, from columns that were read as text."""
        key = [(name, batch.column(self.schema.get_field_index(name))[row].as_py()) for name in self._key]
        return (
            "the row with " + ", ".join(f"{name}={bytes(value or b'').decode()}" for name, value in key)
            if key
            else "a row"
        )


def _is_carried(value: bytes | None, load: Callable[[bytes], Any], field: pa.Field) -> bool:
    from psycopg import DataError

    try:
        typed_array([None if value is None else load(value)], field)
    except (DataError, SourceError):
        return False
    return True


def _unreadable(holding: str) -> SourceError:
    return SourceError(
        f"{holding} a value that cannot be carried: infinity, NaN, or a year before 1 or after 9999. Replace it in"
        " the source's query, leave such rows out, or CAST the column to text."
    )


def _pieces(copy: "Copy", header: bytes) -> Iterator[bytearray]:
    """Yield the CSV in pieces of whole rows, each under the header.

    psycopg waits for a row; those that came with it are taken from libpq straight away, in a fraction of the time.
    """
    pgconn = copy.connection.pgconn
    piece = bytearray(header)
    length = 0
    while length >= 0 and (row := copy.read()):
        while row:
            piece += row
            if len(piece) >= _CSV_BYTES:
                yield piece
                piece = bytearray(header)
            length, row = pgconn.get_copy_data(1)
    if length < 0:
        _check_end(pgconn)
    if len(piece) > len(header):
        yield piece


def _check_end(pgconn: "PGconn") -> None:
    """Take in how a COPY ended, as psycopg does where it sees the end itself."""
    from psycopg.errors import error_from_result
    from psycopg.pq import ExecStatus

    for result in list(iter(pgconn.get_result, None)):
        if result.status != ExecStatus.COMMAND_OK:
            raise error_from_result(result)


def _read_csv(text: bytearray, types: list[pa.DataType]) -> pa.Table:
    """CSV as COPY writes it: NULL is an empty field without quotes."""
    return csv.read_csv(
        pa.BufferReader(text),
        csv.ReadOptions(use_threads=False, block_size=len(text) + 1),  # no row is cut in two
        csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        csv.ConvertOptions(
            column_types={str(place): type_ for place, type_ in enumerate(types)},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            true_values=["t"],
            false_values=["f"],
        ),
    )


_HOST = re.compile(r"[\w.:%/,\[\]-]*")
_PORT = re.compile(r"[0-9,]*")


def refuse_malformed(dsn: str) -> None:
    """Raise `InputError` for a DSN that libpq cannot read, or whose password is taken for another part of it."""
    from psycopg import Error
    from psycopg.conninfo import conninfo_to_dict

    try:
        parts = {name: str(value or "") for name, value in conninfo_to_dict(dsn).items()}
    except Error:
        parts = {"host": "@"}
    is_read = (
        _HOST.fullmatch(parts.get("host", ""))
        and _HOST.fullmatch(parts.get("hostaddr", ""))
        and _PORT.fullmatch(parts.get("port", ""))
        and not ("://" in dsn and "@" in parts.get("dbname", ""))
    )
    if not is_read:
        raise_alone(
            InputError(
                "The DSN of PostgreSQL cannot be read. It is not shown, because it may hold a password. Write "
                "postgresql://user:password@host:port/database, with @ : / ? # % in a password as %40 %3A %2F %3F %23 %25."
            )
        )


_COLUMNS = """
SELECT a.attname, format_type(coalesce(nullif(t.typbasetype, 0), a.atttypid), a.atttypmod)
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_UNIQUE = """
SELECT array_agg(a.attname::text) FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
WHERE i.indrelid = to_regclass($1) AND i.indisunique AND i.indimmediate AND i.indisvalid
AND i.indpred IS NULL AND i.indexprs IS NULL GROUP BY i.indexrelid
"""
_COLUMN_RULES = r"""
SELECT a.attname, a.attnotnull OR t.typnotnull, a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL,
a.attgenerated <> '' OR a.attidentity = 'a',
CASE WHEN to_jsonb(c) ->> 'collisdeterministic' = 'false' THEN c.collname::text
WHEN format_type(coalesce(nullif(t.typbasetype, 0), t.oid), NULL) ~ '\mcitext$' THEN 'citext' END
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_collation c ON c.oid = a.attcollation
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
"""
# A constraint of a domain counts for every column of that domain. A unique index may have no constraint.
_CONSTRAINTS = """
SELECT c.contype::text, c.conname::text, array(
    SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
) FROM pg_constraint c WHERE c.conrelid = to_regclass($1) AND c.contype IN ('c', 'f', 'x')
UNION ALL
SELECT 'c', d.conname::text, ARRAY[a.attname::text] FROM pg_attribute a JOIN pg_constraint d ON d.contypid = a.atttypid
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped AND d.contype = 'c'
UNION ALL
SELECT 'u', i.indexrelid::regclass::text, array(
    SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
) FROM pg_index i WHERE i.indrelid = to_regclass($1) AND i.indisunique AND i.indexprs IS NULL
"""
_KINDS = {
    "c": ConstraintKind.CHECK,
    "f": ConstraintKind.FOREIGN_KEY,
    "u": ConstraintKind.UNIQUE,
    "x": ConstraintKind.CHECK,  # an exclusion
}


def tables(cursor: "RawCursor[Any]", target: Target, *, with_rules: bool = False) -> Tables:
    """Both tables of a target as they are now. Their rules are read on request."""
    found = [
        table_of(cursor, name, target.key.names, with_rules=with_rules)
        for name in (target.table, target.failures)
    ]
    return Tables(target=found[0], failures=found[1])


def table_of(
    cursor: "RawCursor[Any]", name: str, key: Sequence[str], *, with_rules: bool = False
) -> Table | None:
    """Return a table as it is now, or None. Its rules are read on request."""
    quoted = DIALECT.table(name)
    columns = dict(cursor.execute(_COLUMNS, [quoted]).fetchall())
    if not columns:
        return None
    indexes = [set(names) for (names,) in cursor.execute(_UNIQUE, [quoted]).fetchall()]
    rules = _rules(cursor, name) if with_rules else Rules()
    return Table(columns=columns, unique=set(key) in indexes, rules=rules)


def known_tables(cursor: "RawCursor[Any]", target: Target) -> Mapping[str, bool]:
    """Return, for each of the two tables, whether it has rows to look up."""
    found = ((target.table, "_llm_planned_at"), (target.failures, "_llm_attempts"))
    return {
        name: column in dict(cursor.execute(_COLUMNS, [DIALECT.table(name)]).fetchall())
        for name, column in found
    }


def _rules(cursor: "RawCursor[Any]", name: str) -> Rules:
    quoted = DIALECT.table(name)
    columns = cursor.execute(_COLUMN_RULES, [quoted]).fetchall()
    constraints = cursor.execute(_CONSTRAINTS, [quoted]).fetchall()
    (is_secured,) = cursor.execute("SELECT row_security_active($1)", [quoted]).fetchone() or (False,)
    return Rules(
        not_null=frozenset(column for column, is_not_null, *_ in columns if is_not_null),
        with_default=frozenset(column for column, _, has_default, *_ in columns if has_default),
        generated=frozenset(column for column, _, _, is_generated, _ in columns if is_generated),
        folds=tuple((column, collation) for column, *_, collation in columns if collation),
        constraints=tuple(
            Constraint(kind=_KINDS[kind], name=called, columns=frozenset(names))
            for kind, called, names in constraints
        ),
        row_security=is_secured,
    )
