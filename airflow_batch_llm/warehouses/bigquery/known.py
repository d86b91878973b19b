"""Find what the target already knows of keys, by one join in BigQuery.

Keys from elsewhere become a table that lives for one query; rows of BigQuery's own are joined where they lie. In a
partitioned target only the partitions between the lowest and the highest of the rows at hand are looked at.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.warehouses.base import KNOWN_COLUMNS
from airflow_batch_llm.warehouses.bigquery.connection import (
    Connection,
    Query,
    TableName,
    query_parameters,
    quoted,
)
from airflow_batch_llm.warehouses.bigquery.jobs import Work, stem_of
from airflow_batch_llm.warehouses.bigquery.registration import DIALECT
from airflow_batch_llm.warehouses.bigquery.sql import (
    HIGHEST,
    LOWEST,
    BigQueryTables,
    bound,
    bounds_of,
    known_join,
    staged_name,
)
from airflow_batch_llm.warehouses.bigquery.staging import StagingTable, file_schema, staged_batch, write_file
from airflow_batch_llm.warehouses.bigquery.tables import TargetTables
from airflow_batch_llm.warehouses.bigquery.types import gathered

_ORDINAL = "_llm_ordinal"

#: The limits as positional parameters, for a source that has such.
_POSITIONAL = ("?", "?")
_NAMED = (f"@{LOWEST}", f"@{HIGHEST}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLookup:
    """Looks keys up in one target."""

    connection: Connection
    target_tables: TargetTables

    def of_keys(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        """For each row of keys, in order: `KNOWN_COLUMNS`."""
        numbered = keys.append_column(_ORDINAL, pa.array(range(keys.num_rows), pa.int64()))
        name = replace(self.target_tables.staging, table=f"llm_keys_{uuid.uuid4().hex}")
        try:
            self._load(name, numbered)
            found = self._join(name, numbered).read_all()
        finally:
            self.connection.drop(name)
        found = found.sort_by(_ORDINAL).drop_columns([_ORDINAL]).cast(KNOWN_COLUMNS)
        return pa.RecordBatch.from_struct_array(found.to_struct_array().combine_chunks())

    def of_source(self, source: Source) -> pa.RecordBatchReader:
        """Return the rows of a source, each with `KNOWN_COLUMNS`."""
        needed = ", ".join(f"S.{quoted(name)}" for name in source.columns) or "S.*"
        return self._query(self.target_tables.look(), *self.statement(source, columns=needed))

    def statement(self, source: Source, *, columns: str) -> tuple[str, list[Any]]:
        """Return the query for these columns of a source's rows, each with `KNOWN_COLUMNS`, and its parameters."""
        tables = self.target_tables.look()
        select, parameters = self.connection.select(source), query_parameters(source.parameters)
        within = None
        if tables.bounded:
            places = _NAMED if isinstance(source.parameters, Mapping) or not parameters else _POSITIONAL
            within = bound(tables.target, "T", *places)
            limits = self._limits_of(tables, select, parameters)
            parameters = [*parameters, *limit_parameters(tables, limits, named=places is _NAMED)]
        return known_join(tables, select, columns=columns, within=within), parameters

    def _limits_of(self, tables: BigQueryTables, select: str, parameters: Sequence[Any]) -> tuple[Any, Any]:
        found = self._query(tables, bounds_of(tables.target, select), parameters).read_all()
        [row] = found.to_pylist()
        return row[LOWEST], row[HIGHEST]

    def _query(self, tables: BigQueryTables, sql: str, parameters: Sequence[Any]) -> pa.RecordBatchReader:
        query = Query(
            sql=sql,
            doing=f"looking up keys in {tables.answers.name}",
            parameters=parameters,
            labels=self.connection.labels(tables.target),
            location=self.connection.settings.location,
        )
        return self.connection.reads.query(query)

    def _join(self, name: TableName, keys: pa.RecordBatch) -> pa.RecordBatchReader:
        tables = self.target_tables.look()
        within, parameters = None, []
        if tables.bounded:
            within = bound(tables.target, "T", *_NAMED)
            limits = pc.min_max(keys.column(tables.target.partition_by)).as_py()
            parameters = limit_parameters(tables, (limits["min"], limits["max"]))
        columns = ", ".join(
            f"{gathered(staged_name(at), field.type, DIALECT.column_type(field.type))} AS {quoted(field.name)}"
            for at, field in enumerate(keys.schema)
        )
        source = f"SELECT {columns} FROM {name.quoted}"
        sql = known_join(tables, source, columns=f"S.{_ORDINAL}", within=within)
        return self._query(tables, sql, parameters)

    def _load(self, name: TableName, keys: pa.RecordBatch) -> None:
        table = StagingTable(
            name=name,
            schema=keys.schema,
            location=self.target_tables.location(),
            labels=self.connection.labels(self.target_tables.target),
        )
        batch = staged_batch(keys, keys.schema, frozenset(self.target_tables.target.key.names))
        with tempfile.TemporaryDirectory(prefix="bigquery-") as folder:
            path = Path(folder) / "keys.parquet"
            write_file(pa.RecordBatchReader.from_batches(file_schema(keys.schema), [batch]), path)
            self.connection.jobs.perform(
                Work(
                    doing=f"loading keys to look up in {self.target_tables.answers}",
                    stem=stem_of("keys", name),
                    content="keys",
                    location=table.location,
                    submit=lambda job_id: table.load(self.connection.client, path, job_id),
                )
            )


def limit_parameters(tables: BigQueryTables, limits: tuple[Any, Any], *, named: bool = True) -> list[Any]:
    """The lowest and the highest partition as query parameters, in the type of the target's column."""
    from google.cloud.bigquery import ScalarQueryParameter

    kind = tables.partition_type
    names = (LOWEST, HIGHEST) if named else (None, None)
    return [ScalarQueryParameter(name, kind, value) for name, value in zip(names, limits, strict=True)]
