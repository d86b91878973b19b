"""Recognise one person's rows by key, in keys files, in reports and in the target."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation

import pyarrow as pa

from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.core.value import text
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.stage.land.landing import SAMPLE_CHARS

ERASED = "[erased]"
_PLAIN_NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """The key of the rows that are erased."""

    values: tuple[str, ...]
    """The key's values as texts, one for each column."""
    columns: tuple[str, ...] = ()
    """The columns of the values. Default: the key columns of each run, in their order."""
    target: str | None = None
    """The table whose runs are looked at. Default: the runs of all tables."""

    def __post_init__(self) -> None:
        if not self.values or (self.columns and len(self.columns) != len(self.values)):
            raise InputError(
                f"{counted(len(self.values), 'value')} and {counted(len(self.columns), 'column')} do not match."
                " Give --key once for each key column, and --key-column as often or never."
            )

    def columns_in(self, key: pa.Schema, others: pa.Schema) -> tuple[str, ...] | None:
        """Return the columns that hold the values in a run with this key and these other columns.

        Returns None if the run does not have them.
        """
        if not self.columns:
            return tuple(key.names) if len(key.names) == len(self.values) else None
        known = {*key.names, *others.names}
        return self.columns if known.issuperset(self.columns) else None

    def rows(self, batch: pa.RecordBatch, columns: Sequence[str]) -> list[bool]:
        """Return for each row whether it is the person's."""
        found = [True] * batch.num_rows
        for name, wanted in zip(columns, self.values, strict=True):
            values = batch.column(name).to_pylist()
            found = [before and _is_same(value, wanted) for before, value in zip(found, values, strict=True)]
        return found

    def is_sample(self, sample: str, key: Sequence[str], columns: Sequence[str]) -> bool:
        """Return whether a key that a report shows is, or may be, the person's."""
        cut = [value[:SAMPLE_CHARS] for value in self.values]
        if list(columns) == list(key):
            return sample == "/".join(cut)
        return all(value in sample.split("/") or ("/" in value and value in sample) for value in cut)

    def statements(self, tables: Iterable[str], columns: Sequence[str], key: pa.Schema) -> list[str]:
        """Return the SQL that deletes the person's rows from these tables."""
        conditions = " AND ".join(
            f"{name} = {_literal(value, key.field(name).type if name in key.names else pa.string())}"
            for name, value in zip(columns, self.values, strict=True)
        )
        return [f"DELETE FROM {table} WHERE {conditions};" for table in tables]


def _is_same(value: object, wanted: str) -> bool:
    """Return whether a key's value has this text, in any of the spellings in which people meet it."""
    match value:
        case None:
            return False
        case bytes():
            return value.hex() == wanted.lower()
        case bool():
            return text(value) == wanted.lower()
        case int() | float() | Decimal():
            return str(value) == wanted or _is_same_number(value, wanted)
        case datetime():
            return wanted in (str(value), value.isoformat(), text(value))
        case _:
            return str(value) == wanted


def _is_same_number(value: float | Decimal, wanted: str) -> bool:
    try:
        return Decimal(str(value)) == Decimal(wanted)
    except InvalidOperation:
        return False


def _literal(value: str, type_: pa.DataType) -> str:
    is_number = pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_)
    if is_number and _PLAIN_NUMBER.fullmatch(value):
        return value
    return "'" + value.replace("'", "''") + "'"
