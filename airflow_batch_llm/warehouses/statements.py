"""The SQL that a publish and a look-up run, built as text from quoted names; never from a row's value.

Staged rows come in as a relation, that is anything that may stand in a FROM clause. The rules are everywhere
the same: of several staged rows with one key the last planned wins; a row of the table is replaced only by one
that was planned no earlier; an answer removes its key's failure, unless that failure was planned later.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import assert_never

import pyarrow as pa

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.warehouses.base import KNOWN_COLUMNS, Target
from airflow_batch_llm.warehouses.dialect import PARAMETER, Dialect, Upsert, layout, table_bounds, table_rows
from airflow_batch_llm.warehouses.kind import ColumnKind, of_arrow

PLANNED = "_llm_planned_at"
#: Columns of queries beside those of users, who may call theirs `n` or `r`.
PLACE, _RANK = "_llm_place", "_llm_rank"
_ANSWER_ORDER = (PLANNED, "_llm_processed_at", "_llm_shard")
FAILURE_ORDER = (PLANNED, "_llm_attempts", "_llm_shard")
_KNOWN_SOURCES = {  # the column of `KNOWN_COLUMNS`: the table's alias and its column
    "_llm_known_input_hash": ("t", "_llm_input_hash"),
    "_llm_known_spec_hash": ("t", "_llm_spec_hash"),
    "_llm_failed_input_hash": ("f", "_llm_input_hash"),
    "_llm_failed_spec_hash": ("f", "_llm_spec_hash"),
    "_llm_failed_attempts": ("f", "_llm_attempts"),
    "_llm_failed_dead": ("f", "_llm_dead"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Landing:
    """One of a stage's two tables, and what of the staged rows goes into it."""

    table: str  # as the user names it
    key: tuple[str, ...]
    columns: tuple[str, ...]  # all that are written, the key among them
    casts: Mapping[str, str] = field(default_factory=dict)  # column -> template of its staged text
    order: tuple[str, ...] = _ANSWER_ORDER  # of several rows with one key, the greatest wins
    how: Upsert = Upsert.MERGE


class Statements:
    """The builder of one dialect's statements."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self._q = dialect.quote

    def select(self, source: Source) -> str:
        """Return the source's query, ready for parentheses: no semicolon ends it, and no last comment hides the text after it.

        Of a table it gives the needed columns alone.
        """
        if source.table is not None:
            return table_rows(
                self.dialect, self.dialect.table(source.table), source.within, self._needed(source)
            )
        return _unended(source.sql or "", self.dialect.name) + "\n"

    def bounds(self, source: Source, column: str) -> Source:
        """Return the query for the least and the greatest value of a column of the source's table."""
        return table_bounds(self.dialect, self.dialect.table(source.table or ""), column)

    def select_needed(self, source: Source) -> str:
        """`select`, which gives the needed columns alone of a query, too, if that cannot change the order of its rows."""
        query = self.select(source)
        # A driver that marks parameters by % would take one in a name for a mark.
        if not source.columns or "%" in "".join(source.columns) or not _is_unordered(source.sql or ""):
            return query
        return f"SELECT {self._needed(source)} FROM ({query}) AS q"

    def _needed(self, source: Source, prefix: str = "") -> str:
        """Return the needed columns. Names that are read in small letters may be stored in capitals: then it is all of them."""
        if self.dialect.upper_case or not source.columns:
            return f"{prefix}*"
        return ", ".join(prefix + self._q(name) for name in source.columns)

    def create(self, target: Target, table: str, columns: pa.Schema, *, unique: bool) -> str:
        """CREATE TABLE, perhaps with the key as its primary key."""
        key = frozenset(target.key.names)
        parts = [
            f"{self._q(column.name)} {self.dialect.column_type(column.type, key=column.name in key)}"
            + (" NOT NULL" if unique and column.name in key else "")
            for column in columns
        ]
        if unique:
            parts.append(f"PRIMARY KEY ({self._q(*target.key.names)})")
        laid_out = layout(target, columns, self.dialect) if table == target.table else ""
        return f"CREATE TABLE {self.dialect.table(table)} ({', '.join(parts)}){laid_out}"

    def add_columns(self, table: str, columns: pa.Schema) -> list[str]:
        """Return one ALTER TABLE a column."""
        return [
            f"ALTER TABLE {self.dialect.table(table)} {self.dialect.add_column} "
            f"{self._q(column.name)} {self.dialect.column_type(column.type)}"
            for column in columns
        ]

    def probe(self, table: str, columns: Iterable[str], key: str) -> list[str]:
        """Return statements that need the right to write and change no row."""
        name, listed = self.dialect.table(table), self._q(*columns)
        updates = self.dialect.upsert is not Upsert.DELETE_KEYS_INSERT
        return [
            f"INSERT INTO {name} ({listed}) SELECT {listed} FROM {name} WHERE 1 = 0",
            *([f"UPDATE {name} SET {self._q(key)} = {self._q(key)} WHERE 1 = 0"] if updates else []),
            f"DELETE FROM {name} WHERE 1 = 0",
        ]

    def latest(self, landing: Landing, staged: str) -> str:
        """Return the staged rows, one for each key, as the table's columns hold them."""
        listed = ", ".join(self.cast(landing, column) for column in landing.columns)
        order = ", ".join(f"x.{self._q(column)} DESC" for column in landing.order)
        keys = ", ".join(f"x.{self._q(column)}" for column in landing.key)
        ranked = (
            f"SELECT x.*, ROW_NUMBER() OVER (PARTITION BY {keys} ORDER BY {order}) AS {self._q(_RANK)} "
            f"FROM {staged} AS x"
        )
        return f"SELECT {listed} FROM ({ranked}) AS r WHERE r.{self._q(_RANK)} = 1"

    def plain(self, landing: Landing, staged: str) -> str:
        """Return the staged rows where no key occurs twice."""
        return (
            f"SELECT {', '.join(self.cast(landing, column) for column in landing.columns)} FROM {staged} AS r"
        )

    def twice(self, landing: Landing, staged: str) -> str:
        """Return the query that finds a key which was staged more than once."""
        keys = self._q(*landing.key)
        return f"SELECT 1 FROM {staged} AS x GROUP BY {keys} HAVING COUNT(*) > 1 LIMIT 1"

    def upsert(self, landing: Landing, rows: str) -> list[str]:
        """Merge the rows of a SELECT into the table by key."""
        match landing.how:
            case Upsert.MERGE:
                return self._merge(landing, rows)
            case Upsert.ON_CONFLICT:
                return self._on_conflict(landing, rows)
            case Upsert.ON_DUPLICATE_KEY:
                return self._on_duplicate_key(landing, rows)
            case Upsert.UPDATE_INSERT:
                return self._update_insert(landing, rows)
            case Upsert.DELETE_INSERT:
                return self._delete_insert(landing, rows)
            case Upsert.DELETE_KEYS_INSERT:
                return [self._delete_keys(landing, rows), self._insert_absent(landing, rows)]
            case _:
                assert_never(landing.how)

    def copy(self, landing: Landing, rows: str) -> list[str]:
        """Merge the rows of a SELECT that reads the table itself: nothing that it reads changes before it is read."""
        match landing.how:
            case Upsert.MERGE | Upsert.ON_CONFLICT | Upsert.ON_DUPLICATE_KEY:
                return self.upsert(landing, rows)
            case Upsert.UPDATE_INSERT | Upsert.DELETE_INSERT:
                return [self._insert_absent(landing, rows), self._update(landing, rows)]
            case Upsert.DELETE_KEYS_INSERT:
                raise NotImplementedError("rows that are deleted first cannot be read afterwards")
            case _:
                assert_never(landing.how)

    def append(self, landing: Landing, rows: str) -> str:
        """Add the rows of a SELECT to the table."""
        listed = self._q(*landing.columns)
        return f"INSERT INTO {self.dialect.table(landing.table)} ({listed}) {rows}"

    def remove_shards(self, landing: Landing, pairs: int) -> str:
        """DELETE of what (run, shard) pairs appended before; the pairs are parameters."""
        one = f"({self._q('_llm_run_id')} = {PARAMETER} AND {self._q('_llm_shard')} = {PARAMETER})"
        where = " OR ".join([one] * pairs)
        return f"DELETE FROM {self.dialect.table(landing.table)} WHERE {where}"

    def settle(self, failures: Landing, answers: str) -> str:
        """DELETE of the failures whose keys were answered since."""
        name = self.dialect.table(failures.table)
        planned = self._q(PLANNED)
        if self.dialect.upsert is Upsert.DELETE_KEYS_INSERT:
            return self._delete_keys(failures, f"SELECT * FROM {answers} AS a")
        return (
            f"DELETE FROM {name} WHERE EXISTS (SELECT 1 FROM {answers} AS a "
            f"WHERE {self.same(failures.key, 'a', name)} "
            f"AND ({name}.{planned} IS NULL OR a.{planned} >= {name}.{planned}))"
        )

    def unanswered(self, failures: Landing, target: Landing, rows: str) -> str:
        """Return the query for staged failures without an answer in the target that was planned as late or later."""
        planned = self._q(PLANNED)
        return (
            f"SELECT {', '.join('u.' + self._q(name) for name in failures.columns)} FROM ({rows}) AS u "
            f"WHERE NOT EXISTS (SELECT 1 FROM {self.dialect.table(target.table)} AS h "
            f"WHERE {self.same(failures.key, 'h', 'u')} AND h.{planned} >= u.{planned})"
        )

    def known(self, keys: str, target: Target, tables: Mapping[str, bool]) -> str:
        """Return the look-up for a relation of keys that are numbered by `PLACE`. `tables`: which of the two exist."""
        joins, chosen = [], []
        for alias, table in (("t", target.table), ("f", target.failures)):
            if tables[table]:
                same = self.same(target.key.names, alias, "q")
                joins.append(f"LEFT JOIN {self.dialect.table(table)} AS {alias} ON {same}")
        for name, (alias, column) in _KNOWN_SOURCES.items():
            there = tables[target.table if alias == "t" else target.failures]
            chosen.append(f"{f'{alias}.{self._q(column)}' if there else 'NULL'} AS {self._q(name)}")
        place, rank = self._q(PLACE), self._q(_RANK)
        latest = f"ORDER BY {self.later('t')}" if tables[target.table] else f"ORDER BY q.{place}"
        return (
            f"SELECT {place}, {self._q(*KNOWN_COLUMNS.names)} FROM (SELECT q.{place}, {', '.join(chosen)}, "
            f"ROW_NUMBER() OVER (PARTITION BY q.{place} {latest}) AS {rank} FROM {keys} AS q {' '.join(joins)}) AS k "
            f"WHERE {rank} = 1 ORDER BY {place}"
        )

    def read_known(self, select: str, source: Source, target: Target, tables: Mapping[str, bool]) -> str:
        """Return the query for the needed columns of the source's rows and the known columns of each. `select` gives the rows."""
        joins, chosen = [], []
        for alias, table in (("t", target.table), ("f", target.failures)):
            if tables[table]:
                joins.append(self._join_latest(target, alias, table))
        for name, (alias, column) in _KNOWN_SOURCES.items():
            there = tables[target.table if alias == "t" else target.failures]
            value = f"{alias}.{self._q(column)}" if there else self.null(KNOWN_COLUMNS.field(name).type)
            chosen.append(f"{value} AS {self._q(name)}")
        return (
            f"SELECT {self._needed(source, 'q.')}, {', '.join(chosen)} FROM ({select}) AS q {' '.join(joins)}"
        )

    def _join_latest(self, target: Target, alias: str, table: str) -> str:
        keys = self._q(*target.key.names)
        wanted = [column for of, column in _KNOWN_SOURCES.values() if of == alias]
        ranked = (
            f"SELECT {keys}, {self._q(*wanted)}, ROW_NUMBER() OVER (PARTITION BY {keys} "
            f"ORDER BY {self.later('y')}) AS {self._q(_RANK)} FROM {self.dialect.table(table)} AS y"
        )
        same = " AND ".join(f"{alias}.{self._q(field.name)} = {self._read(field)}" for field in target.key)
        return f"LEFT JOIN (SELECT * FROM ({ranked}) AS z WHERE {self._q(_RANK)} = 1) AS {alias} ON {same}"

    def _read(self, key: pa.Field) -> str:
        """Return a key of the source's rows, as it was when the target's rows were read."""
        name = f"q.{self._q(key.name)}"
        return self.dialect.text_of.format(name) if of_arrow(key.type) is ColumnKind.STRING else name

    def null(self, type_: pa.DataType) -> str:
        """Return NULL in a column's type, as far as the database has such."""
        return f"CAST(NULL AS {self.dialect.column_type(type_)})" if self.dialect.typed_null else "NULL"

    def _merge(self, landing: Landing, rows: str) -> list[str]:
        name = self.dialect.table(landing.table)
        changes = ", ".join(f"{self._q(column)} = s.{self._q(column)}" for column in _values(landing))
        inserted = ", ".join(f"s.{self._q(column)}" for column in landing.columns)
        return [
            (
                f"MERGE INTO {name}{self.dialect.merge_hint} AS t USING ({rows}) AS s ON {self.same(landing.key, 't', 's')} "
                f"WHEN MATCHED AND {self._not_older('t', 's')} THEN UPDATE SET {changes} "
                f"WHEN NOT MATCHED THEN INSERT ({self._q(*landing.columns)}) VALUES ({inserted}){self.dialect.merge_end}"
            )
        ]

    def _on_conflict(self, landing: Landing, rows: str) -> list[str]:
        changes = ", ".join(f"{self._q(column)} = excluded.{self._q(column)}" for column in _values(landing))
        return [
            (
                f"INSERT INTO {self.dialect.table(landing.table)} AS t ({self._q(*landing.columns)}) "
                f"SELECT * FROM ({rows}) AS s WHERE 1 = 1 ON CONFLICT ({self._q(*landing.key)}) "
                f"DO UPDATE SET {changes} WHERE {self._not_older('t', 'excluded')}"
            )
        ]

    def _on_duplicate_key(self, landing: Landing, rows: str) -> list[str]:
        table = self.dialect.table(landing.table)
        planned = self._q(PLANNED)
        newer = f"{table}.{planned} IS NULL OR VALUES({planned}) >= {table}.{planned}"
        # MySQL assigns from left to right: the column that decides comes last.
        names = [column for column in _values(landing) if column != PLANNED] + [PLANNED]
        changes = ", ".join(
            f"{table}.{self._q(name)} = IF({newer}, VALUES({self._q(name)}), {table}.{self._q(name)})"
            for name in names
        )
        return [
            (
                f"INSERT INTO {self.dialect.table(landing.table)} ({self._q(*landing.columns)}) "
                f"SELECT * FROM ({rows}) AS s ON DUPLICATE KEY UPDATE {changes}"
            )
        ]

    def _update_insert(self, landing: Landing, rows: str) -> list[str]:
        return [self._update(landing, rows), self._insert_absent(landing, rows)]

    def _update(self, landing: Landing, rows: str) -> str:
        name = self.dialect.table(landing.table)
        same = self.same(landing.key, "t", "s")
        changes = ", ".join(f"{self._q(column)} = s.{self._q(column)}" for column in _values(landing))
        return f"UPDATE {name} AS t SET {changes} FROM ({rows}) AS s WHERE {same} AND {self._not_older('t', 's')}"

    def _delete_insert(self, landing: Landing, rows: str) -> list[str]:
        same = f"{self.same(landing.key, 't', 's')} AND {self._not_older('t', 's')}"
        return [
            f"DELETE FROM {self.dialect.table(landing.table)} AS t USING ({rows}) AS s WHERE {same}",
            self._insert_absent(landing, rows),
        ]

    def _delete_keys(self, landing: Landing, rows: str) -> str:
        """DELETE of the table's rows that rows of a SELECT replace."""
        name = self.dialect.table(landing.table)
        keys = ", ".join(f"s.{self._q(column)}" for column in landing.key)
        return (
            f"DELETE FROM {name} WHERE ({self._q(*landing.key)}) IN (SELECT {keys} FROM ({rows}) AS s JOIN {name} AS t "
            f"ON {self.same(landing.key, 't', 's')} WHERE {self._not_older('t', 's')})"
        )

    def _insert_absent(self, landing: Landing, rows: str) -> str:
        name = self.dialect.table(landing.table)
        inserted = ", ".join(f"s.{self._q(column)}" for column in landing.columns)
        return (
            f"INSERT INTO {name} ({self._q(*landing.columns)}) SELECT {inserted} FROM ({rows}) AS s "
            f"WHERE NOT EXISTS (SELECT 1 FROM {name} AS t WHERE {self.same(landing.key, 't', 's')})"
        )

    def cast(self, landing: Landing, column: str) -> str:
        """Return a column of the staged rows `r` as the table's column holds it."""
        template = landing.casts.get(column)
        name = f"r.{self._q(column)}"
        return f"{template.format(name)} AS {self._q(column)}" if template else name

    def same(self, key: Iterable[str], left: str, right: str) -> str:
        """Return the condition that two rows have the same key."""
        return " AND ".join(f"{left}.{self._q(name)} = {right}.{self._q(name)}" for name in key)

    def _not_older(self, there: str, incoming: str) -> str:
        planned = self._q(PLANNED)
        return f"({there}.{planned} IS NULL OR {incoming}.{planned} >= {there}.{planned})"

    def later(self, alias: str) -> str:
        """Return the order of rows by their plans, the last one first."""
        planned = f"{alias}.{self._q(PLANNED)}"
        return f"CASE WHEN {planned} IS NULL THEN 1 ELSE 0 END, {planned} DESC"


def _is_unordered(query: str) -> bool:
    """Return whether a query can be a subquery and has no certain order of rows."""
    return re.match(r"\s*(SELECT|WITH)\b", query, re.IGNORECASE) is not None and not re.search(
        r"\bORDER\b", query, re.IGNORECASE
    )


def _unended(query: str, dialect: str) -> str:
    """Return a query without the semicolons that end it, also where a comment follows them."""
    ended = query.rstrip().rstrip(";")
    if ";" not in ended:
        return ended
    from sqlglot import TokenType, tokenize
    from sqlglot.errors import SqlglotError

    try:
        tokens = tokenize(ended, read=dialect)
    except SqlglotError:
        return ended  # the database says what is wrong with it
    while tokens and tokens[-1].token_type is TokenType.SEMICOLON:
        ended = ended[: tokens.pop().start]
    return ended


def _values(landing: Landing) -> list[str]:
    return [column for column in landing.columns if column not in landing.key]
