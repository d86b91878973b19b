"""Keep the source on the local disk: rows in one file, prompts in another, and query them.

An embedded database over these files answers questions about all rows, such as which keys occur twice, which rows share
a request, and which another run has bought. So memory does not grow with the rows.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from airflow_batch_llm.core.selection import PLANNED, REUSABLE, SENT, Reason
from airflow_batch_llm.stage.plan.carried import comparable, restored, stored, stored_rows, stored_schema
from airflow_batch_llm.warehouses.arrow import (
    RowGroups,
    SortedReader,
    int64_scalar,
    parquet_batches,
    rows_that_fit,
)

#: Columns of a spooled row besides the source's. Their names cannot collide with the user's.
SEQ, REASON, PROBLEM = "_llm_seq", "_llm_reason", "_llm_problem"
INPUT_HASH, ATTEMPTS, ROUTE = "_llm_input_hash", "_llm_attempts", "_llm_route"
REQUEST, SHARED = "_llm_request", "_llm_shared"
#: The hash of the same input that answers, failures and runs of earlier releases have.
EARLIER_HASH = "_llm_earlier_hash"
_FIRST = "_llm_first"
#: The spec of the answer that a row gets a copy of.
REUSED_SPEC = "_llm_reused_spec"

_HASHES = pa.schema([("hash", pa.string())])
PROMPTS = pa.schema([(SEQ, pa.int64()), ("prompt", pa.binary())])

_SENT_LIST, _REUSABLE_LIST, _PLANNED_LIST = (
    ", ".join(f"'{one}'" for one in sorted(some)) for some in (SENT, REUSABLE, PLANNED)
)

#: Rows that one join or window holds in memory, and the memory of the database. More rows are queried in passes.
_ROWS_AT_ONCE = 1_000_000
_MEMORY = "64MB"


def quoted(name: str) -> str:
    """A column name as an identifier of the embedded database."""
    return '"' + name.replace('"', '""') + '"'


#: The files of a spool, in its folder.
ROWS_FILE, PROMPTS_FILE = "rows.parquet", "prompts.arrow"


class Spool:
    """Two files that are written once, row by row, and then queried. Or the files of several spools, queried as one."""

    def __init__(
        self, folder: Path, columns: pa.Schema, key: Sequence[str], written: Sequence[Path] = ()
    ) -> None:
        """`columns`: the key and carried columns, in their carried types. `written`: folders of spools, in their order."""
        self._folder = folder
        self._folders = list(written) or [folder]
        self._key = pa.schema([columns.field(name) for name in key])
        self._carried = columns
        self.columns = stored_schema(columns)
        own = [(SEQ, pa.int64()), (REASON, pa.string()), (PROBLEM, pa.string())]
        numbers = [(ATTEMPTS, pa.int64()), (ROUTE, pa.int64())]
        hashes = [(INPUT_HASH, pa.string()), (EARLIER_HASH, pa.string())]
        self._schema = pa.schema([*own, *hashes, *numbers, *self.columns])
        if not written:
            # Statistics of all carried columns would stay in memory.
            few: Any = {"use_dictionary": [REASON, ROUTE], "write_statistics": [SEQ, REASON, *key]}
            self._rows = pq.ParquetWriter(folder / ROWS_FILE, self._schema, compression="lz4", **few)
            self._groups = RowGroups(self._rows)
            self._prompts = pa.OSFile(str(folder / PROMPTS_FILE), "wb")
            self._prompt_writer = pa.ipc.new_stream(self._prompts, PROMPTS)
        self._is_written = bool(written)
        self._database: Any = None
        files = [pq.read_metadata(path / ROWS_FILE) for path in written]
        self.count: int = sum(file.num_rows for file in files)
        self._size = sum(
            file.row_group(group).total_byte_size for file in files for group in range(file.num_row_groups)
        )

    def write_prompts(self, prompts: pa.RecordBatch) -> None:
        """Add prompts of rows that are to be sent, in source order. Each call's are read back together."""
        self._prompt_writer.write_batch(prompts)

    def write(self, rows: pa.RecordBatch) -> None:
        """Add the rows of one batch, in source order.

        The key and carried columns come in the source's types.
        """
        batch = stored_rows(rows, self._carried, self._schema)
        self.count, self._size = self.count + batch.num_rows, self._size + batch.nbytes
        self._groups.write(batch)

    def close_files(self) -> None:
        """Write the remaining rows."""
        if not self._is_written:
            self._groups.flush()
            self._rows.close()
            self._prompt_writer.close()
            self._prompts.close()
            self._is_written = True

    def finish(self) -> None:
        """Close the files. From now on they are queried."""
        import duckdb

        self.close_files()
        config: Any = {"memory_limit": _MEMORY, "threads": 1, "temp_directory": str(self._folder / "spill")}
        self._database = duckdb.connect(str(self._folder / "spool.duckdb"), config=config)
        self._ask(f"CREATE VIEW rows AS SELECT * FROM {self._read_rows()}")
        self._ask(f"CREATE TABLE taken ({SEQ} BIGINT)")
        self._ask("CREATE TABLE wanted (hash UUID)")
        self._ask("CREATE TABLE answered (spec INTEGER, hash UUID)")
        self._ask(f"CREATE TABLE reused ({SEQ} BIGINT, spec INTEGER, hash UUID)")

    def _read_rows(self) -> str:
        paths = (str(folder / ROWS_FILE).replace("'", "''") for folder in self._folders)
        return "read_parquet([" + ", ".join(f"'{path}'" for path in paths) + "])"

    def postpone_beyond(self, most: int) -> None:
        """Postpone the rows beyond this number of sent ones, since spools that were written apart do not know each other."""
        planned = f"{REASON} IN ({_PLANNED_LIST})"
        beyond = self._ask(
            f"SELECT {SEQ} FROM rows WHERE {planned} ORDER BY {SEQ} LIMIT 1 OFFSET {most}"
        ).fetchone()
        if beyond is not None:
            is_beyond = f"{planned} AND {SEQ} >= {beyond[0]}"
            self._ask(f"""
                CREATE OR REPLACE VIEW rows AS SELECT * REPLACE (
                CASE WHEN {is_beyond} THEN '{Reason.POSTPONED}' ELSE {REASON} END AS {REASON},
                CASE WHEN {is_beyond} THEN NULL ELSE {PROBLEM} END AS {PROBLEM}) FROM {self._read_rows()}""")

    def _ranges(self) -> list[str]:
        """Return conditions that cut rows by their numbers. Each part is small enough for a join."""
        parts = self._ask(f"SELECT {SEQ} // {_ROWS_AT_ONCE} AS part FROM rows GROUP BY 1 ORDER BY 1")
        firsts = [part * _ROWS_AT_ONCE for (part,) in parts.fetchall()]
        return [f"{SEQ} BETWEEN {first} AND {first + _ROWS_AT_ONCE - 1}" for first in firsts]

    def _by_hash(self, hashes: str, table: str) -> list[str]:
        """Return conditions that cut a table by hashes of its rows. Each part is small enough for a join or a window."""
        passes = 1 + self._count(table) // _ROWS_AT_ONCE
        return [f"hash({hashes}) % {passes} = {number}" for number in range(passes)]

    def _count(self, table: str) -> int:
        (count,) = self._ask(f"SELECT count(*) FROM {table}").fetchone()
        return int(count)

    def duplicate_keys(self, most: int = 5) -> list[pa.RecordBatch]:
        """Return some keys that the source holds more than once."""
        names = ", ".join(map(quoted, self._key.names))
        for some in self._by_hash(names, "rows"):
            query = f"SELECT {names} FROM rows WHERE {some} GROUP BY {names} HAVING count(*) > 1 LIMIT {most}"
            if found := [restored(batch, self._key) for batch in self._stream(query) if batch.num_rows]:
                return found
        return []

    def take_out(self, keys_file: Path, key: pa.Schema, routes: Sequence[int]) -> int:
        """Leave out the rows of these routes whose key and input another run has in flight. Returns their number.

        `keys_file` lists the other run's rows, and `key` has the carried types of its key. A number is the same key in every
        type that holds it.
        """
        if key.equals(self._key):
            return self._take_out(keys_file, routes)
        if sorted(key.names) != sorted(self._key.names):
            return 0
        path = keys_file.with_suffix(".comparable")
        self._write_comparable(keys_file, key, path)
        taken = self._take_out(path, routes)
        path.unlink()
        return taken

    def _write_comparable(self, keys_file: Path, key: pa.Schema, path: Path) -> None:
        """Write another run's keys file with its keys in the types of this run."""
        schema = pa.schema([(INPUT_HASH, pa.string()), *stored_schema(self._key)])
        with pq.ParquetFile(keys_file) as file, pq.ParquetWriter(path, schema) as writer:
            for batch in parquet_batches(file):
                theirs = restored(batch, key)
                keys = [stored(comparable(theirs.column(ours.name), ours.type)) for ours in self._key]
                writer.write_batch(
                    pa.RecordBatch.from_arrays([batch.column(INPUT_HASH), *keys], schema=schema)
                )

    def _take_out(self, keys_file: Path, routes: Sequence[int]) -> int:
        same = " AND ".join(f"other.{quoted(name)} = rows.{quoted(name)}" for name in self._key.names)
        path = str(keys_file).replace("'", "''")
        (taken,) = self._ask(
            f"INSERT INTO taken SELECT rows.{SEQ} FROM rows JOIN read_parquet('{path}') AS other"
            f" ON {same} AND other.{INPUT_HASH} IN (rows.{INPUT_HASH}, rows.{EARLIER_HASH})"
            f" WHERE rows.{REASON} IN ({_SENT_LIST}) AND rows.{ROUTE} IN ({', '.join(map(str, routes))})"
        ).fetchone()
        return int(taken)

    def reusable(self) -> int:
        """Return the number of different hashes of the rows that may get a copy of an answer; of many, that of the rows."""
        (rows,) = self._ask(f"SELECT count(*) FROM rows WHERE {REASON} IN ({_REUSABLE_LIST})").fetchone()
        if rows > _ROWS_AT_ONCE:
            return int(rows)
        self._want()
        return self._count("wanted")

    def _want(self) -> None:
        """Note these hashes, unless that is done. Each pass reads all rows, so of many it waits for an answer."""
        for some in () if self._count("wanted") else self._by_hash("hash", "rows"):
            both = f"SELECT unnest([{INPUT_HASH}, {EARLIER_HASH}])::UUID AS hash FROM rows WHERE {REASON} IN ({_REUSABLE_LIST})"
            self._ask(f"INSERT INTO wanted SELECT DISTINCT hash FROM ({both}) WHERE {some}")

    def reusable_hashes(self, most: int) -> Iterator[list[str]]:
        """Yield the input hashes of these rows, some at a time. They are few."""
        self._want()
        found = self._ask("SELECT replace(hash::VARCHAR, '-', '') FROM wanted").fetchall()
        for start in range(0, len(found), most):
            yield [digest for (digest,) in found[start : start + most]]

    def note_answered(self, spec: int, hashes: Iterable[pa.RecordBatch]) -> None:
        """Note the inputs that have answers by a spec, of those that are asked for."""
        path = self._folder / "answered.parquet"
        found = 0
        with pq.ParquetWriter(path, _HASHES, compression="lz4", use_dictionary=False) as writer:
            for batch in hashes:
                texts = batch.column(0).cast(pa.string())
                writer.write_batch(pa.RecordBatch.from_arrays([texts], schema=_HASHES))
                found += batch.num_rows
        if found:
            self._want()
        source = str(path).replace("'", "''")
        for some in self._by_hash("hash", "wanted"):
            self._ask(f"""
                INSERT INTO answered SELECT DISTINCT {spec}, hash FROM
                (SELECT TRY_CAST(hash AS UUID) AS hash FROM read_parquet('{source}'))
                WHERE {some} AND hash IN (SELECT hash FROM wanted WHERE {some})""")
        path.unlink()

    def reuse(self, current: Sequence[Sequence[int]]) -> int:
        """Choose the rows that get a copy: those with an answer by a spec that is current for their route.

        `current` are the specs of each route by number, the first one first. Rows that other runs buy are left to them.
        Returns the number of rows.
        """
        ranks = ", ".join(
            f"({route}, {spec}, {rank})"
            for route, specs in enumerate(current)
            for rank, spec in enumerate(specs)
        )
        self._ask(f"CREATE OR REPLACE TABLE same ({SEQ} BIGINT, spec INTEGER, hash UUID, rank INTEGER)")
        for some in self._by_hash("hash", "answered"):
            self._ask(f"""
                INSERT INTO same SELECT {SEQ}, ranks.spec, answered.hash, ranks.rank FROM
                (SELECT {SEQ}, {ROUTE} AS route, unnest([{INPUT_HASH}, {EARLIER_HASH}])::UUID AS hash FROM rows
                 WHERE {REASON} IN ({_REUSABLE_LIST})) AS rows
                JOIN (VALUES {ranks}) AS ranks (route, spec, rank) ON ranks.route = rows.route
                JOIN (FROM answered WHERE {some}) AS answered
                  ON answered.hash = rows.hash AND answered.spec = ranks.spec""")
        self._ask("DELETE FROM reused")
        for some in self._ranges() if self._count("same") else ():
            self._ask(f"""
                INSERT INTO reused SELECT {SEQ}, arg_min(spec, rank), arg_min(hash, rank) FROM same
                WHERE {some} AND {SEQ} NOT IN (SELECT {SEQ} FROM taken WHERE {some}) GROUP BY {SEQ}""")
        return self._count("reused")

    def apart_from_requests(self, specs: Sequence[str]) -> pa.RecordBatchReader:
        """Return the rows without a request of their own: those that cannot be sent, and those that get a copy.

        A copy comes with the spec and the input hash of the answer.
        """
        names = ", ".join(f"rows.{quoted(name)}" for name in self.columns.names)
        hashes = ", ".join(f"'{spec}'" for spec in specs)
        parts = (
            self._stream(f"""
                SELECT coalesce(replace(reused.hash::VARCHAR, '-', ''), {INPUT_HASH}) AS {INPUT_HASH},
                       {ATTEMPTS}, {PROBLEM}, [{hashes}][reused.spec + 1] AS {REUSED_SPEC}, {names}
                FROM (FROM rows WHERE {some}) AS rows LEFT JOIN (FROM reused WHERE {some}) AS reused USING ({SEQ})
                WHERE {REASON} = '{Reason.UNSENDABLE}' OR reused.spec IS NOT NULL ORDER BY {SEQ}""")
            for some in self._ranges()
        )
        own = [(INPUT_HASH, pa.string()), (ATTEMPTS, pa.int64()), (PROBLEM, pa.string())]
        schema = pa.schema([*own, (REUSED_SPEC, pa.string()), *self.columns])
        rows = (batch.cast(schema) for part in parts for batch in part)
        return pa.RecordBatchReader.from_batches(schema, rows)

    def number_requests(self, ranks: Sequence[int], specs: Sequence[int]) -> list[int]:
        """Find for every row that is sent the first one with the same request; returns the number of requests by route.

        Rows of two routes with the same spec share a request. It takes the route of the lower rank. A request's number is
        its place among the first ones of its route. The memory of a join and of a window grows with the rows, while that of
        sorting does not: so equal hashes are looked for in passes, each over the rows of some hashes.
        """
        by_rank = sorted(range(len(ranks)), key=ranks.__getitem__)
        columns = f"({SEQ} BIGINT, {REASON} VARCHAR, {INPUT_HASH} UUID, {ROUTE} BIGINT"
        self._ask(f"CREATE OR REPLACE TABLE open {columns})")
        for some in self._ranges():
            self._ask(f"""
                INSERT INTO open SELECT {SEQ}, {REASON}, {INPUT_HASH}::UUID, {ROUTE} FROM rows
                WHERE {some} AND {REASON} IN ({_SENT_LIST}) AND {SEQ} NOT IN
                (SELECT {SEQ} FROM taken WHERE {some} UNION ALL SELECT {SEQ} FROM reused WHERE {some})""")
        self._ask(f"CREATE OR REPLACE TABLE unsorted {columns}, {_FIRST} BIGINT)")
        for some in self._by_hash(INPUT_HASH, "open"):
            self._ask(f"""
                INSERT INTO unsorted SELECT {SEQ}, {REASON}, {INPUT_HASH},
                       {_looked_up(by_rank, f"min({_looked_up(ranks, ROUTE)}) OVER same")}, min({SEQ}) OVER same FROM open
                WHERE {some} WINDOW same AS (PARTITION BY {_looked_up(specs, ROUTE)}, {INPUT_HASH})""")
        self._ask("DROP TABLE open")
        self._ask(f"CREATE OR REPLACE TABLE sent AS FROM unsorted ORDER BY {SEQ}")
        self._ask("DROP TABLE unsorted")
        return self._requests_by_route(range(len(ranks)))

    def set_apart(self, most: int, allowed: Sequence[int]) -> list[int]:
        """Move requests to routes of their own: of those that are sent, the ones with the smallest hashes.

        `allowed` is the number of requests that each route sends. A request of the route 1 of 3 moves to the route 4. Returns
        the number of requests by these routes.
        """
        routes = len(allowed)
        beyond = self._beyond(allowed)
        self._ask(f"""
            CREATE OR REPLACE TABLE apart AS SELECT {SEQ} FROM sent
            WHERE {SEQ} = {_FIRST} AND NOT ({beyond}) ORDER BY {INPUT_HASH}, {SEQ} LIMIT {most}""")
        self._ask(f"UPDATE sent SET {ROUTE} = {ROUTE} + {routes} WHERE {_FIRST} IN (SELECT {SEQ} FROM apart)")
        return self._requests_by_route(range(routes, 2 * routes))

    def _requests_by_route(self, routes: Iterable[int]) -> list[int]:
        counts = dict(
            self._ask(
                f"SELECT {ROUTE}, count(*) FROM sent WHERE {SEQ} = {_FIRST} GROUP BY {ROUTE}"
            ).fetchall()
        )
        return [int(counts.get(route, 0)) for route in routes]

    def reasons(self, requests: Sequence[int]) -> dict[Reason, int]:
        """Return the number of rows by reason, when only this many requests of each route are sent."""
        beyond, counts = self._beyond(requests), Counter[Reason]()
        for why, count in self._ask(f"""
            SELECT {REASON}, count(*) FROM rows WHERE {REASON} NOT IN ({_SENT_LIST}) GROUP BY {REASON}
            UNION ALL SELECT {REASON}, count(*) FROM sent WHERE NOT ({beyond}) GROUP BY {REASON}
            UNION ALL SELECT '{Reason.POSTPONED}', count(*) FROM sent WHERE {beyond}
            UNION ALL SELECT '{Reason.REUSED}', count(*) FROM reused""").fetchall():
            counts[Reason(why)] += count
        counts[Reason.IN_FLIGHT] += self._count("rows") - counts.total()  # neither sent nor reused
        return dict(+counts)

    def reasons_of(self, routes: Sequence[int]) -> dict[Reason, int]:
        """Return the number of rows by reason among those that are sent by these routes."""
        return self._sent_reasons(f"{ROUTE} IN ({', '.join(map(str, routes))})")

    def reasons_within(self, route: int, first: int, end: int) -> dict[Reason, int]:
        """Return the number of rows by reason whose request of a route has a number from `first` to before `end`."""
        from_row, to_row = (self._first_beyond(route, number) for number in (first, end))
        bounds = [f"{ROUTE} = {route}", f"{_FIRST} >= {from_row}"]
        return self._sent_reasons(
            " AND ".join(bounds if to_row is None else [*bounds, f"{_FIRST} < {to_row}"])
        )

    def _sent_reasons(self, condition: str) -> dict[Reason, int]:
        counts = self._ask(f"SELECT {REASON}, count(*) FROM sent WHERE {condition} GROUP BY {REASON}")
        return {Reason(why): count for why, count in counts.fetchall()}

    def _beyond(self, requests: Sequence[int]) -> str:
        """Return the condition for rows whose request is beyond the number that its route sends."""
        conditions = (
            f"({ROUTE} = {route} AND {_FIRST} >= {limit})"
            for route, count in enumerate(requests)
            if (limit := self._first_beyond(route, count)) is not None
        )
        return " OR ".join(conditions) or "false"

    def _first_beyond(self, route: int, requests: int) -> int | None:
        """Return the row that pays for the first request of a route that is not sent, or None if all are sent.

        The table is in order. If it was sorted once more, all rows up to that one would be held.
        """
        beyond = self._ask(
            f"SELECT {SEQ} FROM sent WHERE {SEQ} = {_FIRST} AND {ROUTE} = {route} LIMIT 1 OFFSET {requests}"
        ).fetchone()
        return None if beyond is None else int(beyond[0])

    def prompts(self, route: int, requests: int) -> Iterator[pa.BinaryArray]:
        """Yield the prompts of the first requests of a route, by number, block by block."""
        if not requests:
            return
        firsts = self._sent(f"SELECT {SEQ} FROM sent WHERE {SEQ} = {_FIRST} AND {ROUTE} = {route}", SEQ)
        for batch in self._prompt_batches():
            seen, prompts = batch.column(SEQ), batch.column("prompt")
            wanted = firsts.below(seen[-1].as_py() + 1).column(SEQ)
            if len(wanted) < len(seen):
                prompts = prompts.filter(pc.is_in(seen, wanted))
            yield prompts.slice(0, requests)
            requests -= len(prompts)
            if requests <= 0:
                return

    def _prompt_batches(self) -> Iterator[pa.RecordBatch]:
        for folder in self._folders:
            with pa.OSFile(str(folder / PROMPTS_FILE), "rb") as file, pa.ipc.open_stream(file) as stream:
                yield from (batch for batch in stream if batch.num_rows)

    def keyed_rows(self, route: int, requests: int) -> Iterator[pa.RecordBatch]:
        """Every row that is sent by a route, by request: the request's number, and whether an earlier row pays for it.

        The first rows of the requests come in the order of the file; the others are sorted aside and merged in.
        """
        repeats = self._repeats(route)
        schema = keys_schema(self.columns)
        done = 0
        for rows in self._sent_rows(route):
            own = rows.filter(pc.equal(rows.column(SEQ), rows.column(_FIRST))).slice(0, requests - done)
            if not own.num_rows:
                continue
            firsts = own.column(_FIRST).combine_chunks()
            together = pa.concat_tables([own, repeats.below(firsts[-1].as_py() + 1)])
            together = together.sort_by([(_FIRST, "ascending"), (SEQ, "ascending")])
            places = pc.add(pc.index_in(together.column(_FIRST), firsts).cast(pa.int64()), int64_scalar(done))
            shared = pc.not_equal(together.column(SEQ), together.column(_FIRST))
            keyed = together.append_column(REQUEST, places).append_column(SHARED, shared)
            yield from keyed.select(schema.names).cast(schema).to_batches()
            done += own.num_rows

    def _repeats(self, route: int) -> SortedReader:
        """The rows that are sent and whose request an earlier row pays for, by that request."""
        path = self._folder / "repeats.parquet"
        schema = self._schema.append(pa.field(_FIRST, pa.int64()))
        with pq.ParquetWriter(path, schema, compression="lz4") as writer:
            groups = RowGroups(writer)
            for rows in self._sent_rows(route):
                for batch in rows.filter(pc.not_equal(rows.column(SEQ), rows.column(_FIRST))).to_batches():
                    groups.write(batch)
            groups.flush()
        source = str(path).replace("'", "''")
        reader = self._stream(f"SELECT * FROM read_parquet('{source}') ORDER BY {_FIRST}, {SEQ}")
        return SortedReader((batch.cast(schema) for batch in reader), _FIRST, schema)

    def _sent_rows(self, route: int) -> Iterator[pa.Table]:
        """The rows that are sent by a route, in source order, each with the first one of its request."""
        firsts = self._sent(f"SELECT {SEQ}, {_FIRST} FROM sent WHERE {ROUTE} = {route}", SEQ, _FIRST)
        # If read ahead, the whole file would be in memory.
        for folder in self._folders:
            with pq.ParquetFile(folder / ROWS_FILE, pre_buffer=False) as file:
                for batch in parquet_batches(file):
                    seen = batch.column(SEQ)
                    known = firsts.below(seen[-1].as_py() + 1)
                    rows = pa.Table.from_batches([batch]).filter(pc.is_in(seen, known.column(SEQ)))
                    yield rows.append_column(_FIRST, known.column(_FIRST))

    def _sent(self, sql: str, *names: str) -> SortedReader:
        """A question about the rows that are sent, answered in their order: the table is in it, and is read in it."""
        schema = pa.schema([(name, pa.int64()) for name in names])
        return SortedReader(self._stream(sql), names[0], schema)

    def rows_with(self, reason: Reason) -> pa.RecordBatchReader:
        """Return the rows that got this reason while reading."""
        names = ", ".join(map(quoted, self.columns.names))
        reader = self._stream(
            f"SELECT {INPUT_HASH}, {ATTEMPTS}, {PROBLEM}, {names} FROM rows WHERE {REASON} = '{reason}' ORDER BY {SEQ}"
        )
        own = [(INPUT_HASH, pa.string()), (ATTEMPTS, pa.int64()), (PROBLEM, pa.string())]
        schema = pa.schema([*own, *self.columns])
        return pa.RecordBatchReader.from_batches(schema, (batch.cast(schema) for batch in reader))

    def problems(self) -> dict[str, int]:
        """Return the number of rows that cannot be sent, by the code of their problem."""
        counts = self._ask(
            f"SELECT split_part({PROBLEM}, ':', 1) AS code, count(*) FROM rows"
            f" WHERE {REASON} = '{Reason.UNSENDABLE}' GROUP BY 1 ORDER BY 1"
        )
        return dict(counts.fetchall())

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def _ask(self, sql: str) -> Any:
        return self._database.cursor().execute(sql)

    def _stream(self, sql: str) -> pa.RecordBatchReader:
        return self._database.cursor().sql(sql).to_arrow_reader(rows_that_fit(self.count, self._size))


def _looked_up(values: Sequence[int], number: str) -> str:
    """Return SQL for the value at a place that is an expression."""
    return str(values[0]) if len(values) == 1 else f"{list(values)}[({number}) + 1]"


def keys_schema(columns: pa.Schema) -> pa.Schema:
    """Return the columns of a shard's keys file."""
    own = [(REQUEST, pa.int64()), (SHARED, pa.bool_()), (INPUT_HASH, pa.string()), (ATTEMPTS, pa.int64())]
    return pa.schema([*own, *columns])
