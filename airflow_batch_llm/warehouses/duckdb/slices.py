"""Read a table in slices, a query for each, where one query for all of it would take too much memory.

DuckDB decodes 2,048 rows of a column at once, however long their texts are. Of a column that is not compressed, it decodes
only the rows that a condition on the row's number lets through. It also holds a block of each column that a query reads.
The file is open for reading alone and no process writes to it, so the queries see the same rows.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.warehouses.dialect import table_rows
from airflow_batch_llm.warehouses.duckdb.file import DuckDBFile, has_row_numbers
from airflow_batch_llm.warehouses.duckdb.registration import DIALECT

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

logger = logging.getLogger(__name__)

#: The bytes and the rows of a slice, at most. It has more bytes if the table is wide, since a query then gives few of them.
_SLICE_BYTES, _WIDE_SLICE_BYTES, _SLICE_ROWS = 8 << 20, 16 << 20, 4_096
#: The most columns of a table that are read together, and the columns of one query if there are more.
_MANY_COLUMNS, _QUERY_COLUMNS = 64, 32
#: Long texts, in bytes, that do not take too much memory if they are read or decoded together.
_FEW_BYTES = 32 << 20
#: A slice gets more rows where they are short, and then some may be long. So many times its usual size is the most that it
#: can hold by that, if long texts are not rare in the table.
_GROWTH = 8

#: Each segment of a column with texts or bytes knows the longest of them. Newer files know their size, too.
_STORAGE = r"""
SELECT coalesce(sum(longest), 0), coalesce(sum(apart), 0)::BIGINT,
    coalesce(sum(usual), 0)::BIGINT, coalesce(sum(together), 0)::BIGINT
FROM (
    SELECT max(longest) AS longest,
        sum(len(additional_block_ids)) FILTER (compression = 'Uncompressed') * 262144 AS apart,
        max(usual) FILTER (compression = 'ZSTD') AS usual,
        max(usual * least(count, 2048)) FILTER (compression = 'ZSTD') AS together
    FROM (
        SELECT *, {} AS longest, coalesce({} / count, longest) AS usual
        FROM pragma_storage_info({}) WHERE list_contains(?, lower(column_name))
    ) WHERE longest IS NOT NULL GROUP BY column_id
)""".format(
    *(
        f"TRY_CAST(regexp_extract(stats::VARCHAR, '(?i){words}\\D+(\\d+)', 1) AS BIGINT)"
        for words in ("max.string.length", "total.string.length")
    ),
    "{}",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Describes the way in which a table stores the texts of some of its columns."""

    columns: tuple[str, ...]
    longest: int = 0
    """The bytes of the longest texts of these columns together."""
    apart: int = 0
    """The bytes of long texts that are not compressed: each can be read by itself."""
    usual: int = 0
    """The bytes of the compressed texts of a row, where they are longest on average."""
    together: int = 0
    """The bytes of compressed texts that can only be decoded together, at most."""

    @classmethod
    def of(cls, connection: "DuckDBPyConnection", table: str, columns: Sequence[str]) -> "Storage | None":
        """Return how a table is stored. None: it is a view, or a column of its own hides the numbers of its rows."""
        if not has_row_numbers(connection, table):
            return None
        quoted = DIALECT.table(table).replace("'", "''")
        facts = connection.execute(
            _STORAGE.format(f"'{quoted}'"), [[name.lower() for name in columns]]
        ).fetchall()
        [(longest, apart, usual, together)] = facts
        return cls(columns=tuple(columns), longest=int(longest), apart=apart, usual=usual, together=together)

    @property
    def is_wide(self) -> bool:
        """Return True if a slice takes several queries."""
        return len(self.columns) > _MANY_COLUMNS

    @property
    def is_sliced(self) -> bool:
        """Return True if the table is read in slices. A slice of compressed texts would take as much as all of them."""
        return (self.is_wide or self.apart > _FEW_BYTES) and self.together <= _FEW_BYTES

    @property
    def rows(self) -> int:
        """Return the number of rows that are converted at once, by their usual size."""
        return max(1, _SLICE_BYTES // max(1, self.usual))

    def warn(self, table: str) -> None:
        """Warn about texts that take much memory, since they can only be decoded together."""
        if self.together > _FEW_BYTES:
            logger.warning(
                "%s keeps its long texts or bytes compressed, and DuckDB decodes those of 2,048 rows together: about %s MB"
                " for some of them. Reading takes that much memory, and more. Create these columns with USING COMPRESSION"
                " uncompressed to read few rows at once, or read them from Parquet with small row groups.",
                table,
                f"{self.together // 1_000_000:,}",
            )


def read_sliced(
    file: DuckDBFile, connection: "DuckDBPyConnection", source: Source, storage: Storage
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a table, slice by slice. The size of a slice sets the number of rows of the next one."""
    table = DIALECT.table(source.table or "")
    # Columns of several queries are put side by side.
    connection.execute("SET preserve_insertion_order = true")
    [(last,)] = connection.execute(f"SELECT coalesce(max(rowid), -1) FROM {table}").fetchall()
    most = _WIDE_SLICE_BYTES if storage.is_wide else _SLICE_BYTES
    least = max(1, most // max(1, storage.longest))
    if_rare = most // _GROWTH * (last + 1) // max(1, storage.apart)
    at_most = min(max(_GROWTH * least, if_rare), _SLICE_ROWS)
    first, rows = 0, min(least, _SLICE_ROWS)
    while first <= last:
        numbered = f"(SELECT * FROM {table} WHERE rowid BETWEEN {first} AND {first + rows - 1}) AS q"
        found, size = _slice(file, connection, source, storage, numbered), 0
        if found is not None:
            size = found.nbytes
            yield found
        del found
        first += rows
        rows = min(most * rows // max(1, size), 2 * rows, at_most) or 1


def _slice(
    file: DuckDBFile, connection: "DuckDBPyConnection", source: Source, storage: Storage, numbered: str
) -> pa.RecordBatch | None:
    """Read some rows of a table, a few columns at a time if it has many."""
    columns, arrays = list(storage.columns), list[pa.Array]()
    step = _QUERY_COLUMNS if storage.is_wide else len(columns)
    for at in range(0, len(columns), step):
        listed = ", ".join(map(DIALECT.quote, columns[at : at + step]))
        query = table_rows(DIALECT, numbered, source.within, listed)
        for batch in connection.sql(query).to_arrow_reader(_SLICE_ROWS):
            arrays += batch.columns
        if storage.is_wide:
            file.forget(connection)
    return pa.RecordBatch.from_arrays(arrays, names=columns) if arrays else None
