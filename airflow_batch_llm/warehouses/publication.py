"""The statements of a preparation and of a publish, in their order. Pure: an adapter runs them in one transaction.

A publish also copies answers that tables hold already to rows with the same input. These rows are staged without the answer's
columns. A copy takes an answer by both hashes, so it never comes from another prompt, model or schema. A row that has got its
copy, or a later answer, is left alone: a copy may be repeated.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.warehouses.base import PACKED_COLUMN, REUSED_COLUMN, ROUTE_COLUMN, Part, Target
from airflow_batch_llm.warehouses.dialect import Dialect, Upsert
from airflow_batch_llm.warehouses.kind import ColumnKind, of_arrow
from airflow_batch_llm.warehouses.statements import FAILURE_ORDER, PLANNED, Landing, Statements
from airflow_batch_llm.warehouses.target import (
    Rules,
    TableShape,
    misfitting,
    refuse_rules,
    shape_failures,
    shape_target,
)

Columns = Mapping[str, str]
_NO_RULES = Rules()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that is there: its columns with the database's types, and whether the key is unique in it."""

    columns: Columns
    unique: bool
    rules: Rules = _NO_RULES
    """The rules that the database enforces when rows are merged. `preparation` needs them, `landings` does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """The relations of the staged rows, for a FROM clause. `twice`: some key is there twice."""

    answers: str
    failures: str | None  # None: there are none
    answers_twice: bool = True
    failures_twice: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One statement."""

    sql: str
    parameters: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """A stage's two tables as they are: None where there is none."""

    target: Table | None
    failures: Table | None


def preparation(target: Target, tables: Tables, statements: Statements) -> list[str]:
    """DDL that gives the two tables their shape, then statements that show whether they may be written."""
    dialect = statements.dialect
    shapes = (
        shape_target(target, _columns(tables.target), dialect),
        shape_failures(target, _columns(tables.failures), dialect),
    )
    ddl: list[str] = []
    for shape, table in zip(shapes, (tables.target, tables.failures), strict=True):
        merged = shape.table == target.failures or target.is_merged
        unique = merged and dialect.upsert in (Upsert.ON_CONFLICT, Upsert.ON_DUPLICATE_KEY)
        if unique and table is not None and not table.unique and dialect.upsert is Upsert.ON_DUPLICATE_KEY:
            raise TargetError(
                f"The table {shape.table} needs a primary key or a unique index on "
                f"({', '.join(target.key.names)}): {dialect.title} merges by it."
            )
        if table is not None:
            refuse_rules(target, shape, table.rules)
            if merged:
                _refuse_others(shape, table, dialect)
        if shape.create:
            ddl.append(statements.create(target, shape.table, shape.columns, unique=unique))
        ddl.extend(statements.add_columns(shape.table, shape.add))
    for shape in shapes:
        ddl.extend(statements.probe(shape.table, shape.columns.names, target.key.names[0]))
    return ddl


def _refuse_others(shape: TableShape, table: Table | None, dialect: Dialect) -> None:
    """Refuse a table with columns that a row would lose, where rows cannot be updated."""
    if table is None or dialect.upsert is not Upsert.DELETE_KEYS_INSERT:
        return
    ours = {name.lower() for name in shape.columns.names}
    others = [name for name in table.columns if name.lower() not in ours]
    if others:
        raise TargetError(
            f"The table {shape.table} has {', '.join(others)}, which this stage does not write: {dialect.title} replaces"
            " whole rows. Carry them from the source, or write to another table."
        )


def landings(target: Target, tables: Tables, statements: Statements) -> tuple[Landing, Landing]:
    """Return the two tables with the columns that are written to each. Both are there: `preparation` ran before."""
    dialect = statements.dialect
    shape = shape_target(target, _columns(tables.target), dialect)
    failed = shape_failures(target, _columns(tables.failures), dialect)
    # A user may have added a column since the preparation.
    if target.is_merged:
        _refuse_others(shape, tables.target, dialect)
    _refuse_others(failed, tables.failures, dialect)
    return (
        Landing(
            table=target.table,
            key=tuple(target.key.names),
            columns=tuple(shape.columns.names),
            casts=_casts(shape, tables.target, statements),
            how=_how(tables.target, shape, statements),
        ),
        Landing(
            table=target.failures,
            key=tuple(target.key.names),
            columns=tuple(failed.columns.names),
            casts=_casts(failed, tables.failures, statements),
            order=FAILURE_ORDER,
            how=_how(tables.failures, failed, statements),
        ),
    )


def publication(
    target: Target,
    parts: Sequence[Part],
    staged: Staged,
    both: tuple[Landing, Landing],
    statements: Statements,
) -> list[Step]:
    """Answers first, then the failures that they settle, then the failures that are left."""
    answers, failures = both
    rows = (statements.latest if staged.answers_twice else statements.plain)(answers, staged.answers)
    if not target.is_merged:
        pairs = sorted({(part.run_id, part.shard) for part in parts})
        parameters = tuple(value for pair in pairs for value in pair)
        steps = [
            Step(sql=statements.remove_shards(answers, len(pairs)), parameters=parameters),
            Step(sql=statements.append(answers, rows)),
        ]
    else:
        steps = [Step(sql=sql) for sql in statements.upsert(answers, rows)]
    steps.append(Step(sql=statements.settle(failures, staged.answers)))
    if staged.failures is None:
        return steps
    rows = (statements.latest if staged.failures_twice else statements.plain)(failures, staged.failures)
    left = statements.unanswered(failures, answers, rows)
    return [*steps, *(Step(sql=sql) for sql in statements.upsert(failures, left))]


def staged_columns(schema: pa.Schema, key: Sequence[str], statements: Statements) -> list[str]:
    """Return the columns of a staging table: quoted name and type."""
    dialect = statements.dialect
    return [
        f"{dialect.quote(field.name)} {dialect.staged_type(field.type, key=field.name in key)}"
        for field in schema
    ]


def _columns(table: Table | None) -> Columns | None:
    return None if table is None else table.columns


def _how(table: Table | None, shape: TableShape, statements: Statements) -> Upsert:
    usual = statements.dialect.upsert
    if usual is Upsert.ON_CONFLICT and (table is None or not table.unique):
        return Upsert.UPDATE_INSERT
    if usual is Upsert.DELETE_INSERT and table is not None:
        # A row that is written again would lose what others have in it, and an index may hold its key still.
        others = {name.lower() for name in table.columns} - {name.lower() for name in shape.columns.names}
        return Upsert.UPDATE_INSERT if others or table.unique else usual
    return usual


def _casts(shape: TableShape, table: Table | None, statements: Statements) -> dict[str, str]:
    dialect = statements.dialect
    present = {name.lower(): type_ for name, type_ in (table.columns if table else {}).items()}
    casts = {}
    for field in shape.columns:
        kind = of_arrow(field.type)
        template = dialect.from_text.get(kind)
        # JSON that goes to a text column stays text.
        if template and dialect.kind_of(present.get(field.name.lower(), "")) is not ColumnKind.STRING:
            casts[field.name] = template
    return casts


_INPUT, _SPEC, _RUN = "_llm_input_hash", "_llm_spec_hash", "_llm_run_id"
_PLACE, _RANK = "_llm_place", "_llm_rank"

#: The columns that a table of answers must have besides the answer's own.
_NEEDED = (_INPUT, _SPEC, "_llm_model", _RUN, PLANNED)

#: Columns that say how an answer was bought. A table of an earlier release may be without them.
_OF_THE_ANSWER = {column.name: column.type for column in (ROUTE_COLUMN, PACKED_COLUMN, REUSED_COLUMN)}

_HASH = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Donor:
    """A table whose answers may be copied: its name in SQL, and its columns in small letters."""

    table: str
    columns: frozenset[str]
    within: str = ""
    """A condition on the table's columns that its partitions ask for. Default: none."""


def donor(target: Target, name: str, columns: Mapping[str, str] | None, dialect: Dialect) -> Donor:
    """Return a table as a donor of answers. Raises `TargetError` if its answers do not fit the target.

    `columns` are those of the table with the database's types, or None if there is no such table.
    """
    if columns is None:
        raise TargetError(
            f"reuse names the table {name}, which does not exist. Name a target of this package."
        )
    present = {column.lower(): type_ for column, type_ in columns.items()}
    missing = [column for column in (*target.answer.names, *_NEEDED) if column.lower() not in present]
    if missing and name != target.table:
        raise TargetError(
            f"reuse names the table {name}, which lacks {', '.join(missing)}. Name a target with the same answer."
        )
    misfits = misfitting(target.answer, present, dialect)
    if misfits and name != target.table:
        raise TargetError(f"reuse names the table {name}, which does not fit: {'; '.join(misfits)}.")
    return Donor(table=dialect.table(name), columns=frozenset(present))


def answered(
    target: Target, one: Donor, spec_hash: str, among: Sequence[str] | None, dialect: Dialect
) -> Source:
    """Return the query for the input hashes that a table has answers to by this spec.

    `among` are the hashes to look for. None: all.
    """
    q = dialect.quote
    conditions = [f"y.{q(_SPEC)} = {_literal(spec_hash)}", *_usable(target, one, dialect)]
    if among is not None:
        conditions.append(f"y.{q(_INPUT)} IN ({', '.join(map(_literal, among))})")
    return Source(sql=f"SELECT y.{q(_INPUT)} FROM {one.table} AS y WHERE {' AND '.join(conditions)}")


def _literal(digest: str) -> str:
    """Return a hash as SQL."""
    assert _HASH.fullmatch(digest), "a hash is written in digits of base 16"
    return f"'{digest}'"


def _usable(target: Target, one: Donor, dialect: Dialect) -> Iterator[str]:
    """Yield the conditions on a table's rows besides their hashes. A column may be younger than an answer."""
    if one.within:
        yield one.within
    for name in target.never_null:
        if name.lower() in one.columns:
            yield f"y.{dialect.quote(name)} IS NOT NULL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Copying:
    """Builds the statements that copy answers into one target."""

    target: Target
    statements: Statements
    table: str
    """The target's name in SQL."""
    within: str = ""
    """A condition on the target's rows `t` that its partitions ask for. Default: none."""

    def rows(self, donors: Iterable[Donor], staged: str, landing: Landing) -> str:
        """Return the query for the rows of the target that get a copy: the staged ones with their answers.

        Of several answers to one input, the first table's latest counts.
        """
        q = self.statements.dialect.quote
        given = f"SELECT DISTINCT w.{q(_SPEC)}, w.{q(_INPUT)} FROM {staged} AS w"
        names = {*self.target.answer.names, "_llm_model", *_OF_THE_ANSWER}
        taken = [name for name in landing.columns if name in names]
        found = " UNION ALL ".join(
            self._answers_of(one, place, taken, given) for place, one in enumerate(donors)
        )
        ranked = (
            f"SELECT u.*, ROW_NUMBER() OVER (PARTITION BY u.{q(_SPEC)}, u.{q(_INPUT)} "
            f"ORDER BY u.{q(_PLACE)}, {self.statements.later('u')}) AS {q(_RANK)} FROM ({found}) AS u"
        )
        listed = ", ".join(
            f"h.{q(name)}" if name in taken else self.statements.cast(landing, name)
            for name in landing.columns
        )
        return (
            f"SELECT {listed} FROM {staged} AS r JOIN (SELECT * FROM ({ranked}) AS k WHERE k.{q(_RANK)} = 1) AS h "
            f"ON h.{q(_SPEC)} = r.{q(_SPEC)} AND h.{q(_INPUT)} = r.{q(_INPUT)} WHERE NOT {self._is_there('r')}"
        )

    def landed(self, staged: str) -> str:
        """Return the staged rows that are in the target, as a relation."""
        return f"(SELECT r.* FROM {staged} AS r WHERE {self._is_there('r')})"

    def steps(self, donors: Iterable[Donor], staged: str, both: tuple[Landing, Landing]) -> list[str]:
        """Return the statements of one transaction: copy the answers, then take out the failures that they settle."""
        answers, failures = both
        rows = self.rows(donors, staged, answers)
        merged = self.target.is_merged
        changes = self.statements.copy(answers, rows) if merged else [self.statements.append(answers, rows)]
        return [*changes, self.statements.settle(failures, self.landed(staged))]

    def count(self, staged: str) -> str:
        """Return the query for the number of staged rows that are in the target."""
        return f"SELECT COUNT(*) AS n FROM {self.landed(staged)} AS c"

    def _answers_of(self, one: Donor, place: int, taken: Sequence[str], given: str) -> str:
        q = self.statements.dialect.quote
        chosen = [
            f"{place} AS {q(_PLACE)}",
            *(f"y.{q(name)}" for name in (_SPEC, _INPUT, PLANNED)),
            *(f"{self._value(name, one)} AS {q(name)}" for name in taken),
        ]
        same = " AND ".join(f"w.{q(name)} = y.{q(name)}" for name in (_SPEC, _INPUT))
        where = " AND ".join(_usable(self.target, one, self.statements.dialect)) or "1 = 1"
        return f"SELECT {', '.join(chosen)} FROM {one.table} AS y JOIN ({given}) AS w ON {same} WHERE {where}"

    def _value(self, name: str, one: Donor) -> str:
        """Return the value of a column in a table of answers. The run is the one that bought the answer, also of a copy."""
        q = self.statements.dialect.quote
        is_there = name.lower() in one.columns
        if name == REUSED_COLUMN.name:
            return f"COALESCE(y.{q(name)}, y.{q(_RUN)})" if is_there else f"y.{q(_RUN)}"
        return f"y.{q(name)}" if is_there else self.statements.null(_OF_THE_ANSWER[name])

    def _is_there(self, staged: str) -> str:
        """Return the condition that a staged row is in the target: its copy, or an answer that was planned later."""
        q = self.statements.dialect.quote
        newer = f"t.{q(PLANNED)} >= {staged}.{q(PLANNED)}"
        if not self.target.is_merged:
            newer = f"t.{q(_RUN)} = {staged}.{q(_RUN)}"
        same = self.statements.same(self.target.key.names, "t", staged)
        where = " AND ".join(filter(None, (self.within, same, newer)))
        return f"EXISTS (SELECT 1 FROM {self.table} AS t WHERE {where})"
