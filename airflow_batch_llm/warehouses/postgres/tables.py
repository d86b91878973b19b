"""PostgreSQL's catalogue: a table's columns, its unique keys, and the rules that it enforces."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_batch_llm.errors import InputError, raise_alone
from airflow_batch_llm.warehouses.base import Target
from airflow_batch_llm.warehouses.postgres.registration import DIALECT
from airflow_batch_llm.warehouses.publication import Table, Tables
from airflow_batch_llm.warehouses.target import Constraint, ConstraintKind, Rules

if TYPE_CHECKING:
    from psycopg import RawCursor


_HOST = re.compile(r"[\w.:%/,\[\]-]*")
_PORT = re.compile(r"[0-9,]*")


def refuse_malformed(dsn: str) -> None:
    """Raise `InputError` for a DSN that libpq cannot read, or whose password is taken for another part of it."""
    from psycopg import Error
    from psycopg.conninfo import conninfo_to_dict

    try:
        parts = {name: str(value or "") for name, value in conninfo_to_dict(dsn).items()}
    except Error:
        parts = {"host": "@"}
    is_read = (
        _HOST.fullmatch(parts.get("host", ""))
        and _HOST.fullmatch(parts.get("hostaddr", ""))
        and _PORT.fullmatch(parts.get("port", ""))
        and not ("://" in dsn and "@" in parts.get("dbname", ""))
    )
    if not is_read:
        raise_alone(
            InputError(
                "The DSN of PostgreSQL cannot be read. It is not shown, because it may hold a password. Write "
                "postgresql://user:password@host:port/database, with @ : / ? # % in a password as %40 %3A %2F %3F %23 %25."
            )
        )


_COLUMNS = """
SELECT a.attname, format_type(coalesce(nullif(t.typbasetype, 0), a.atttypid), a.atttypmod)
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_UNIQUE = """
SELECT array_agg(a.attname::text) FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
WHERE i.indrelid = to_regclass($1) AND i.indisunique AND i.indimmediate AND i.indisvalid
AND i.indpred IS NULL AND i.indexprs IS NULL GROUP BY i.indexrelid
"""
_COLUMN_RULES = """
SELECT a.attname, a.attnotnull OR t.typnotnull, a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL,
a.attgenerated <> '' OR a.attidentity = 'a'
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
"""
# A constraint of a domain counts for every column of that domain. A unique index may have no constraint.
_CONSTRAINTS = """
SELECT c.contype::text, c.conname::text, array(
    SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
) FROM pg_constraint c WHERE c.conrelid = to_regclass($1) AND c.contype IN ('c', 'f', 'x')
UNION ALL
SELECT 'c', d.conname::text, ARRAY[a.attname::text] FROM pg_attribute a JOIN pg_constraint d ON d.contypid = a.atttypid
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped AND d.contype = 'c'
UNION ALL
SELECT 'u', i.indexrelid::regclass::text, array(
    SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
) FROM pg_index i WHERE i.indrelid = to_regclass($1) AND i.indisunique AND i.indexprs IS NULL
"""
_KINDS = {
    "c": ConstraintKind.CHECK,
    "f": ConstraintKind.FOREIGN_KEY,
    "u": ConstraintKind.UNIQUE,
    "x": ConstraintKind.CHECK,  # an exclusion
}


def tables(cursor: "RawCursor[Any]", target: Target, *, with_rules: bool = False) -> Tables:
    """Both tables of a target as they are now. Their rules are read on request."""
    found = [
        table_of(cursor, name, target.key.names, with_rules=with_rules)
        for name in (target.table, target.failures)
    ]
    return Tables(target=found[0], failures=found[1])


def table_of(
    cursor: "RawCursor[Any]", name: str, key: Sequence[str], *, with_rules: bool = False
) -> Table | None:
    """Return a table as it is now, or None. Its rules are read on request."""
    quoted = DIALECT.table(name)
    columns = dict(cursor.execute(_COLUMNS, [quoted]).fetchall())
    if not columns:
        return None
    indexes = [set(names) for (names,) in cursor.execute(_UNIQUE, [quoted]).fetchall()]
    rules = _rules(cursor, name) if with_rules else Rules()
    return Table(columns=columns, unique=set(key) in indexes, rules=rules)


def known_tables(cursor: "RawCursor[Any]", target: Target) -> Mapping[str, bool]:
    """Return, for each of the two tables, whether it has rows to look up."""
    found = ((target.table, "_llm_planned_at"), (target.failures, "_llm_attempts"))
    return {
        name: column in dict(cursor.execute(_COLUMNS, [DIALECT.table(name)]).fetchall())
        for name, column in found
    }


def _rules(cursor: "RawCursor[Any]", name: str) -> Rules:
    quoted = DIALECT.table(name)
    columns = cursor.execute(_COLUMN_RULES, [quoted]).fetchall()
    constraints = cursor.execute(_CONSTRAINTS, [quoted]).fetchall()
    (is_secured,) = cursor.execute("SELECT row_security_active($1)", [quoted]).fetchone() or (False,)
    return Rules(
        not_null=frozenset(column for column, is_not_null, _, _ in columns if is_not_null),
        with_default=frozenset(column for column, _, has_default, _ in columns if has_default),
        generated=frozenset(column for column, _, _, is_generated in columns if is_generated),
        constraints=tuple(
            Constraint(kind=_KINDS[kind], name=called, columns=frozenset(names))
            for kind, called, names in constraints
        ),
        row_security=is_secured,
    )
