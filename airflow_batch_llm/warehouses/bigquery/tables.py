"""Look up, create, extend and try the target and the failures table in BigQuery. A trial leaves no trace.

Everything that BigQuery would refuse when answers are merged is refused here, before anything is sent: the merge
itself is compiled by a dry run, which checks rights, types and the partition filter, is free, and leaves nothing.
"""

from __future__ import annotations

import datetime as dt
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.warehouses.base import Part, Target
from airflow_batch_llm.warehouses.bigquery.connection import Connection, Query, TableName, quoted
from airflow_batch_llm.warehouses.bigquery.jobs import Work, content_label, digest, stem_of, translated
from airflow_batch_llm.warehouses.bigquery.registration import DIALECT
from airflow_batch_llm.warehouses.bigquery.sql import (
    HIGHEST,
    LOWEST,
    BigQueryTables,
    Columns,
    anywhere,
    bound,
    own_donor,
    records_merge,
    review_changes,
    trials,
)
from airflow_batch_llm.warehouses.bigquery.types import existing_types, schema_field
from airflow_batch_llm.warehouses.publication import Donor, donor
from airflow_batch_llm.warehouses.target import (
    Rules,
    TableShape,
    refuse_rules,
    required_columns,
    shape_failures,
    shape_reviews,
    shape_target,
)

if TYPE_CHECKING:
    from google.cloud.bigquery import Dataset, QueryJob, Table


#: Types that BigQuery can neither join by nor group by exactly.
_NO_KEYS = frozenset({"FLOAT64", "JSON", "ARRAY<FLOAT64>"})

#: Types by which a table can be cut into days. By whole numbers it is cut into ranges, which only the user knows.
_DAYS = frozenset({"DATE", "DATETIME", "TIMESTAMP"})

_FORBIDDEN_IN_COLUMNS = re.compile(r"[!\"$()*,./;?@\[\\\]^`{}~\x00-\x1f]")

_FORBIDDEN_IN_TABLES = re.compile(r"[\x00-\x1f!-,./:-@\[-^`{-\x7f]")

#: The most retries when several tasks prepare one target at once.
_ROUNDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetTables:
    """The two tables of one target, by their names, through one connection."""

    connection: Connection
    target: Target
    answers: TableName
    failures: TableName
    staging: TableName  # of any table in whose dataset others are staged
    review: TableName | None = None
    """The review table. Default: there is none."""

    def look(self) -> BigQueryTables:
        """Return both tables with the columns that are written to them. A missing table has no columns."""
        return BigQueryTables(
            target=self.target,
            answers=self._columns(self.answers, self.target.answer_columns),
            failures=self._columns(self.failures, self.target.failure_columns),
        )

    def donor(self, written: str) -> Donor:
        """Return a table whose answers may be copied."""
        if written == self.target.table:
            return own_donor(self.look())
        name = self.connection.name(written)
        table = self.connection.table(name)
        types = _types(table)
        found = donor(self.target, written, types, DIALECT)
        cut = _cut(table) if table is not None and table.require_partition_filter else None
        within = "" if cut is None else anywhere(f"y.{quoted(cut)}", (types or {}).get(cut, "TIMESTAMP"))
        return replace(found, table=name.quoted, within=within)

    def staged(self, part: Part) -> TableName:
        """Return the name of the table that holds the staged rows of a part."""
        named = digest(self.answers, part.run_id, part.round, part.shard)
        return replace(self.staging, table=f"llm_staged_{named}")

    def created(self) -> str:
        """Return the creation mark that distinguishes the present tables from earlier ones of the same names."""
        tables = [self.connection.table(self.answers), self.connection.table(self.failures)]
        return " ".join(str(table.created) for table in tables if table is not None)

    def location(self) -> str | None:
        """Return the location of the target's dataset, in which its jobs run."""
        return str(self._dataset(self.answers).location)

    def prepare(self) -> None:
        """Create or extend both tables, or raise an error that says why that is not possible."""
        self._refuse_names()
        self._refuse_keys()
        for name in {self.answers.dataset: self.answers, self.staging.dataset: self.staging}.values():
            self._dataset(name)
        found = self.connection.table(self.answers), self.connection.table(self.failures)
        for table in found:
            if table is not None and table.table_type != "TABLE":
                raise TargetError(f"{table.reference} is a {table.table_type}, which cannot be merged into.")
        shapes = (
            shape_target(self.target, _types(found[0]), DIALECT),
            shape_failures(self.target, _types(found[1]), DIALECT),
        )
        for shape, table in zip(shapes, found, strict=True):
            refuse_rules(self.target, shape, _rules(table))
        self._refuse_partitioning(found[0])
        self._bring_to(self.answers)
        self._bring_to(self.failures)
        tables = self.look()
        self._try(tables, trials(tables))
        self._try_staging()

    def prepare_reviews(self) -> None:
        """Create or extend the review table, or raise an error that says why that is not possible. The other two are ready."""
        name = self.reviews()
        self._refuse_names()
        table = self.connection.table(name)
        if table is not None and table.table_type != "TABLE":
            raise TargetError(f"{table.reference} is a {table.table_type}, which cannot be written to.")
        shape = shape_reviews(self.target, _types(table), DIALECT)
        refuse_rules(replace(self.target, never_null=()), shape, _rules(table))
        self._bring_to(name)
        tables = self.look()
        within = bound(self.target, "T", f"@{LOWEST}", f"@{HIGHEST}")
        self._try(tables, review_changes(tables, name, within))

    def reviews(self) -> TableName:
        """Return the name of the review table of a target that has one."""
        assert self.review is not None, "the stage keeps a review table"
        return self.review

    def required_columns(self) -> frozenset[str]:
        """Return the carried columns that are REQUIRED in the target."""
        return required_columns(self.target, _rules(self.connection.table(self.answers)))

    def _columns(self, name: TableName, wanted: pa.Schema) -> Columns:
        table = self.connection.table(name)
        present = {} if table is None else {key.lower(): kind for key, kind in _types_of(table).items()}
        types = {field.name: present[field.name.lower()] for field in wanted if field.name.lower() in present}
        return Columns(name=name, key=tuple(self.target.key.names), types=types)

    def _dataset(self, name: TableName) -> Dataset:
        from google.api_core.exceptions import NotFound

        dataset = f"{name.project}.{name.dataset}"
        with translated(f"looking at {dataset}"):
            try:
                return self.connection.client.get_dataset(dataset, retry=self.connection.patience.retry())
            except NotFound:
                pass
        raise TargetError(
            f"BigQuery has no dataset {dataset}, or it may not be seen. Create it where the source is, with "
            f"CREATE SCHEMA `{dataset}` OPTIONS(location=…), or ask for the right bigquery.datasets.get."
        )

    def _written(self) -> list[TableName]:
        return [name for name in (self.answers, self.failures, self.review) if name is not None]

    def _refuse_names(self) -> None:
        for name in self._written():
            if _FORBIDDEN_IN_TABLES.search(name.table) or len(name.table.encode()) > 1024:
                raise TargetError(
                    f"BigQuery has no table named {name.table!r}: it takes letters, digits, _, - and blanks."
                )
        for field in [*self.target.answer_columns, *self.target.failure_columns]:
            DIALECT.quote(field.name)
            if _FORBIDDEN_IN_COLUMNS.search(field.name):
                raise TargetError(
                    f'BigQuery has no column named {field.name!r}: the characters !"$()*,./;?@[\\]^`{{}}~ are not '
                    "allowed. Rename it with `columns=`, or in the source query."
                )

    def _refuse_keys(self) -> None:
        for field in self.target.key:
            kind = DIALECT.column_type(field.type)
            if kind in _NO_KEYS:
                raise TargetError(
                    f"Key column {field.name!r} is of type {kind}, by which BigQuery cannot merge. "
                    "Cast it to STRING, INT64 or NUMERIC in the source query."
                )

    def _refuse_partitioning(self, table: Table | None) -> None:
        column = self.target.partition_by
        if table is None:
            self._refuse_new_partitioning(column)
            return
        cut = _cut(table)
        if table.require_partition_filter and (column or "").lower() != (cut or "").lower():
            raise TargetError(
                f"The table {self.answers} may only be queried with a filter on {cut}. "
                f"Carry that column from the source and set partition_by={cut!r}."
            )

    def _refuse_new_partitioning(self, column: str | None) -> None:
        if column is None:
            return
        kind = DIALECT.column_type(self.target.answer_columns.field(column).type)
        if kind not in _DAYS:
            raise TargetError(
                f"partition_by={column!r} is of type {kind}; a table is created with partitions by DATE, DATETIME "
                f"or TIMESTAMP. Create {self.answers} yourself with the ranges that you want."
            )

    def _bring_to(self, name: TableName) -> None:
        """Create or extend a table. Others may do so at the same time: look again until nothing is left to do."""
        from google.api_core.exceptions import Conflict, PreconditionFailed

        shapes = {self.answers: shape_target, self.failures: shape_failures, self.review: shape_reviews}
        shape_of = shapes[name]
        for _ in range(_ROUNDS):
            table = self.connection.table(name)
            shape = shape_of(self.target, _types(table), DIALECT)
            if not shape.create and not len(shape.add):
                return
            with translated(f"shaping {name}"):
                try:
                    self._change(name, table, shape)
                except (Conflict, PreconditionFailed):
                    continue
        raise TargetError(f"Other tasks keep changing the table {name}; prepare it once, then run them.")

    def _change(self, name: TableName, table: Table | None, shape: TableShape) -> None:
        from google.cloud.bigquery import Table

        retry = self.connection.patience.retry()
        if table is not None:
            table.schema = [*table.schema, *(schema_field(field) for field in shape.add)]
            self.connection.client.update_table(table, ["schema"], retry=retry)
            return
        table = Table(str(name), schema=[schema_field(field) for field in shape.columns])
        if name == self.answers:
            self._lay_out(table)
        self.connection.client.create_table(table, retry=retry)

    def _lay_out(self, table: Table) -> None:
        from google.cloud.bigquery import TimePartitioning

        if self.target.partition_by is not None:
            table.time_partitioning = TimePartitioning(field=self.target.partition_by)
        if self.target.cluster_by:
            table.clustering_fields = list(self.target.cluster_by)

    def _try(self, tables: BigQueryTables, statements: Sequence[str]) -> None:
        """Compile statements that a run will run later."""
        location = self.location()
        for statement in statements:
            query = Query(
                sql=statement,
                doing="trying to write",
                parameters=self._bound_parameters(tables),
                labels=self.connection.labels(self.target),
                location=location,
            )
            complaint = self.connection.reads.complaint(query)
            if complaint is not None:
                raise TargetError(
                    f"Writing to {' and '.join(map(str, self._written()))} will not work: {complaint}. "
                    "The identity of the connection needs bigquery.jobs.create in the project, and "
                    "bigquery.tables.getData and bigquery.tables.updateData on these tables."
                )

    def _bound_parameters(self, tables: BigQueryTables) -> list[Any]:
        from google.cloud.bigquery import ScalarQueryParameter

        if self.target.partition_by is None:
            return []
        return [ScalarQueryParameter(name, tables.partition_type, None) for name in (LOWEST, HIGHEST)]

    def _try_staging(self) -> None:
        """Create a staging table and drop it, because no dry run shows whether that is allowed."""
        from google.api_core.exceptions import ClientError
        from google.cloud.bigquery import SchemaField, Table

        probe = Table(
            f"{self.staging.project}.{self.staging.dataset}.llm_probe_{uuid.uuid4().hex}",
            schema=[SchemaField("c0", "INT64")],
        )
        probe.expires = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
        retry = self.connection.patience.retry()
        with translated("trying to stage"):
            try:
                self.connection.client.create_table(probe, retry=retry)
                self.connection.client.delete_table(probe, retry=retry, not_found_ok=True)
                return
            except ClientError:
                pass
        raise TargetError(
            f"No table can be staged in {self.staging.project}.{self.staging.dataset}. Grant the connection's "
            "identity bigquery.tables.create and bigquery.tables.delete there, or set staging_schema."
        )


def _cut(table: Table) -> str | None:
    """Return the column by which a table is partitioned, or None."""
    time, ranges = table.time_partitioning, table.range_partitioning
    return (time.field or "_PARTITIONTIME") if time else ranges.field if ranges else None


def _types(table: Table | None) -> Mapping[str, str] | None:
    return None if table is None else _types_of(table)


def _types_of(table: Table) -> dict[str, str]:
    return existing_types(table.schema)


def _rules(table: Table | None) -> Rules:
    """BigQuery enforces no keys; columns may be REQUIRED."""
    fields = table.schema if table is not None else ()
    return Rules(
        not_null=frozenset(field.name for field in fields if field.mode == "REQUIRED"),
        with_default=frozenset(field.name for field in fields if field.default_value_expression is not None),
        folds=tuple(
            (field.name, found) for field in fields if (found := field.to_api_repr().get("collation"))
        ),
    )


#: Rows of one statement, which takes 10,000 parameters at most.
_ROWS_PER_MERGE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordTable:
    """One table of records, by its name."""

    connection: Connection
    name: TableName

    def write(self, rows: pa.RecordBatch) -> None:
        """Merge rows by their ids."""
        table = self._shaped(rows.schema)
        for start in range(0, rows.num_rows, _ROWS_PER_MERGE):
            self._merge(rows.slice(start, _ROWS_PER_MERGE), table)

    def _shaped(self, columns: pa.Schema) -> Table:
        """Give the table its columns."""
        from google.api_core.exceptions import Conflict, PreconditionFailed
        from google.cloud.bigquery import Table

        client, retry = self.connection.client, self.connection.patience.retry()
        for _ in range(_ROUNDS):
            table = self.connection.table(self.name)
            there = set() if table is None else {field.name.lower() for field in table.schema}
            missing = [schema_field(field) for field in columns if field.name not in there]
            if table is not None and not missing:
                return table
            with translated(f"shaping {self.name}"):
                try:
                    if table is None:
                        client.create_table(Table(str(self.name), schema=missing), retry=retry)
                    else:
                        table.schema = [*table.schema, *missing]
                        client.update_table(table, ["schema"], retry=retry)
                except (Conflict, PreconditionFailed):
                    continue
        raise TargetError(f"Other tasks keep changing the table {self.name}. The next run writes to it.")

    def _merge(self, rows: pa.RecordBatch, table: Table) -> None:
        content = digest(table.created, *(value for row in rows.to_pylist() for value in row.values()))
        location = table.location
        self.connection.jobs.perform(
            Work(
                doing=f"writing to {self.name}",
                stem=stem_of("records", self.name),
                content=content,
                location=location,
                submit=lambda job_id: self._submit(rows, job_id, location, content),
            )
        )

    def _submit(self, rows: pa.RecordBatch, job_id: str, location: str | None, content: str) -> QueryJob:
        from google.cloud.bigquery import QueryJobConfig, ScalarQueryParameter

        parameters = [
            ScalarQueryParameter(f"r{at}c{place}", DIALECT.column_type(field.type), row[field.name])
            for at, row in enumerate(rows.to_pylist())
            for place, field in enumerate(rows.schema)
        ]
        labels = {**self.connection.labels(), **content_label(content)}
        return self.connection.client.query(
            records_merge(self.name, rows.schema.names, rows.num_rows),
            job_id=job_id,
            location=location,
            job_config=QueryJobConfig(labels=labels, query_parameters=parameters),
            retry=self.connection.patience.retry(),
            job_retry=None,  # a job that fails is followed by one with the next number
        )
