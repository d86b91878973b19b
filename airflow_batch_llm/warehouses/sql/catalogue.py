"""Ask a database's catalogue for tables and their rules, and hold the facts about a database that the DB-API path needs.

A driver's types are translated into Arrow's here, too.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Protocol

import pyarrow as pa

from airflow_batch_llm.warehouses.dialect import PARAMETER, Dialect
from airflow_batch_llm.warehouses.kind import ColumnKind
from airflow_batch_llm.warehouses.publication import Table
from airflow_batch_llm.warehouses.target import Constraint, ConstraintKind, Rules

Ask = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]


class Catalogue(Protocol):
    """The facts about tables in a database's catalogue."""

    def table(self, ask: Ask, dialect: Dialect, name: str, key: Sequence[str]) -> Table | None:
        """Describe a table, without its rules. Returns None if it does not exist."""

    def rules(self, ask: Ask, dialect: Dialect, name: str) -> Rules:
        """Return the rules that the database enforces on an existing table, as far as its catalogue shows them."""

    def home(self, ask: Ask) -> tuple[str, str]:
        """Return the catalog and the schema of a table that is named without them. An empty catalog is not known."""

    def table_names(self, ask: Ask, dialect: Dialect, where: Sequence[str]) -> list[str]:
        """List the tables of a schema whose names begin like the package's. `where`: the schema, perhaps with its catalog."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InformationSchema:
    """The standard's `information_schema`. Fields hold expressions and queries where a database differs."""

    type_of: str = "data_type"
    """Expression over `columns` of the complete type."""
    current: str = "CURRENT_SCHEMA()"
    """Expression of the schema of tables that are named without one."""
    current_catalog: str = "''"
    """Expression of the catalog, where one connection sees several. Default: the URI names it."""
    default_of: str = "column_default"
    """Expression over `columns`: a column's default, or NULL."""
    filled_by: str = "NULL"
    """Expression over `columns`: `GENERATED` for one that takes no value, `AUTO_INCREMENT` for one that needs none."""
    folds: str = "NULL"
    """Expression over `columns`: the collation of a column in which different texts are equal, or NULL."""
    unique: str = ""
    """Query for (index, column) of a table's unique indexes, by schema and table. Default: there are none."""
    foreign: str = ""
    """Query for (constraint, column) of a table's foreign keys, by schema and table. Default: there are none."""

    def table(self, ask: Ask, dialect: Dialect, name: str, key: Sequence[str]) -> Table | None:
        catalog, schema, plain = full_parts(dialect, name)
        columns = ask(
            self._columns(dialect, catalog, self.type_of) + " ORDER BY ordinal_position", [schema, plain]
        )
        if not columns:
            return None
        unique = bool(self.unique) and is_unique(ask(self.unique, [schema, plain]), key)
        return Table(columns={column: str(type_) for column, type_ in columns}, unique=unique)

    def rules(self, ask: Ask, dialect: Dialect, name: str) -> Rules:
        catalog, schema, plain = full_parts(dialect, name)
        wanted = f"is_nullable, {self.default_of}, {self.filled_by}, {self.folds}"
        found = ask(self._columns(dialect, catalog, wanted), [schema, plain])
        columns = [
            (
                dialect.unfolded(column),
                str(nullable).upper() in ("NO", "0"),
                default,
                str(filled or "").upper().split(),
                collation,
            )
            for column, nullable, default, filled, collation in found
        ]
        return Rules(
            not_null=frozenset(column for column, is_not_null, *_ in columns if is_not_null),
            with_default=frozenset(
                column
                for column, _, default, filled, _ in columns
                if default is not None or "AUTO_INCREMENT" in filled
            ),
            generated=frozenset(column for column, _, _, filled, _ in columns if "GENERATED" in filled),
            folds=tuple((column, str(collation)) for column, *_, collation in columns if collation),
            constraints=self._constraints(ask, schema, plain),
        )

    def home(self, ask: Ask) -> tuple[str, str]:
        [(catalog, schema)] = ask(f"SELECT {self.current_catalog}, {self.current}", [])
        return str(catalog or ""), str(schema or "")

    def table_names(self, ask: Ask, dialect: Dialect, where: Sequence[str]) -> list[str]:
        catalog, schema = [None, None, *map(dialect.folded, where)][-2:]
        prefix = f"{dialect.quote(catalog)}." if catalog else ""
        rows = ask(
            f"SELECT table_name FROM {prefix}information_schema.tables "
            f"WHERE table_schema = COALESCE({PARAMETER}, {self.current}) "
            f"AND table_name LIKE '{dialect.folded('_llm_')}%'",
            [schema],
        )
        return [str(name) for (name,) in rows]

    def _columns(self, dialect: Dialect, catalog: str | None, wanted: str) -> str:
        where = f"{dialect.quote(catalog)}." if catalog else ""
        return (
            f"SELECT column_name, {wanted} FROM {where}information_schema.columns "
            f"WHERE table_schema = COALESCE({PARAMETER}, {self.current}) AND table_name = {PARAMETER}"
        )

    def _constraints(self, ask: Ask, schema: str | None, name: str) -> tuple[Constraint, ...]:
        queries = ((ConstraintKind.UNIQUE, self.unique), (ConstraintKind.FOREIGN_KEY, self.foreign))
        return constraints(
            (kind, called, column)
            for kind, query in queries
            if query
            for called, column in ask(query, [schema, name])
        )


def full_parts(dialect: Dialect, name: str) -> tuple[str | None, str | None, str]:
    """Return catalog, schema and table of a name as the database stores them. What the name leaves out is None."""
    *qualifiers, plain = (dialect.folded(part) for part in dialect.parts(name))
    catalog, schema = [None, None, *qualifiers][-2:]
    return catalog, schema, plain


def is_unique(columns: Iterable[tuple[Any, ...]], key: Sequence[str]) -> bool:
    """Return whether one of some unique indexes, given as (index, column), is exactly on the key."""
    indexes: dict[str, set[str]] = {}
    for index, column in columns:
        indexes.setdefault(index, set()).add(column)
    return any(names == set(key) for names in indexes.values())


def constraints(columns: Iterable[tuple[ConstraintKind, str, str]]) -> tuple[Constraint, ...]:
    """Gather the columns of each constraint."""
    named: dict[tuple[ConstraintKind, str], set[str]] = {}
    for kind, called, column in columns:
        named.setdefault((kind, called), set()).add(column)
    return tuple(
        Constraint(kind=kind, name=called, columns=frozenset(names))
        for (kind, called), names in named.items()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlDialect(Dialect):
    """A dialect for the DB-API path, with the facts about its driver and its catalogue."""

    catalogue: Catalogue = InformationSchema()
    type_codes: Mapping[Any, ColumnKind] = field(default_factory=dict)
    """Kinds by the type codes of `cursor.description`. Python's types and names of SQL types need no entry."""
    described_as: Callable[[Sequence[Any]], pa.DataType | None] = lambda _: None
    """The type of a column of `cursor.description`, if its code is not enough. Default: the code is enough."""


_UTC = pa.timestamp("us", tz="UTC")
_OF_KIND: dict[ColumnKind, pa.DataType] = {
    ColumnKind.STRING: pa.string(),
    ColumnKind.SMALLINT: pa.int64(),
    ColumnKind.INTEGER: pa.int64(),
    ColumnKind.BIGINT: pa.int64(),
    ColumnKind.REAL: pa.float64(),
    ColumnKind.DOUBLE: pa.float64(),
    ColumnKind.BOOLEAN: pa.bool_(),
    ColumnKind.DATE: pa.date32(),
    ColumnKind.TIME: pa.time64("us"),
    ColumnKind.TIMESTAMP: pa.timestamp("us"),
    ColumnKind.TIMESTAMPTZ: _UTC,
    ColumnKind.BINARY: pa.binary(),
    ColumnKind.JSON: pa.json_(pa.string()),
    ColumnKind.UUID: pa.string(),
    ColumnKind.VECTOR: pa.json_(pa.string()),
}
_OF_PYTHON: dict[type, ColumnKind] = {
    str: ColumnKind.STRING,
    int: ColumnKind.BIGINT,
    float: ColumnKind.DOUBLE,
    bool: ColumnKind.BOOLEAN,
    bytes: ColumnKind.BINARY,
    bytearray: ColumnKind.BINARY,
    date: ColumnKind.DATE,
    datetime: ColumnKind.TIMESTAMP,
    time: ColumnKind.TIME,
    Decimal: ColumnKind.DECIMAL,
}


def described(column: Sequence[Any], dialect: SqlDialect) -> pa.DataType | None:
    """Return the type of one column of `cursor.description`. Returns None if the driver does not say it."""
    code, precision, scale = column[1], column[4], column[5]
    if (special := dialect.described_as(column)) is not None:
        return special
    kind = dialect.type_codes.get(code)
    if kind is None and isinstance(code, type):
        kind = _OF_PYTHON.get(code)
    if kind is None and isinstance(code, str):
        return declared(code, dialect)
    if kind is ColumnKind.DECIMAL:
        return _decimal(precision, scale)
    return None if kind is None else _OF_KIND[kind]


def declared(type_: str, dialect: Dialect) -> pa.DataType | None:
    """Return the type of a column that was declared so. Returns None if that says nothing."""
    from sqlglot import exp

    kind = dialect.kind_of(type_)
    if kind is ColumnKind.DECIMAL:
        digits = [int(item.name) for item in exp.DataType.build(type_, dialect=dialect.name).expressions]
        return _decimal(*digits) if len(digits) == 2 else pa.float64()
    return None if kind is None else _OF_KIND.get(kind)


def told_from(values: Sequence[Any]) -> pa.DataType:
    """Return the type of a column whose first values are these: text if they say nothing or do not agree."""
    try:
        type_ = pa.array(values).type
    except (pa.ArrowException, OverflowError, TypeError):
        return pa.string()
    return pa.string() if pa.types.is_null(type_) else type_


def _decimal(precision: int | None, scale: int | None) -> pa.DataType | None:
    if not precision or scale is None or precision > 38:
        return None
    return pa.int64() if scale == 0 and precision <= 18 else pa.decimal128(precision, scale)


#: Runs a query with its parameters, and returns all rows.
