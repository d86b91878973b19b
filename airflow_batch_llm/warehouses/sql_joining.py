"""A DB-API database that joins the target to the source where it reads, so that no key is looked up afterwards.

Every database but SQL Server, whose subqueries take neither ORDER BY nor WITH, both of which sources have.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.warehouses.base import KNOWN_COLUMNS, Target
from airflow_batch_llm.warehouses.dialect import PARAMETER, dialect_named
from airflow_batch_llm.warehouses.plain import refuse_padded_keys
from airflow_batch_llm.warehouses.sql import SqlWarehouse


class JoiningSqlWarehouse(SqlWarehouse):
    """A database that takes any source in a subquery."""

    def read_known(self, source: Source, target: Target) -> pa.RecordBatchReader:
        with self._transaction() as cursor:
            there = self._known_tables(cursor, target)
        query = self._statements.read_known(PARAMETER, target, there)
        if source.parameters is not None and "%" in self._dialect.placeholder:
            query = query.replace("%", "%%")
        query = query.replace(PARAMETER, self._statements.select(source))
        reader = self._stream(query, source.parameters, KNOWN_COLUMNS)
        return pa.RecordBatchReader.from_batches(reader.schema, self._checked(reader, target.key.names))

    def _checked(self, reader: pa.RecordBatchReader, key: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for batch in reader:
            refuse_padded_keys(batch, key, self._dialect)
            yield batch


def sql_warehouse(connect: Callable[[], Any], dialect: str, *, asset_uri: str = "") -> SqlWarehouse:
    """The adapter of a dialect that has none of its own."""
    joins = dialect_named(dialect).nests_any_select
    return (JoiningSqlWarehouse if joins else SqlWarehouse)(connect, dialect, asset_uri=asset_uri)
