"""Hold what differs between the databases' SQL as data: type names, quoting, limits, layout of a table, upserts."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

import pyarrow as pa

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.core.value import KeyRange
from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.warehouses.base import Target
from airflow_batch_llm.warehouses.kind import NUMBERS, ColumnKind, of_arrow, of_name

#: The digits of BigQuery's NUMERIC, after the point and before it.
_NUMERIC_PLACES, _NUMERIC_WHOLE = 9, 29

#: Where a parameter stands in the package's statements. No name can hold it.
PARAMETER = "\0"

#: The collations that keep all texts apart, in DuckDB and SQLite.
_EXACT = frozenset({"BINARY", "C", "POSIX"})
_COLLATE = re.compile(r"\bCOLLATE\b", re.IGNORECASE)

# Parts of a name in any database's quotes, and characters that no other part of a name may hold.
_QUOTED = re.compile(r""""(?:[^"]|"")*"|`(?:[^`\\]|\\.|``)*`|\[[^\]]*\]""")
_NO_NAME = re.compile(r"""\.\.|['"`()\[\]\n]""")
# A table's name that every database reads as it stands. Most are so, and the parser takes a fifth of a second to import.
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*){0,2}")


class Upsert(StrEnum):
    """The ways in which a database merges rows by key."""

    MERGE = "merge"
    ON_CONFLICT = "on conflict"  # needs a unique index on the key
    ON_DUPLICATE_KEY = "on duplicate key"  # needs a unique index on the key
    UPDATE_INSERT = (
        "update, then insert"  # two statements; where there is no unique index, or MERGE is too weak
    )
    DELETE_INSERT = "delete, then insert"  # two statements; only for tables that are wholly ours
    DELETE_KEYS_INSERT = (
        "delete by key, then insert"  # the same where a DELETE takes a list of keys and no join
    )


#: The standard's names. A dialect says where it differs, and how it calls what the standard has no name for.
ANSI_TYPES: Mapping[ColumnKind, str] = {
    ColumnKind.SMALLINT: "SMALLINT",
    ColumnKind.INTEGER: "INTEGER",
    ColumnKind.BIGINT: "BIGINT",
    ColumnKind.REAL: "REAL",
    ColumnKind.DOUBLE: "DOUBLE PRECISION",
    ColumnKind.DECIMAL: "DECIMAL({},{})",
    ColumnKind.BOOLEAN: "BOOLEAN",
    ColumnKind.DATE: "DATE",
    ColumnKind.TIME: "TIME",
    ColumnKind.TIMESTAMP: "TIMESTAMP",
    ColumnKind.TIMESTAMPTZ: "TIMESTAMPTZ",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One database's way to say things. `name` is sqlglot's word for it."""

    name: str
    title: str  # as messages call the database
    types: Mapping[
        ColumnKind, str
    ]  # of new columns, for every kind but `ANY`; a decimal's digits stand in {}
    upsert: Upsert
    max_identifier: int
    aliases: frozenset[str] = frozenset()  # other names that Airflow's hooks give it
    key_types: Mapping[ColumnKind, str] = field(
        default_factory=dict
    )  # where an index cannot hold the usual type
    own_types: Mapping[str, ColumnKind] = field(
        default_factory=dict
    )  # of its type names that mean something else elsewhere, or are so usual that they need no parser
    add_column: str = "ADD COLUMN"
    merge_hint: str = ""  # what follows the table's name in MERGE
    merge_end: str = ""
    placeholder: str = "?"  # how the driver takes a parameter; {} is its number
    session: str | None = None  # what every connection is told first
    begin: str | None = None  # what begins a transaction, where the driver does not do it by itself
    upper_case: bool = False  # an unquoted name is stored in capitals
    quotes: str = '""'  # what begins a quoted name, and what ends it
    backslashes: bool = False  # escape what would end a quoted name. Default: it is doubled
    keeps_nul: bool = True  # text may hold the character NUL
    keeps_zone: bool = True  # an instant is kept as one; otherwise as UTC's wall clock
    decimal_digits: int = 38  # the most that a number of a fixed scale may have
    exact_digits: int = 38  # a number with more would lose some in a column of numbers: it is kept as text
    numeric: str = ""  # the type of numbers that BigQuery's NUMERIC holds
    pads_text: bool = False  # 'a' and 'a ' are equal
    vector_brackets: str = "[]"  # around a vector staged as text; empty: it is staged as a list
    from_text: Mapping[ColumnKind, str] = field(
        default_factory=dict
    )  # kinds staged as text, and how they are read
    partitioned: str = ""  # the clause of a new table that is cut by one column
    clustered: str = ""  # the clause of a new table whose rows lie in the order of some columns
    text_of: str = "{}"  # a source's column, as the text that it is read as
    cast_keys: frozenset[ColumnKind] = (
        frozenset()
    )  # a literal is compared with such a key after a cast to its type
    quoted_by_driver: bool = False  # the driver writes parameters into the statement, as texts where it can
    typed_null: bool = True  # NULL may be cast to the type of a column
    is_true: str = "{}"  # the condition that a column of truth values is true
    joins_sources: bool = True  # any query may be a subquery that is joined, and its columns keep their names

    def quote(self, *names: str) -> str:
        """One identifier, or several as a list."""
        for name in names:
            self._check(name)
        if self.backslashes:
            return ", ".join("`" + re.sub(r"[\\`]", r"\\\g<0>", name) + "`" for name in names)
        begin, end = self.quotes[0], self.quotes[1]
        return ", ".join(f"{begin}{self.folded(name).replace(end, end + end)}{end}" for name in names)

    def table(self, name: str) -> str:
        """A table's name, perhaps with its schema and catalog, quoted."""
        return ".".join(self.quote(part) for part in self.parts(name))

    def parts(self, name: str) -> tuple[str, ...]:
        """The table's name cut at its dots: catalog, schema, table, as many as there are."""
        if _PLAIN.fullmatch(name):
            return tuple(name.split("."))
        from sqlglot import exp
        from sqlglot.errors import SqlglotError

        try:
            parsed = exp.to_table(name, dialect=self.name)
            # An empty schema is left out of `parts`. A text in single quotes or a call would read a file.
            plain = _QUOTED.sub("q", name)
            parts = tuple(part.name for part in parsed.parts) if not _NO_NAME.search(plain) else ()
        except SqlglotError:
            parts = ()
        if not parts or not all(parts):
            raise TargetError(
                f"{name!r} is not a table name. Write table, schema.table or catalog.schema.table."
            )
        for part in parts if self.upper_case else ():
            if self.folded(part) != part and f'"{part}"' in name:
                raise TargetError(
                    f"{name!r} is in small letters and quoted, which {self.title} keeps apart from {part.upper()}. "
                    "Such a name cannot be used here. Write it without quotes, or rename the table."
                )
        return parts

    def with_parameters(self, sql: str) -> str:
        """The statement with its parameters marked as the driver wants it. A name may hold a mark of its own."""
        if "%" in self.placeholder:
            sql = sql.replace("%", "%%")
        first, *others = sql.split(PARAMETER)
        marked = (self.placeholder.format(number) + text for number, text in enumerate(others, start=1))
        return first + "".join(marked)

    def column_type(self, type_: pa.DataType, *, key: bool = False) -> str:
        """The type that a new column gets."""
        kind = of_arrow(type_)
        declared = self.key_types.get(kind) if key else None
        declared = declared or self.types[kind]
        if kind is ColumnKind.DECIMAL:
            digits, places = _precision(type_)
            if digits > self.exact_digits:
                return self.types[ColumnKind.STRING]
            if self.numeric and places <= _NUMERIC_PLACES and digits - places <= _NUMERIC_WHOLE:
                return self.numeric
            return declared.format(digits, places)
        return declared

    def staged_type(self, type_: pa.DataType, *, key: bool = False) -> str:
        """The type of a staging table's column."""
        if of_arrow(type_) in self.from_text:
            return self.types[ColumnKind.STRING]
        return self.column_type(type_, key=key)

    def key_parameter(self, type_: pa.DataType) -> str:
        """A parameter that is compared with a key column of this type."""
        if of_arrow(type_) not in self.cast_keys:
            return PARAMETER
        return f"CAST({PARAMETER} AS {self.column_type(type_, key=True)})"

    def bound(self, literal: str) -> str:
        """Return a bound of a range as this database reads it, whatever its session's language."""
        return literal.replace(" ", "T") if self.quoted_by_driver else literal

    def kind_of(self, type_: str) -> ColumnKind | None:
        """Return the kind of a column type as the database spells it, or None if the package has no such kind."""
        if not type_ or type_.strip().lower() in self.own_types:
            return self.own_types.get(type_.strip().lower())
        from sqlglot import exp
        from sqlglot.errors import SqlglotError

        try:
            parsed = exp.DataType.build(type_, dialect=self.name)
        except SqlglotError:
            return None
        name = parsed.this.value.lower() if isinstance(parsed.this, exp.DataType.Type) else ""
        if name in ("array", "list"):
            inner = parsed.expressions[0].sql(self.name) if parsed.expressions else ""
            return ColumnKind.VECTOR if inner and self.kind_of(inner) in NUMBERS else None
        if name == "decimal" and len(parsed.expressions) > 0:
            scale = parsed.expressions[1].name if len(parsed.expressions) > 1 else "0"
            return ColumnKind.BIGINT if scale == "0" else ColumnKind.DECIMAL
        return self.own_types.get(name) or of_name(name)

    def folded(self, name: str) -> str:
        """The name as the database stores it."""
        plain = name.isidentifier() and name.isascii() and name == name.lower()
        return name.upper() if self.upper_case and plain else name

    def unfolded(self, name: str) -> str:
        """A stored name as one writes it."""
        plain = name.isidentifier() and name.isascii() and name == name.upper()
        return name.lower() if self.upper_case and plain else name

    def _check(self, name: str) -> None:
        if not name or "\0" in name:
            raise TargetError(f"{name!r} cannot be a name in {self.title}.")
        if len(name.encode()) > self.max_identifier:
            raise TargetError(
                f"The name {name!r} is longer than the {self.max_identifier} bytes that {self.title} keeps. "
                "Choose a shorter one (`columns=` renames an answer's column)."
            )


def _precision(type_: pa.DataType) -> tuple[int, int]:
    """Digits in all and after the point; what is no Arrow decimal is an unsigned 64 bit integer."""
    if pa.types.is_decimal(type_):
        return min(type_.precision, 38), max(type_.scale, 0)
    return 20, 0


def layout(target: Target, columns: pa.Schema, dialect: Dialect) -> str:
    """Return the clauses after the column list of the target's CREATE TABLE, or '' if none are asked for."""
    partition = (target.partition_by,) if target.partition_by is not None else ()
    _refuse_missing(partition + target.cluster_by, columns)
    if partition and target.cluster_by and dialect.partitioned:
        raise TargetError(
            f"{dialect.title} partitions a table or clusters it, not both. "
            f"Leave partition_by out and let cluster_by begin with {target.partition_by!r}."
        )
    if partition and dialect.partitioned:
        return " " + dialect.partitioned.format(dialect.quote(*partition))
    names = tuple(dict.fromkeys(partition + target.cluster_by))
    if not names:
        return ""
    if not dialect.clustered:
        asked = " and ".join(
            word for word, value in (("partition_by", partition), ("cluster_by", target.cluster_by)) if value
        )
        raise TargetError(
            f"{asked} cannot be had: the package creates no partitioned or clustered tables in {dialect.title}. "
            f"Leave it out, or create {target.table} yourself as it should be."
        )
    return " " + dialect.clustered.format(dialect.quote(*names))


def _refuse_missing(names: tuple[str, ...], columns: pa.Schema) -> None:
    missing = [name for name in names if name not in columns.names]
    if missing:
        raise TargetError(
            f"partition_by and cluster_by name {', '.join(missing)}, which the target does not get. "
            f"Carry it from the source; there are: {', '.join(columns.names)}."
        )


def table_rows(dialect: Dialect, table: str, within: KeyRange | None, columns: str = "*") -> str:
    """Return the query for a table's rows. `table` and `columns` are quoted. Ranges that meet share no row and leave none out."""
    select = f"SELECT {columns} FROM {table}"
    if within is None or within.low is within.high is None:
        return select
    column = dialect.quote(within.column)
    end = "" if within.high is None else f"{column} < {dialect.bound(within.high)}"
    if within.low is None:
        return f"{select} WHERE {end} OR {column} IS NULL"
    return f"{select} WHERE {column} >= {dialect.bound(within.low)}{' AND ' if end else ''}{end}"


def table_bounds(dialect: Dialect, table: str, column: str) -> Source:
    """Return the query for the least and the greatest value of a column. `table` is quoted."""
    name, low, high = dialect.quote(column), dialect.quote("low"), dialect.quote("high")
    return Source(sql=f"SELECT MIN({name}) AS {low}, MAX({name}) AS {high} FROM {table}")


def folding(definitions: Iterable[str], dialect: str) -> tuple[tuple[str, str], ...]:
    """Return the columns that are declared with a collation in which different texts are equal, and its name."""
    collated = list(filter(_COLLATE.search, definitions))
    if not collated:
        return ()
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    found: list[tuple[str, str]] = []
    for definition in collated:
        with suppress(SqlglotError):
            columns = sqlglot.parse_one(definition, dialect=dialect).find_all(exp.ColumnDef)
            found.extend(
                (column.name, collation.this.sql(dialect))
                for column in columns
                for collation in column.find_all(exp.CollateColumnConstraint)
            )
    return tuple((column, name) for column, name in found if name.upper() not in _EXACT)


#: Catalog, schema and table, in small letters. What is unknown is empty.
FullName = tuple[str, str, str]

#: Parameters as drivers write them, which are no SQL.
_PARAMETERS = re.compile(r"%\(\w+\)s|%s")


def tables_read(source: Source, dialect: Dialect, home: tuple[str, str]) -> list[FullName]:
    """The tables of a source. `home`: the catalog and schema of a name without them."""
    if source.table is not None:
        return [full_name(dialect.parts(source.table), home)]
    return [full_name(parts, home) for parts in referenced(source.sql or "", dialect.name)]


def full_name(parts: tuple[str, ...], home: tuple[str, str]) -> FullName:
    """A table's name with catalog and schema."""
    catalog, schema, table = (*home[: 3 - len(parts)], *parts)
    return catalog.lower(), schema.lower(), table.lower()


def is_same(one: FullName, other: FullName) -> bool:
    """Return whether two names may mean the same table."""
    return all(a == b or not a or not b for a, b in zip(one, other, strict=True))


def referenced(sql: str, dialect: str | None) -> Iterator[tuple[str, ...]]:
    """Yield the names of the tables that a query reads, in parts. Yields none if it cannot be parsed."""
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError
    from sqlglot.optimizer.scope import traverse_scope

    try:
        statements = sqlglot.parse(_PARAMETERS.sub("NULL", sql), dialect=dialect)
        scopes = [scope for statement in statements if statement for scope in traverse_scope(statement)]
    except SqlglotError:
        return  # the database says what is wrong with it, or knows more than the parser
    for scope in scopes:
        # A common table expression is a source, too, and is a scope of its own.
        tables = (table for table in scope.sources.values() if isinstance(table, exp.Table))
        yield from (
            parts for table in tables if (parts := tuple(part.name for part in table.parts)) and all(parts)
        )
