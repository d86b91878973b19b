"""The rules of a SQLite table. The catalogue tells most of them; CHECK stands only in the table's own definition."""

from collections.abc import Callable, Sequence
from typing import Any

from airflow_batch_llm.warehouses.dialect import PARAMETER
from airflow_batch_llm.warehouses.target import Constraint, ConstraintKind, Rules

Ask = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]

_COLUMNS = f'SELECT name, "notnull", dflt_value, hidden FROM pragma_table_xinfo({PARAMETER}, {PARAMETER}) ORDER BY cid'
_PRIMARY = f"SELECT 'PRIMARY KEY', name FROM pragma_table_info({PARAMETER}, {PARAMETER}) WHERE pk > 0"
_UNIQUE = (
    f"SELECT l.name, i.name FROM pragma_index_list({PARAMETER}, {PARAMETER}) AS l, "
    f'pragma_index_info(l.name, {PARAMETER}) AS i WHERE l."unique" = 1 AND i.name IS NOT NULL'
)
_FOREIGN = f"""SELECT 'to ' || "table", "from" FROM pragma_foreign_key_list({PARAMETER}, {PARAMETER})"""
#: pragma_table_xinfo's marks of virtual and of stored computed columns.
_COMPUTED = (2, 3)


def sqlite_rules(ask: Ask, schema: str, name: str) -> Rules:
    """The rules of one table."""
    columns = ask(_COLUMNS, [name, schema])
    named: dict[tuple[ConstraintKind, str], set[str]] = {}
    for called, column in [*ask(_PRIMARY, [name, schema]), *ask(_UNIQUE, [name, schema, schema])]:
        named.setdefault((ConstraintKind.UNIQUE, called), set()).add(column)
    # SQLite checks foreign keys only where the connection asks for that.
    if ask("SELECT foreign_keys FROM pragma_foreign_keys", []) == [(1,)]:
        for called, column in ask(_FOREIGN, [name, schema]):
            named.setdefault((ConstraintKind.FOREIGN_KEY, called), set()).add(column)
    return Rules(
        not_null=frozenset(column for column, is_not_null, _, _ in columns if is_not_null),
        with_default=frozenset(column for column, _, default, _ in columns if default is not None),
        generated=frozenset(column for column, _, _, hidden in columns if hidden in _COMPUTED),
        constraints=(
            *(
                Constraint(kind=kind, name=called, columns=frozenset(of))
                for (kind, called), of in named.items()
            ),
            *_checks(ask, schema, name),
        ),
    )


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
