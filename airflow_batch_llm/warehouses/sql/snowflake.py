"""Snowflake: rows leave as Arrow, answers come in as a Parquet file by PUT and COPY INTO.

File, stage and the table that is copied into belong to the session and go with it; a part is there from the one
statement that makes its table of them. Proven on an emulator, which has no accounts, rights, roles, warehouses
or results of several chunks; on Snowflake itself nothing was run.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.errors import BatchLLMError, SourceError, WarehouseError
from airflow_batch_llm.warehouses.arrow import batches, plain_batch, plain_schema, typed
from airflow_batch_llm.warehouses.base import Part, Target, Warehouse
from airflow_batch_llm.warehouses.dialect import ANSI_TYPES, Upsert
from airflow_batch_llm.warehouses.kind import ColumnKind
from airflow_batch_llm.warehouses.publication import Staged, staged_columns
from airflow_batch_llm.warehouses.registration import AirflowConnection, WarehouseType
from airflow_batch_llm.warehouses.sql.catalogue import InformationSchema, SqlDialect
from airflow_batch_llm.warehouses.sql.warehouse import JoiningSqlWarehouse

_NUMBER = 0  # its type code
_TYPE_OF = "CASE data_type WHEN 'NUMBER' THEN 'NUMBER(' || numeric_precision || ',' || numeric_scale || ')' ELSE data_type END"


def _integer(column: Sequence[Any]) -> pa.DataType | None:
    """NUMBER(38, 0) is an integer: Snowflake has no other."""
    return pa.int64() if (column[1], column[4], column[5]) == (_NUMBER, 38, 0) else None


DIALECT = SqlDialect(
    name="snowflake",
    title="Snowflake",
    types={
        **ANSI_TYPES,
        ColumnKind.STRING: "VARCHAR",
        ColumnKind.REAL: "FLOAT",
        ColumnKind.DOUBLE: "FLOAT",
        ColumnKind.DECIMAL: "NUMBER({},{})",
        ColumnKind.TIMESTAMP: "TIMESTAMP_NTZ",
        ColumnKind.TIMESTAMPTZ: "TIMESTAMP_TZ",
        ColumnKind.BINARY: "BINARY",
        ColumnKind.UUID: "VARCHAR(36)",
        ColumnKind.JSON: "VARIANT",
        ColumnKind.VECTOR: "VARIANT",
    },
    upsert=Upsert.MERGE,
    from_text={ColumnKind.JSON: "PARSE_JSON({})", ColumnKind.VECTOR: "PARSE_JSON({})"},
    clustered="CLUSTER BY ({})",
    max_identifier=255,
    placeholder="%s",
    session="ALTER SESSION SET TIMEZONE = 'UTC', DATE_INPUT_FORMAT = 'AUTO', TIME_INPUT_FORMAT = 'AUTO', "
    "TIMESTAMP_INPUT_FORMAT = 'AUTO'",
    upper_case=True,
    catalogue=InformationSchema(
        type_of=_TYPE_OF,
        current_catalog="CURRENT_DATABASE()",
        filled_by="CASE WHEN is_identity = 'YES' THEN 'AUTO_INCREMENT' END",
    ),
    type_codes={
        _NUMBER: ColumnKind.DECIMAL,
        1: ColumnKind.DOUBLE,
        2: ColumnKind.STRING,
        3: ColumnKind.DATE,
        4: ColumnKind.TIMESTAMP,
        8: ColumnKind.TIMESTAMP,
        **dict.fromkeys((5, 9, 10), ColumnKind.JSON),
        **dict.fromkeys((6, 7), ColumnKind.TIMESTAMPTZ),
        11: ColumnKind.BINARY,
        12: ColumnKind.TIME,
        13: ColumnKind.BOOLEAN,
    },
    described_as=_integer,
)


_BATCH_ROWS = 20_000
#: Errors that speak of names and rights alone: an unknown column or object, a privilege that is missing.
_ABOUT_THE_STATEMENT = frozenset({904, 2003, 2043, 3001})


class SnowflakeWarehouse(JoiningSqlWarehouse):
    """A Snowflake database, by its connector."""

    def __init__(self, connect: Callable[[], Any], *, asset_uri: str = "") -> None:
        """`connect` opens a connection of snowflake-connector-python."""
        super().__init__(connect, DIALECT, asset_uri=asset_uri)

    def load(
        self, target: Target, part: Part, answers: pa.RecordBatchReader, failures: pa.RecordBatchReader
    ) -> None:
        # The answers' table comes last: where it is, the other is too.
        named = self._part_tables(target, part)
        with self._cursor() as cursor:
            for name, reader in zip(named, (failures, answers), strict=True):
                self._load(cursor, target, name, reader)

    def _probe_staging(self, target: Target) -> None:
        super()._probe_staging(target)
        with self._cursor() as cursor:
            trial = self._staging_table(target, f"probe_{uuid4().hex[:16]}")
            cursor.execute(f"CREATE TEMPORARY STAGE {trial}")

    def _load(self, cursor: Any, target: Target, name: str, reader: pa.RecordBatchReader) -> None:
        """The rows as a table, which is there whole or not at all."""
        token = uuid4().hex[:16]
        stage, loaded = (self._staging_table(target, f"{kind}_{token}") for kind in ("stage", "load"))
        columns = staged_columns(reader.schema, target.key.names, self._statements)
        with tempfile.TemporaryDirectory(prefix="llm-stage-") as folder:
            file = Path(folder) / f"{token}.parquet"
            self._write(file, target, reader)
            cursor.execute(f"CREATE TEMPORARY STAGE {stage}")
            cursor.execute(f"PUT 'file://{file.as_posix()}' @{stage} AUTO_COMPRESS = FALSE")
        cursor.execute(f"CREATE TEMPORARY TABLE {loaded} ({', '.join(columns)})")
        cursor.execute(self._copy(loaded, stage, target, reader.schema))
        cursor.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM {loaded}")
        cursor.execute(f"DROP TABLE {loaded}")

    def _write(self, file: Path, target: Target, reader: pa.RecordBatchReader) -> None:
        # Columns go by number: no name has to survive the way through Parquet and a path in a variant.
        numbered = [f"c{place}" for place in range(len(reader.schema))]
        plain = plain_schema(reader.schema, self._dialect)
        schema = pa.schema(list(zip(numbered, plain.types, strict=True)))
        with pq.ParquetWriter(file, schema, compression="snappy") as writer:
            for batch in reader:
                rows = plain_batch(batch, frozenset(target.key.names), self._dialect)
                writer.write_batch(pa.RecordBatch.from_arrays(rows.columns, schema=schema))

    def _copy(self, table: str, stage: str, target: Target, schema: pa.Schema) -> str:
        key = frozenset(target.key.names)
        chosen = ", ".join(
            f"$1:c{place}::{self._dialect.staged_type(field.type, key=field.name in key)}"
            for place, field in enumerate(schema)
        )
        return (
            f"COPY INTO {table} FROM (SELECT {chosen} FROM @{stage}) "
            "FILE_FORMAT = (TYPE = PARQUET USE_LOGICAL_TYPE = TRUE BINARY_AS_TEXT = FALSE) PURGE = TRUE"
        )

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        """A CREATE ends a transaction, so there is one for the merge alone."""
        with self._cursor() as cursor:
            yield cursor
            self._writing.commit()  # where the connection was opened without autocommit

    @contextmanager
    def _published_from(self, target: Target, parts: Sequence[Part]) -> Iterator[tuple[Any, Staged]]:
        with super()._published_from(target, parts) as (cursor, staged):
            cursor.execute("BEGIN")
            yield cursor, staged
            cursor.execute("COMMIT")

    def _first_rows(self, cursor: Any) -> list[tuple[Any, ...]]:  # noqa: ARG002 - the driver tells all types
        return []  # a row that is fetched is not in the Arrow batches any more

    def _batches(
        self,
        connection: Any,
        cursor: Any,
        first: list[tuple[Any, ...]],  # noqa: ARG002 - there are none
        schema: pa.Schema,
    ) -> Iterator[pa.RecordBatch]:
        with self._translated():
            tables = _arrow_tables(cursor)
            if tables is None:
                yield from batches(cursor.fetchmany, schema)
            for table in tables or ():
                for batch in table.to_batches(_BATCH_ROWS):
                    arrays = [
                        _as_described(array, field)
                        for array, field in zip(batch.columns, schema, strict=True)
                    ]
                    yield pa.RecordBatch.from_arrays(arrays, schema=schema)
            cursor.close()
            connection.close()
            self._reading.remove(connection)

    def _open(self) -> Any:
        connection = super()._open()
        connection.arrow_number_to_decimal_setter = True  # otherwise NUMBER(12, 2) comes as a double
        return connection

    def _describe(self, error: Exception) -> BatchLLMError:
        if getattr(error, "errno", None) not in _ABOUT_THE_STATEMENT:
            return super()._describe(error)
        return WarehouseError(f"Snowflake refused a statement: {getattr(error, 'msg', error)}")


def _arrow_tables(cursor: Any) -> Iterator[pa.Table] | None:
    """None where the account or the session has Arrow switched off."""
    try:
        tables: Iterator[pa.Table] = cursor.fetch_arrow_batches()
    except Exception as error:
        if type(error).__name__ == "NotSupportedError":  # DB-API's name for it in every driver
            return None
        raise
    return tables


def _as_described(array: pa.Array, field: pa.Field) -> pa.Array:
    """The connector chooses the width of numbers and the unit of times by what is in a batch."""
    if isinstance(field.type, pa.JsonType):
        return typed(array.cast(pa.string()), field.type)
    safe = not pa.types.is_temporal(field.type)  # Snowflake keeps nanoseconds, we keep microseconds
    with suppress(pa.ArrowException):
        return array.cast(field.type, safe=safe)
    raise SourceError(
        f"The column {field.name} was read as {field.type}, and some of its rows do not fit. "
        "CAST it to VARCHAR in the source's query."
    )


def _open_connection(connection: AirflowConnection) -> Warehouse:
    hook = connection.hook(**connection.hook_params)
    asked = {**connection.extra, **connection.hook_params}
    uri = f"snowflake://{asked.get('account', '')}/{asked.get('database', '')}".rstrip("/")
    return SnowflakeWarehouse(hook.get_conn, asset_uri=uri)


WAREHOUSE = WarehouseType(
    name="snowflake",
    dialect=DIALECT,
    connection_types=frozenset({"snowflake"}),
    open_connection=_open_connection,
    requirement="apache-airflow-providers-snowflake",
    hook_params=frozenset(
        {
            "account",
            "authenticator",
            "database",
            "region",
            "role",
            "schema",
            "session_parameters",
            "warehouse",
        }
    ),
)
