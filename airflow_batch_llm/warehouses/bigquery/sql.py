"""The statements that BigQuery runs, built from names alone: pure, and without a value in them.

Names reserved by the package begin with `_llm_`, also those of script variables: where a column and a variable have
the same name, BigQuery takes the column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from airflow_batch_llm.warehouses.base import Target
from airflow_batch_llm.warehouses.bigquery.connection import TableName, quoted
from airflow_batch_llm.warehouses.bigquery.registration import DIALECT
from airflow_batch_llm.warehouses.bigquery.types import gathered
from airflow_batch_llm.warehouses.publication import Copying, Donor
from airflow_batch_llm.warehouses.side_tables import TAKEN_OVER
from airflow_batch_llm.warehouses.statements import Landing, Statements

#: In a staged row: true for an answer, false for a failure.
GOOD = "_llm_good"

LOWEST, HIGHEST = "_llm_lowest", "_llm_highest"

_STAGED = "_llm_staged"

#: The greatest by these wins, where several staged rows have one key.
_ORDER = ("_llm_planned_at", "_llm_attempts", "_llm_processed_at", "_llm_shard")


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """One of the two tables: its name, its key, and the columns that are written with the types that they have there."""

    name: TableName
    key: tuple[str, ...]
    types: Mapping[str, str]

    @property
    def written(self) -> tuple[str, ...]:
        return tuple(self.types)

    @property
    def updated(self) -> tuple[str, ...]:
        return tuple(column for column in self.written if column not in self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class BigQueryTables:
    """The tables that a publish writes: the target and the columns that both tables have."""

    answers: Columns
    failures: Columns
    target: Target

    def type_of(self, field: pa.Field) -> str:
        """Return the type in which a staged column is gathered."""
        declared = self.answers.types.get(field.name) or self.failures.types.get(field.name)
        return declared or DIALECT.column_type(field.type)

    @property
    def bounded(self) -> bool:
        """Return whether the target exists and is read only between two partitions."""
        return self.target.partition_by is not None and bool(self.answers.types)

    @property
    def partition_type(self) -> str:
        """The type of the partition column."""
        return self.type_of(self.target.answer_columns.field(self.target.partition_by))


def staged_schema(target: Target) -> pa.Schema:
    """Return every column that a staged row can have: those of an answer, those of a failure, and which of the two it is."""
    answers = target.answer_columns
    names = {field.name for field in answers}
    only_failures = [field for field in target.failure_columns if field.name not in names]
    return pa.schema([*answers, *only_failures, pa.field(GOOD, pa.bool_())])


def staged_name(ordinal: int) -> str:
    """Return the name of a staged column: its place, so that no name of the user's has to survive a file format."""
    return f"c{ordinal}"


def publish_script(tables: BigQueryTables, staged: Sequence[TableName]) -> str:
    """Return the script of one job: gather the staged rows, then change both tables in one transaction."""
    within = bound(tables.target, "T", LOWEST, HIGHEST)
    good, bad = (f"SELECT * FROM {_STAGED} WHERE {condition}" for condition in (GOOD, f"NOT {GOOD}"))
    changes = [
        *land_answers(tables, good, within),
        upsert(tables.failures, unanswered(tables, bad, within)),
        settle(tables, good),
    ]
    return _script(tables, gathered_rows(tables, staged), changes)


def copy_script(tables: BigQueryTables, staged: TableName, donors: Sequence[Donor]) -> str:
    """One script, one job: gather the rows that get a copy of an answer, then change both tables in one transaction."""
    changes = copy_changes(tables, donors, _STAGED, bound(tables.target, "T", LOWEST, HIGHEST))
    bare = replace(tables, target=tables.target.without_answer)
    return _script(bare, gathered_rows(bare, [staged]), changes)


def copy_changes(
    tables: BigQueryTables, donors: Sequence[Donor], staged: str, within: str | None
) -> list[str]:
    """Return the statements that copy answers to staged rows, and settle their failures."""
    copying = copying_into(tables, within)
    landing = Landing(table=tables.answers.name.table, key=tables.answers.key, columns=tables.answers.written)
    rows = copying.rows(donors, staged, landing)
    return [
        upsert(tables.answers, rows, within) if tables.target.is_merged else _append(tables.answers, rows),
        settle(tables, copying.landed(staged)),
    ]


def copying_into(tables: BigQueryTables, within: str | None) -> Copying:
    """Return the builder of the statements that copy answers."""
    return Copying(
        target=tables.target,
        statements=Statements(DIALECT),
        table=tables.answers.name.quoted,
        within=within or "",
    )


def _script(tables: BigQueryTables, rows: str, changes: Sequence[str]) -> str:
    """Return a script that keeps rows in a temporary table, and changes the tables by them in one transaction."""
    target = tables.target
    declared: list[str] = []
    bounds: list[str] = []
    if target.partition_by:
        column = quoted(target.partition_by)
        declared.append(f"DECLARE {LOWEST}, {HIGHEST} {tables.partition_type}")
        bounds = [
            f"SET {LOWEST} = (SELECT MIN({column}) FROM {_STAGED})",
            f"SET {HIGHEST} = (SELECT MAX({column}) FROM {_STAGED})",
        ]
    statements = [
        *declared,
        f"CREATE TEMP TABLE {_STAGED} AS {rows}",
        *bounds,
        "BEGIN TRANSACTION",
        *changes,
        "COMMIT TRANSACTION",
    ]
    return ";\n".join(statements) + ";"


def gathered_rows(tables: BigQueryTables, staged: Sequence[TableName]) -> str:
    """Return the staged rows in the target's names and types, one per key: a key that is staged twice keeps the newest."""
    target = tables.target
    schema = staged_schema(target)
    shown = ", ".join(
        f"{gathered(staged_name(at), field.type, tables.type_of(field))} AS {quoted(field.name)}"
        for at, field in enumerate(schema)
    )
    everything = ", ".join(staged_name(at) for at in range(len(schema)))
    union = "\nUNION ALL ".join(f"SELECT {everything} FROM {table.quoted}" for table in staged)
    place = {field.name: staged_name(at) for at, field in enumerate(schema)}
    same = [GOOD, *target.key.names]
    if not target.is_merged:
        same.append("_llm_run_id")
    one = ", ".join(place[name] for name in same)
    newest = ", ".join(f"{place[name]} DESC" for name in _ORDER)
    return (
        f"SELECT {shown}\nFROM ({union})\n"
        f"QUALIFY ROW_NUMBER() OVER (PARTITION BY {one} ORDER BY {newest}) = 1"
    )


def no_rows(tables: BigQueryTables) -> str:
    """Return a source of the same shape without a row, to try a statement on."""
    schema = staged_schema(tables.target)
    nothing = ", ".join(f"CAST(NULL AS {tables.type_of(field)}) AS {quoted(field.name)}" for field in schema)
    return f"SELECT {nothing} FROM UNNEST(CAST([] AS ARRAY<INT64>))"


def land_answers(tables: BigQueryTables, source: str, within: str | None) -> list[str]:
    """Return the statements that put answers into the target table."""
    if tables.target.is_merged:
        return [upsert(tables.answers, source, within)]
    return [_remove_shards(tables, source, within), _append(tables.answers, source)]


#: The least value of each type by which a table can be partitioned.
_LEAST = {
    "DATE": "DATE '0001-01-01'",
    "DATETIME": "DATETIME '0001-01-01 00:00:00'",
    "TIMESTAMP": "TIMESTAMP '0001-01-01 00:00:00+00'",
    "INT64": "-9223372036854775808",
}


def anywhere(column: str, type_: str) -> str:
    """Return the condition that every partition meets, for tables that may not be read without one."""
    return f"({column} >= {_LEAST[type_]} OR {column} IS NULL)"


def bound(target: Target, alias: str, lowest: str, highest: str) -> str | None:
    """Return the condition that keeps a statement inside the staged partitions; constants, so that BigQuery can prune."""
    if target.partition_by is None:
        return None
    column = f"{alias}.{quoted(target.partition_by)}"
    return f"({column} BETWEEN {lowest} AND {highest} OR {column} IS NULL)"


def upsert(table: Columns, source: str, within: str | None = None) -> str:
    """Update or insert by key; a row gives way only to one that was planned no earlier.

    The partitions stand in ON, where BigQuery looks for them: it prunes by them, and takes them for the filter
    that a table may require.
    """
    sets = ", ".join(f"{quoted(name)} = S.{quoted(name)}" for name in table.updated)
    values = ", ".join(f"S.{quoted(name)}" for name in table.written)
    merge = (
        f"MERGE INTO {table.name.quoted} AS T USING ({source}) AS S\n"
        f"ON {within or 'TRUE'} AND {same_key(table.key, 'T', 'S')}\n"
        "WHEN MATCHED AND (T._llm_planned_at IS NULL OR S._llm_planned_at >= T._llm_planned_at)\n"
        f"THEN UPDATE SET {sets}\n"
        f"WHEN NOT MATCHED THEN INSERT ({_names(table)}) VALUES ({values})"
    )
    return merge


def same_key(key: Sequence[str], left: str, right: str) -> str:
    """Return the condition that two rows have the same key."""
    return " AND ".join(f"{left}.{quoted(name)} = {right}.{quoted(name)}" for name in key)


def _remove_shards(tables: BigQueryTables, source: str, within: str | None) -> str:
    """Delete the rows that the same shards of the same run appended before."""
    return (
        f"DELETE FROM {tables.answers.name.quoted} AS T WHERE {within or 'TRUE'} AND EXISTS ("
        f"SELECT 1 FROM ({source}) AS S WHERE S._llm_run_id = T._llm_run_id AND S._llm_shard = T._llm_shard)"
    )


def _append(table: Columns, source: str) -> str:
    names = _names(table)
    return f"INSERT INTO {table.name.quoted} ({names}) SELECT {names} FROM ({source})"


def _names(table: Columns) -> str:
    return ", ".join(quoted(name) for name in table.written)


def unanswered(tables: BigQueryTables, source: str, within: str | None) -> str:
    """Return the query for failures whose key has no answer in the target that was planned as late or later.

    In a partitioned target it reads only the staged partitions. A failure is identified by its key alone.
    """
    return (
        f"SELECT * FROM ({source}) AS S WHERE NOT EXISTS (SELECT 1 FROM {tables.answers.name.quoted} AS T "
        f"WHERE {within or 'TRUE'} AND {same_key(tables.answers.key, 'S', 'T')} "
        "AND T._llm_planned_at >= S._llm_planned_at)"
    )


def settle(tables: BigQueryTables, source: str) -> str:
    """Delete the failures of keys that have been answered since."""
    return (
        f"DELETE FROM {tables.failures.name.quoted} AS F WHERE EXISTS (SELECT 1 FROM ({source}) AS S "
        f"WHERE {same_key(tables.failures.key, 'S', 'F')} "
        "AND (F._llm_planned_at IS NULL OR F._llm_planned_at <= S._llm_planned_at))"
    )


def review_script(tables: BigQueryTables, review: TableName) -> str:
    """Return a script of one transaction that updates the review table from the two other tables."""
    within = bound(tables.target, "T", LOWEST, HIGHEST)
    limits: list[str] = []
    if tables.target.partition_by:
        column = quoted(tables.target.partition_by)
        limits = [f"DECLARE {LOWEST}, {HIGHEST} {tables.partition_type}"] + [
            f"SET {name} = (SELECT {extreme}({column}) FROM {review.quoted})"
            for name, extreme in ((LOWEST, "MIN"), (HIGHEST, "MAX"))
        ]
    statements = [
        *limits,
        "BEGIN TRANSACTION",
        *review_changes(tables, review, within),
        "COMMIT TRANSACTION",
    ]
    return ";\n".join(statements) + ";"


def review_changes(tables: BigQueryTables, review: TableName, within: str | None) -> list[str]:
    """Return the statements that drop answered rows, drop changed ones, and add dead ones."""
    target, key, failures = tables.target, tables.target.key.names, tables.failures.name.quoted
    names = [*target.failure_origin.names, *TAKEN_OVER]
    return [
        (
            f"DELETE FROM {review.quoted} AS R WHERE EXISTS (SELECT 1 FROM {tables.answers.name.quoted} AS T "
            f"WHERE {within or 'TRUE'} AND {same_key(key, 'T', 'R')} AND T._llm_planned_at >= R._llm_planned_at)"
        ),
        (
            f"DELETE FROM {review.quoted} AS R WHERE R.reviewed_by IS NULL AND NOT EXISTS (SELECT 1 FROM {failures} AS F "
            f"WHERE {same_key(key, 'F', 'R')} AND F._llm_dead AND F._llm_planned_at = R._llm_planned_at)"
        ),
        (
            f"INSERT INTO {review.quoted} ({', '.join(map(quoted, names))}) "
            f"SELECT {', '.join(f'F.{quoted(name)}' for name in names)} FROM {failures} AS F "
            f"WHERE F._llm_dead AND NOT EXISTS (SELECT 1 FROM {review.quoted} AS R WHERE {same_key(key, 'R', 'F')})"
        ),
    ]


def records_merge(table: TableName, names: Sequence[str], rows: int) -> str:
    """Return the MERGE of this many records, whose id is the first column. Their values are the parameters `r<row>c<column>`."""
    key = names[0]
    values = [
        ", ".join(f"@r{row}c{place} AS {quoted(name)}" for place, name in enumerate(names))
        for row in range(rows)
    ]
    source = "\nUNION ALL ".join(f"SELECT {listed}" for listed in values)
    sets = ", ".join(f"{quoted(name)} = S.{quoted(name)}" for name in names if name != key)
    return (
        f"MERGE INTO {table.quoted} AS T USING ({source}) AS S\nON T.{quoted(key)} = S.{quoted(key)}\n"
        f"WHEN MATCHED THEN UPDATE SET {sets}\n"
        f"WHEN NOT MATCHED THEN INSERT ({', '.join(map(quoted, names))}) "
        f"VALUES ({', '.join(f'S.{quoted(name)}' for name in names)})"
    )


def trials(tables: BigQueryTables) -> list[str]:
    """Return the statements of a publish, each by itself, reading from a source without rows."""
    nothing = no_rows(tables)
    within = bound(tables.target, "T", f"@{LOWEST}", f"@{HIGHEST}")
    answers = land_answers(tables, nothing, within)
    failures = upsert(tables.failures, unanswered(tables, nothing, within))
    copies: list[str] = []
    if tables.target.has_reused:
        bare = f"({no_rows(replace(tables, target=tables.target.without_answer))})"
        copies = copy_changes(tables, [own_donor(tables)], bare, within)[:1]
    return [*answers, failures, settle(tables, nothing), *copies]


def everywhere(tables: BigQueryTables, alias: str) -> str | None:
    """Return the condition that all rows of a partitioned target meet, or None if the target has no partitions."""
    if tables.target.partition_by is None:
        return None
    return anywhere(f"{alias}.{quoted(tables.target.partition_by)}", tables.partition_type)


def own_donor(tables: BigQueryTables) -> Donor:
    """Return the target as a table whose answers are copied."""
    within = everywhere(tables, "y") or ""
    columns = frozenset(name.lower() for name in tables.answers.types)
    return Donor(table=tables.answers.name.quoted, columns=columns, within=within)


def known_join(tables: BigQueryTables, source: str, *, columns: str, within: str | None) -> str:
    """Return the rows of a source with the hashes of their last answer and of their last failure, by key."""
    chosen = ", ".join(f"{place} AS {name}" for name, place in _KNOWN.items())
    return (
        f"SELECT {columns}, {chosen}\nFROM ({source}\n) AS S\n"
        f"LEFT JOIN ({_newest(tables, tables.answers, within)}) AS A\n"
        f"ON {same_key(tables.answers.key, 'S', 'A')}\n"
        f"LEFT JOIN ({_newest(tables, tables.failures, None)}) AS F\n"
        f"ON {same_key(tables.failures.key, 'S', 'F')}"
    )


#: Where a look-up finds each of its columns: A is the target table, F the failures table.
_KNOWN = {
    "_llm_known_input_hash": "A._llm_input_hash",
    "_llm_known_spec_hash": "A._llm_spec_hash",
    "_llm_failed_input_hash": "F._llm_input_hash",
    "_llm_failed_spec_hash": "F._llm_spec_hash",
    "_llm_failed_attempts": "F._llm_attempts",
    "_llm_failed_dead": "F._llm_dead",
}


def _newest(tables: BigQueryTables, table: Columns, within: str | None) -> str:
    """One row per key, the newest: an appended table has one per run, and a join must not multiply the source."""
    key = ", ".join(quoted(name) for name in table.key)
    alias = "A" if table is tables.answers else "F"
    facts = ", ".join(place.removeprefix(f"{alias}.") for place in _KNOWN.values() if place.startswith(alias))
    if not table.types:  # there is no such table yet
        return f"SELECT {key}, {facts} FROM ({no_rows(tables)})"
    return (
        f"SELECT {key}, {facts} FROM {table.name.quoted} AS T WHERE {within or 'TRUE'} "
        f"QUALIFY ROW_NUMBER() OVER (PARTITION BY {key} "
        "ORDER BY T._llm_planned_at DESC, T._llm_processed_at DESC) = 1"
    )


def bounds_of(target: Target, source: str) -> str:
    """Return the lowest and the highest partition among the rows of a source."""
    column = quoted(target.partition_by or "")
    return f"SELECT MIN({column}) AS {LOWEST}, MAX({column}) AS {HIGHEST} FROM ({source}\n)"
