"""The source, read once, on local disk: rows in one file, prompts in another, and the questions about all of them.

Whatever must be known about the whole table (is a key twice in it, which rows share a request, which rows another
run has bought) is asked of an embedded database over these files, so that memory does not grow with the rows.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.core.selection import SENT, Reason

#: Columns of a spooled row besides its own; they cannot collide with the user's.
SEQ, REASON, PROBLEM = "_llm_seq", "_llm_reason", "_llm_problem"
INPUT_HASH, ATTEMPTS = "_llm_input_hash", "_llm_attempts"
REQUEST, SHARED = "_llm_request", "_llm_shared"

PROMPTS = pa.schema([(SEQ, pa.int64()), ("prompt", pa.binary())])

_SENT_LIST = ", ".join(f"'{reason}'" for reason in sorted(SENT))
_MEMORY = "64MB"
_ROWS_AT_ONCE = 16_384


def quoted(name: str) -> str:
    """A column name as an identifier of the embedded database."""
    return '"' + name.replace('"', '""') + '"'


class Spool:
    """Two files that are written once, row by row, and then asked."""

    def __init__(self, folder: Path, columns: pa.Schema, key: Sequence[str]) -> None:
        self._folder = folder
        self._key = tuple(key)
        self.columns = columns
        own = [(SEQ, pa.int64()), (REASON, pa.string()), (PROBLEM, pa.string())]
        self._schema = pa.schema([*own, (INPUT_HASH, pa.string()), (ATTEMPTS, pa.int64()), *columns])
        self._rows = pq.ParquetWriter(
            folder / "rows.parquet", self._schema, compression="lz4", use_dictionary=[REASON]
        )
        self._prompts = pa.OSFile(str(folder / "prompts.arrow"), "wb")
        self._prompt_writer = pa.ipc.new_stream(self._prompts, PROMPTS)
        self._database: Any = None

    def write(self, rows: pa.RecordBatch, prompts: pa.RecordBatch) -> None:
        """Add the rows of one batch, and the prompts of those that are to be sent, both in source order."""
        self._rows.write_batch(rows.cast(self._schema))
        self._prompt_writer.write_batch(prompts)

    def finish(self) -> None:
        """Close the files; from now on they are asked."""
        import duckdb

        self._rows.close()
        self._prompt_writer.close()
        self._prompts.close()
        self._database = duckdb.connect(
            str(self._folder / "spool.duckdb"),
            config={"memory_limit": _MEMORY, "threads": 1, "temp_directory": str(self._folder / "spill")},
        )
        rows = str(self._folder / "rows.parquet").replace("'", "''")
        self._ask(f"CREATE VIEW rows AS SELECT * FROM read_parquet('{rows}')")
        self._ask("CREATE TABLE taken (seq BIGINT)")

    def duplicate_keys(self, most: int = 5) -> list[tuple[object, ...]]:
        """Some keys that the source holds more than once."""
        names = ", ".join(map(quoted, self._key))
        found = self._ask(
            f"SELECT {names} FROM rows GROUP BY {names} HAVING count(*) > 1 LIMIT {most}"
        ).fetchall()
        return list(found)

    def take_out(self, keys_file: Path) -> None:
        """Leave out the rows whose key and input another run has in flight: it is listed in its keys file."""
        same = " AND ".join(
            f"other.{quoted(name)} IS NOT DISTINCT FROM rows.{quoted(name)}" for name in self._key
        )
        path = str(keys_file).replace("'", "''")
        self._ask(
            f"INSERT INTO taken SELECT rows.{SEQ} FROM rows JOIN read_parquet('{path}') AS other"
            f" ON other.{INPUT_HASH} = rows.{INPUT_HASH} AND {same} WHERE rows.{REASON} IN ({_SENT_LIST})"
        )

    def number_requests(self) -> int:
        """Give every distinct request a number in source order; returns how many there are."""
        self._ask(f"""
            CREATE TABLE requests AS
            SELECT row_number() OVER (ORDER BY first) - 1 AS request, first, hash FROM (
                SELECT min({SEQ}) AS first, {INPUT_HASH} AS hash FROM rows
                WHERE {REASON} IN ({_SENT_LIST}) AND {SEQ} NOT IN (SELECT seq FROM taken)
                GROUP BY {INPUT_HASH})""")
        (count,) = self._ask("SELECT count(*) FROM requests").fetchone()
        return int(count)

    def reasons(self, requests: int) -> dict[Reason, int]:
        """How many rows have which reason, when only this many requests are sent."""
        counts = self._ask(f"""
            SELECT CASE WHEN {REASON} NOT IN ({_SENT_LIST}) THEN {REASON}
                        WHEN t.seq IS NOT NULL THEN '{Reason.IN_FLIGHT}'
                        WHEN q.request >= {requests} THEN '{Reason.POSTPONED}' ELSE {REASON} END AS why, count(*)
            FROM rows LEFT JOIN (SELECT DISTINCT seq FROM taken) t ON t.seq = rows.{SEQ}
            LEFT JOIN requests q ON q.hash = rows.{INPUT_HASH} GROUP BY why""").fetchall()
        return {Reason(why): count for why, count in counts}

    def prompts(self) -> Iterator[bytes]:
        """The prompt of each request, by number."""
        firsts = self._numbers()
        wanted = next(firsts, None)
        with pa.OSFile(str(self._folder / "prompts.arrow"), "rb") as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                sequence: list[int] = batch.column(0).to_pylist()
                texts: list[bytes] = batch.column(1).to_pylist()
                for seq, text in zip(sequence, texts, strict=True):
                    if seq == wanted:
                        yield text
                        wanted = next(firsts, None)

    def _numbers(self) -> Iterator[int]:
        reader = self._stream("SELECT first FROM requests ORDER BY request")
        for batch in reader:
            yield from batch.column(0).to_pylist()

    def keyed_rows(self, requests: int) -> Iterator[pa.RecordBatch]:
        """Every row that is sent, by request: the request's number, and whether an earlier row pays for it."""
        names = ", ".join(f"r.{quoted(name)}" for name in self.columns.names)
        reader = self._stream(f"""
            SELECT q.request AS {REQUEST}, r.{SEQ} <> q.first AS {SHARED}, r.{INPUT_HASH}, r.{ATTEMPTS}, {names}
            FROM rows r JOIN requests q ON q.hash = r.{INPUT_HASH}
            WHERE r.{REASON} IN ({_SENT_LIST}) AND r.{SEQ} NOT IN (SELECT seq FROM taken) AND q.request < {requests}
            ORDER BY q.request, r.{SEQ}""")
        schema = keys_schema(self.columns)
        for batch in reader:
            yield batch.cast(schema)

    def rows_with(self, reason: Reason) -> pa.RecordBatchReader:
        """The rows that were given this reason while reading."""
        names = ", ".join(map(quoted, self.columns.names))
        reader = self._stream(
            f"SELECT {INPUT_HASH}, {ATTEMPTS}, {PROBLEM}, {names} FROM rows WHERE {REASON} = '{reason}' ORDER BY {SEQ}"
        )
        own = [(INPUT_HASH, pa.string()), (ATTEMPTS, pa.int64()), (PROBLEM, pa.string())]
        schema = pa.schema([*own, *self.columns])
        return pa.RecordBatchReader.from_batches(schema, (batch.cast(schema) for batch in reader))

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def _ask(self, sql: str) -> Any:
        return self._database.cursor().execute(sql)

    def _stream(self, sql: str) -> pa.RecordBatchReader:
        return self._database.cursor().sql(sql).to_arrow_reader(_ROWS_AT_ONCE)


def keys_schema(columns: pa.Schema) -> pa.Schema:
    """The columns of a shard's keys file."""
    return pa.schema(
        [
            (REQUEST, pa.int64()),
            (SHARED, pa.bool_()),
            (INPUT_HASH, pa.string()),
            (ATTEMPTS, pa.int64()),
            *columns,
        ]
    )
