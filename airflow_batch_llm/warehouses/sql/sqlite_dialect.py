"""Say how SQLite's SQL differs, and read its catalogue. It tells most rules; CHECK stands only in a table's definition."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from airflow_batch_llm.warehouses.dialect import ANSI_TYPES, PARAMETER, Dialect, Upsert
from airflow_batch_llm.warehouses.kind import ColumnKind
from airflow_batch_llm.warehouses.publication import Table
from airflow_batch_llm.warehouses.sql.catalogue import Ask, SqlDialect, constraints, full_parts, is_unique
from airflow_batch_llm.warehouses.target import Constraint, ConstraintKind, Rules

_TYPES = f"SELECT name, type, pk FROM pragma_table_info({PARAMETER}, {PARAMETER}) ORDER BY cid"
_WHOLE_UNIQUE = (
    f"SELECT l.name, i.name FROM pragma_index_list({PARAMETER}, {PARAMETER}) AS l, "
    f'pragma_index_info(l.name, {PARAMETER}) AS i WHERE l."unique" = 1 AND l.partial = 0'
)
_COLUMNS = f'SELECT name, "notnull", dflt_value, hidden FROM pragma_table_xinfo({PARAMETER}, {PARAMETER}) ORDER BY cid'
_PRIMARY = f"SELECT 'PRIMARY KEY', name FROM pragma_table_info({PARAMETER}, {PARAMETER}) WHERE pk > 0"
_UNIQUE = (
    f"SELECT l.name, i.name FROM pragma_index_list({PARAMETER}, {PARAMETER}) AS l, "
    f'pragma_index_info(l.name, {PARAMETER}) AS i WHERE l."unique" = 1 AND i.name IS NOT NULL'
)
_FOREIGN = f"""SELECT 'to ' || "table", "from" FROM pragma_foreign_key_list({PARAMETER}, {PARAMETER})"""
#: pragma_table_xinfo's marks of virtual and of stored computed columns.
_COMPUTED = (2, 3)


@dataclass(frozen=True, slots=True)
class SQLiteCatalogue:
    """SQLite's pragmas, as tables."""

    def table(self, ask: Ask, dialect: Dialect, name: str, key: Sequence[str]) -> Table | None:
        schema, plain = _place(dialect, name)
        columns = ask(_TYPES, [plain, schema])
        if not columns:
            return None
        primary = {column for column, _, place in columns if place}
        unique = primary == set(key) or is_unique(ask(_WHOLE_UNIQUE, [plain, schema, schema]), key)
        return Table(columns={column: type_ for column, type_, _ in columns}, unique=unique)

    def rules(self, ask: Ask, dialect: Dialect, name: str) -> Rules:
        schema, plain = _place(dialect, name)
        columns = ask(_COLUMNS, [plain, schema])
        return Rules(
            not_null=frozenset(column for column, is_not_null, _, _ in columns if is_not_null),
            with_default=frozenset(column for column, _, default, _ in columns if default is not None),
            generated=frozenset(column for column, _, _, hidden in columns if hidden in _COMPUTED),
            constraints=(*constraints(_named(ask, schema, plain)), *_checks(ask, schema, plain)),
        )

    def home(self, ask: Ask) -> tuple[str, str]:  # noqa: ARG002  the verb of every catalogue
        return "", "main"

    def table_names(self, ask: Ask, dialect: Dialect, where: Sequence[str]) -> list[str]:
        schema = dialect.quote([*where, "main"][0])
        return [
            str(name) for (name,) in ask(f"SELECT name FROM {schema}.sqlite_master WHERE type = 'table'", [])
        ]


def _place(dialect: Dialect, name: str) -> tuple[str, str]:
    _, schema, plain = full_parts(dialect, name)
    return schema or "main", plain


def _named(ask: Ask, schema: str, name: str) -> Iterator[tuple[ConstraintKind, str, str]]:
    for called, column in [*ask(_PRIMARY, [name, schema]), *ask(_UNIQUE, [name, schema, schema])]:
        yield ConstraintKind.UNIQUE, called, column
    # SQLite checks foreign keys only where the connection asks for that.
    if ask("SELECT foreign_keys FROM pragma_foreign_keys", []) == [(1,)]:
        for called, column in ask(_FOREIGN, [name, schema]):
            yield ConstraintKind.FOREIGN_KEY, called, column


def _checks(ask: Ask, schema: str, name: str) -> tuple[Constraint, ...]:
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    quoted = exp.to_identifier(schema, quoted=True).sql(dialect="sqlite")
    query = (
        f"SELECT sql FROM {quoted}.sqlite_master WHERE type = 'table' AND lower(name) = lower({PARAMETER})"
    )
    try:
        parsed = [sqlglot.parse_one(definition, dialect="sqlite") for (definition,) in ask(query, [name])]
    except SqlglotError:
        return ()
    checks = [check for definition in parsed for check in definition.find_all(exp.CheckColumnConstraint)]
    return tuple(
        Constraint(
            kind=ConstraintKind.CHECK,
            name=check.sql(dialect="sqlite"),
            columns=frozenset(column.name for column in check.find_all(exp.Column)),
        )
        for check in checks
    )


DIALECT = SqlDialect(
    name="sqlite",
    title="SQLite",
    types={
        **ANSI_TYPES,
        ColumnKind.STRING: "TEXT",
        ColumnKind.SMALLINT: "INTEGER",
        ColumnKind.BIGINT: "INTEGER",
        ColumnKind.DOUBLE: "REAL",
        ColumnKind.BINARY: "BLOB",
        ColumnKind.UUID: "TEXT",
        ColumnKind.JSON: "JSON",
        ColumnKind.VECTOR: "JSON",
    },
    own_types={"": ColumnKind.ANY},
    upsert=Upsert.ON_CONFLICT,
    begin="BEGIN IMMEDIATE",
    exact_digits=15,
    max_identifier=65_536,
    catalogue=SQLiteCatalogue(),
)
