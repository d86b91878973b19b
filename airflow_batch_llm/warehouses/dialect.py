"""Hold what differs between the databases' SQL as data: type names, quoting, limits, layout of a table, upserts."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import pyarrow as pa

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.warehouses.base import Target
from airflow_batch_llm.warehouses.kind import Kind, of_arrow

#: What BigQuery's NUMERIC holds: digits after the point, and before it.
_NUMERIC_PLACES, _NUMERIC_WHOLE = 9, 29

#: Where a parameter stands in the package's statements. No name can hold it.
PARAMETER = "\0"

# Parts of a name in any database's quotes, and characters that no other part of a name may hold.
_QUOTED = re.compile(r""""(?:[^"]|"")*"|`(?:[^`\\]|\\.|``)*`|\[[^\]]*\]""")
_NO_NAME = re.compile(r"""\.\.|['"`()\[\]\n]""")


class Upsert(StrEnum):
    """The ways in which a database merges rows by key."""

    MERGE = "merge"
    ON_CONFLICT = "on conflict"  # needs a unique index on the key
    ON_DUPLICATE_KEY = "on duplicate key"  # needs a unique index on the key
    UPDATE_INSERT = (
        "update, then insert"  # two statements; where there is no unique index, or MERGE is too weak
    )
    DELETE_INSERT = "delete, then insert"  # two statements; only for tables that are wholly ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One database's way to say things. `name` is sqlglot's word for it."""

    name: str
    title: str  # as messages call the database
    types: Mapping[Kind, str]
    key_types: Mapping[Kind, str]  # where an index cannot hold the usual type
    upsert: Upsert
    max_identifier: int
    placeholder: str = "?"  # how the driver takes a parameter; {} is its number
    session: str | None = None  # what every connection is told first
    begin: str | None = None  # what begins a transaction, where the driver does not do it by itself
    upper_case: bool = False  # an unquoted name is stored in capitals
    backslashes: bool = False  # escape what would end a quoted name; sqlglot knows of it only lately
    keeps_nul: bool = True  # text may hold the character NUL
    keeps_zone: bool = True  # an instant is kept as one; otherwise as UTC's wall clock
    decimal_digits: int = 38  # the most that a number of a fixed scale may have
    exact_digits: int = 38  # a number with more would lose some in a column of numbers: it is kept as text
    numeric: str = ""  # the type of numbers that BigQuery's NUMERIC holds
    pads_text: bool = False  # 'a' and 'a ' are equal
    vector_brackets: str = "[]"  # around a vector staged as text; empty: it is staged as a list
    from_text: Mapping[Kind, str] = field(default_factory=dict)  # kinds staged as text, and how they are read
    partitioned: str = ""  # the clause of a new table that is cut by one column
    clustered: str = ""  # the clause of a new table whose rows lie in the order of some columns
    text_of: str = "{}"  # a source's column, as the text that it is read as
    typed_null: bool = True  # NULL may be cast to the type of a column
    nests_any_select: bool = True  # a subquery may hold ORDER BY and WITH

    def quote(self, *names: str) -> str:
        """One identifier, or several as a list."""
        from sqlglot import exp

        for name in names:
            self._check(name)
        if self.backslashes:
            return ", ".join("`" + re.sub(r"[\\`]", r"\\\g<0>", name) + "`" for name in names)
        return ", ".join(
            exp.to_identifier(self.folded(name), quoted=True).sql(dialect=self.name) for name in names
        )

    def table(self, name: str) -> str:
        """A table's name, perhaps with its schema and catalog, quoted."""
        return ".".join(self.quote(part) for part in self.parts(name))

    def parts(self, name: str) -> tuple[str, ...]:
        """The table's name cut at its dots: catalog, schema, table, as many as there are."""
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
        if kind is Kind.DECIMAL:
            digits, places = _precision(type_)
            if digits > self.exact_digits:
                return self.types[Kind.STRING]
            if self.numeric and places <= _NUMERIC_PLACES and digits - places <= _NUMERIC_WHOLE:
                return self.numeric
            return declared.format(digits, places)
        return declared

    def staged_type(self, type_: pa.DataType, *, key: bool = False) -> str:
        """The type of a staging table's column."""
        if of_arrow(type_) in self.from_text:
            return self.types[Kind.STRING]
        return self.column_type(type_, key=key)

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


def _types(names: str) -> dict[Kind, str]:
    order = [kind for kind in Kind if kind is not Kind.ANY]
    spelled = [name.strip() for name in names.split("|")]
    return dict(zip(order, spelled, strict=True))


# In the order of `Kind`: string smallint integer bigint real double decimal boolean date time timestamp
# timestamptz binary uuid json vector.
_ANSI = "SMALLINT | INTEGER | BIGINT | REAL | DOUBLE PRECISION | DECIMAL({},{}) | BOOLEAN | DATE | TIME"

DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect(
            name="bigquery",
            title="BigQuery",
            types=_types(
                "STRING | INT64 | INT64 | INT64 | FLOAT64 | FLOAT64 | BIGNUMERIC | BOOL | DATE | TIME"
                " | DATETIME | TIMESTAMP | BYTES | STRING | JSON | ARRAY<FLOAT64>"
            ),
            key_types={},
            upsert=Upsert.MERGE,
            decimal_digits=76,
            numeric="NUMERIC",
            max_identifier=300,
            backslashes=True,
        ),
        Dialect(
            name="databricks",
            title="Databricks",
            types=_types(
                "STRING | SMALLINT | INT | BIGINT | FLOAT | DOUBLE | DECIMAL({},{}) | BOOLEAN | DATE | STRING"
                " | TIMESTAMP_NTZ | TIMESTAMP | BINARY | STRING | STRING | ARRAY<DOUBLE>"
            ),
            key_types={},
            upsert=Upsert.MERGE,
            from_text={Kind.VECTOR: "FROM_JSON({}, 'ARRAY<DOUBLE>')"},
            partitioned="PARTITIONED BY ({})",
            clustered="CLUSTER BY ({})",
            max_identifier=255,
        ),
        Dialect(
            name="duckdb",
            title="DuckDB",
            types=_types(
                "VARCHAR | SMALLINT | INTEGER | BIGINT | FLOAT | DOUBLE | DECIMAL({},{}) | BOOLEAN | DATE"
                " | TIME | TIMESTAMP | TIMESTAMPTZ | BLOB | UUID | JSON | DOUBLE[]"
            ),
            key_types={},
            upsert=Upsert.DELETE_INSERT,
            from_text={Kind.JSON: "CAST({} AS JSON)", Kind.UUID: "CAST({} AS UUID)"},
            vector_brackets="",
            max_identifier=65_536,
        ),
        Dialect(
            name="mysql",
            title="MySQL",
            types=_types(
                "LONGTEXT CHARACTER SET utf8mb4 | SMALLINT | INTEGER | BIGINT | FLOAT | DOUBLE | DECIMAL({},{}) | BOOLEAN"
                " | DATE | TIME(6) | DATETIME(6) | DATETIME(6) | LONGBLOB | CHAR(36) | JSON | JSON"
            ),
            # The binary collation keeps 'a' and 'A' two keys.
            key_types={
                Kind.STRING: "VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
                Kind.BINARY: "VARBINARY(255)",
            },
            upsert=Upsert.ON_DUPLICATE_KEY,
            max_identifier=64,
            placeholder="%s",
            keeps_zone=False,
            pads_text=True,
            session="SET time_zone = '+00:00'",
            typed_null=False,
        ),
        Dialect(
            name="postgres",
            title="PostgreSQL",
            types=_types(
                f"TEXT | {_ANSI} | TIMESTAMP | TIMESTAMPTZ | BYTEA | UUID | JSONB | DOUBLE PRECISION[]"
            ),
            key_types={},
            upsert=Upsert.ON_CONFLICT,
            from_text={Kind.JSON: "CAST({} AS JSONB)", Kind.VECTOR: "CAST({} AS DOUBLE PRECISION[])"},
            vector_brackets="{}",
            # Not a cast, which cuts the blanks off a CHAR.
            text_of="CONCAT({}, '')",
            max_identifier=63,
            placeholder="${}",
            keeps_nul=False,
        ),
        Dialect(
            name="redshift",
            title="Redshift",
            types=_types(
                f"VARCHAR(65535) | {_ANSI} | TIMESTAMP | TIMESTAMPTZ | VARBYTE(1000000) | VARCHAR(36)"
                " | VARCHAR(65535) | VARCHAR(65535)"
            ),
            key_types={},
            # Its MERGE takes no condition, so it could not leave a newer row alone.
            upsert=Upsert.UPDATE_INSERT,
            clustered="COMPOUND SORTKEY ({})",
            max_identifier=127,
            placeholder="%s",
            keeps_nul=False,
            pads_text=True,
        ),
        Dialect(
            name="snowflake",
            title="Snowflake",
            types=_types(
                "VARCHAR | SMALLINT | INTEGER | BIGINT | FLOAT | FLOAT | NUMBER({},{}) | BOOLEAN | DATE"
                " | TIME | TIMESTAMP_NTZ | TIMESTAMP_TZ | BINARY | VARCHAR(36) | VARIANT | VARIANT"
            ),
            key_types={},
            upsert=Upsert.MERGE,
            from_text={Kind.JSON: "PARSE_JSON({})", Kind.VECTOR: "PARSE_JSON({})"},
            clustered="CLUSTER BY ({})",
            max_identifier=255,
            placeholder="%s",
            upper_case=True,
        ),
        Dialect(
            name="sqlite",
            title="SQLite",
            types=_types(
                "TEXT | INTEGER | INTEGER | INTEGER | REAL | REAL | DECIMAL({},{}) | BOOLEAN | DATE | TIME"
                " | TIMESTAMP | TIMESTAMPTZ | BLOB | TEXT | JSON | JSON"
            ),
            key_types={},
            upsert=Upsert.ON_CONFLICT,
            begin="BEGIN IMMEDIATE",
            exact_digits=15,
            max_identifier=65_536,
        ),
        Dialect(
            name="tsql",
            title="SQL Server",
            types=_types(
                "NVARCHAR(MAX) | SMALLINT | INT | BIGINT | REAL | FLOAT | DECIMAL({},{}) | BIT | DATE | TIME"
                " | DATETIME2 | DATETIMEOFFSET | VARBINARY(MAX) | UNIQUEIDENTIFIER"
                " | NVARCHAR(MAX) | NVARCHAR(MAX)"
            ),
            key_types={
                Kind.STRING: "NVARCHAR(255) COLLATE Latin1_General_100_BIN2",
                Kind.BINARY: "VARBINARY(255)",
            },
            upsert=Upsert.MERGE,
            max_identifier=128,
            placeholder="%s",
            pads_text=True,
            nests_any_select=False,
        ),
    )
}


def dialect_named(name: str) -> Dialect:
    """The dialect by sqlglot's name or by the name that Airflow's hooks give it."""
    aliases = {"postgresql": "postgres", "mssql": "tsql", "mariadb": "mysql"}
    found = DIALECTS.get(aliases.get(name, name))
    if found is None:
        raise TargetError(f"No SQL dialect {name!r}. There are: {', '.join(DIALECTS)}.")
    return found


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


#: Catalog, schema and table, in small letters. What is unknown is empty.
FullName = tuple[str, str, str]

#: Parameters as drivers write them, which are no SQL.
_PARAMETERS = re.compile(r"%\(\w+\)s|%s")


def tables_read(source: Source, dialect: Dialect, home: tuple[str, str]) -> list[FullName]:
    """The tables of a source. `home`: the catalog and schema of a name without them."""
    if source.table is not None:
        return [full_name(dialect.parts(source.table), home)]
    return [full_name(parts, home) for parts in _referenced(source.sql or "", dialect)]


def full_name(parts: tuple[str, ...], home: tuple[str, str]) -> FullName:
    """A table's name with catalog and schema."""
    catalog, schema, table = (*home[: 3 - len(parts)], *parts)
    return catalog.lower(), schema.lower(), table.lower()


def is_same(one: FullName, other: FullName) -> bool:
    """Return whether two names may mean the same table."""
    return all(a == b or not a or not b for a, b in zip(one, other, strict=True))


def _referenced(sql: str, dialect: Dialect) -> Iterator[tuple[str, ...]]:
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError
    from sqlglot.optimizer.scope import traverse_scope

    try:
        statements = sqlglot.parse(_PARAMETERS.sub("NULL", sql), dialect=dialect.name)
        scopes = [scope for statement in statements if statement for scope in traverse_scope(statement)]
    except SqlglotError:
        return  # the database says what is wrong with it, or knows more than the parser
    for scope in scopes:
        # A common table expression is a source, too, and is a scope of its own.
        tables = (table for table in scope.sources.values() if isinstance(table, exp.Table))
        yield from (
            parts for table in tables if (parts := tuple(part.name for part in table.parts)) and all(parts)
        )
