"""Run a stage inside BigQuery: the tables of a plan and of its answers, and the statements between them.

A planner has a table of all rows of its source, and a plan one of the rows that are sent. A shard that lands has a table
of the answers that a statement is sure of. Each is written whole by one job, so that an attempt that is killed leaves
nothing that the next one would have to take apart.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from airflow_batch_llm.core.model import Usage
from airflow_batch_llm.core.selection import SENT, Reason
from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import WarehouseError
from airflow_batch_llm.warehouses.base import Part, Target
from airflow_batch_llm.warehouses.bigquery import stage_sql as sql
from airflow_batch_llm.warehouses.bigquery.connection import (
    Connection,
    Query,
    TableName,
    query_parameters,
    quoted,
)
from airflow_batch_llm.warehouses.bigquery.jobs import Work, content_label, digest, stem_of, translated
from airflow_batch_llm.warehouses.bigquery.staging import KeyLookup
from airflow_batch_llm.warehouses.bigquery.tables import TargetTables
from airflow_batch_llm.warehouses.bigquery.types import existing_types, read_schema
from airflow_batch_llm.warehouses.kind import ColumnKind, of_arrow
from airflow_batch_llm.warehouses.stages import (
    Judged,
    Judging,
    Numbered,
    Numbering,
    Selected,
    Selection,
    SizedShard,
)

_SCHEME = "bq://"

#: The times after which BigQuery drops tables that no run has dropped: those of a planner, and those that a run still needs.
_SELECTED_FOR, _PLANNED_FOR, _ASKED_FOR = dt.timedelta(days=1), dt.timedelta(days=30), dt.timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class BigQueryStage:
    """The tables of a stage in BigQuery."""

    connection: Connection
    target_tables: TargetTables

    @property
    def scheme(self) -> str:
        return _SCHEME

    @property
    def uri(self) -> str:
        staging = self.target_tables.staging
        return f"{_SCHEME}{staging.project}.{staging.dataset}"

    @property
    def _target(self) -> Target:
        return self.target_tables.target

    # Planning.

    def select_rows(self, selection: Selection) -> None:
        """Write the table of all rows."""
        names = sql.needed(self._target, selection)
        source, parameters = KeyLookup(
            connection=self.connection, target_tables=self.target_tables
        ).statement(selection.source, columns=", ".join(f"S.{quoted(name)}" for name in names))
        types = source_types(self.connection, selection.source)
        table = self._rows(selection)
        # A plan that is only looked at makes no target.
        is_made = bool(self.target_tables.look().answers.types)
        donors = [
            self.target_tables.donor(name)
            for name in selection.donors
            if is_made or name != self._target.table
        ]
        self._write(
            table,
            sql.selected_rows(self._target, selection, source, types, donors),
            _SELECTED_FOR,
            parameters,
        )

    def count_rows(self, selection: Selection) -> Selected:
        """Count the rows by reason, and the bytes of the prompts to send."""
        table, checked = self._rows(selection), (*self._target.key.names, *selection.required)
        [total] = self._ask(sql.totals(self._target, selection, table.quoted)).to_pylist()
        problems = self._ask(sql.problems(table.quoted)).to_pylist()
        return Selected(
            problems={one["code"]: one["n"] for one in problems},
            nulls=tuple(name for at, name in enumerate(checked) if total[f"null{at}"]),
            requests=total["requests"],
            prompt_bytes=total["bytes"] or 0,
            largest_bytes=total["largest"] or 0,
        )

    def doubled_keys(self, selection: Selection, most: int) -> pa.RecordBatch:
        """Return some keys that are there more than once."""
        return self._batch(sql.doubled_keys(self._target, self._rows(selection).quoted, most))

    def sample_prompts(self, selection: Selection, most: int) -> list[str]:
        """Return the prompts of the rows with the smallest hashes."""
        found = self._ask(sql.sample_prompts(self._rows(selection).quoted, most))
        return [str(row["prompt"]) for row in found.to_pylist()]

    def unsendable_rows(self, selection: Selection) -> pa.RecordBatchReader:
        """Return the rows that have a problem."""
        return self._read(sql.unsendable_rows(self._target, self._rows(selection).quoted))

    def plan_table(self, nonce: str) -> str | None:
        """Look for the table of a plan."""
        name = self._plan(nonce)
        return None if self.connection.table(name) is None else f"{_SCHEME}{name}"

    def leave_out(self, selection: Selection, plan_table: str) -> None:
        """Change the reason of the rows that another plan asks."""
        rows = self._rows(selection)
        statement = sql.left_out(self._target, rows.quoted, named(plan_table).quoted)
        self._perform(rows, statement, digest(statement))

    def number_requests(self, numbering: Numbering) -> Numbered:
        """Write the table of a plan, and count its shards."""
        rows = self._rows(numbering.selection).quoted
        plan = self._plan(numbering.nonce)
        self._write(plan, sql.numbered_rows(self._target, numbering, rows), _PLANNED_FOR)
        shards = self._ask(sql.shards(plan.quoted)).to_pylist()
        planned = self._counts(sql.reasons_of(plan.quoted))
        found = self._counts(sql.reasons_of(rows))
        return Numbered(
            shards=[SizedShard(*row.values()) for row in shards], reasons=_with_postponed(found, planned)
        )

    def forget_rows(self, selection: Selection) -> None:
        """Drop the table of all rows."""
        self.connection.drop(self._rows(selection))

    def stage_copies(self, nonce: str, part: Part, stamp: Mapping[str, object]) -> None:
        """Stage the rows of a plan that get a copy of an answer."""
        rows = sql.copied_rows(self._target.without_answer, stamp, self._plan(nonce).quoted)
        self._write(self.target_tables.staged(part), rows, _ASKED_FOR)

    # Sending.

    def write_requests(self, nonce: str, shard: int, table: str) -> None:
        """Copy the requests of a shard."""
        self._write(named(table), sql.requests(self._plan(nonce).quoted, shard), _ASKED_FOR)

    def count_answers(self, table: str, mark: str) -> int | None:
        """Count the rows of a table of answers by the beginning of their custom_id."""
        name = named(table)
        if self.connection.table(name) is None:
            return None
        [row] = self._ask(sql.answers_with(name.quoted, mark)).to_pylist()
        return int(row["n"])

    def keep_answers(self, table: str) -> None:
        """Set a table's expiration, if it has none."""
        found = self.connection.table(named(table))
        if found is None or found.expires is not None:
            return
        found.expires = dt.datetime.now(dt.UTC) + _PLANNED_FOR
        with translated(f"giving {found.reference} an end"):
            self.connection.client.update_table(found, ["expires"], retry=self.connection.patience.retry())

    # Landing.

    def judge_answers(self, judging: Judging) -> Judged:
        """Write the answers that are sure, then the staged rows, and add up."""
        staged = self.target_tables.staged(judging.part)
        sure = self._sure(judging)
        trusted = judging if self._takes_json() else replace(judging, trusted=False)
        self._write(sure, sql.sure_answers(trusted, self._answers(judging)), _ASKED_FOR)
        plan = self._plan(judging.nonce).quoted
        self._write(staged, sql.staged_rows(self._target, judging, plan, sure.quoted), _ASKED_FOR)
        [total] = self._ask(sql.sums(judging, plan, sure.quoted)).to_pylist()
        return Judged(
            rows=total["n"],
            requests=total["requests"],
            usage=Usage(
                input_tokens=total["input"] or 0,
                cached_tokens=total["cached"] or 0,
                output_tokens=total["output"] or 0,
                reasoning_tokens=total["reasoning"] or 0,
            ),
            output_squares=total["squares"] or 0.0,
            cost=total["cost"] or 0.0,
            list_cost=total["list_cost"] or 0.0,
            unpriced=total["unpriced"],
            cache_answers=total["answers"],
            cache_hits=total["hits"],
            cache_won=total["won"] or 0.0,
            labels={name: self._labels(judging, name) for name in judging.labelled},
        )

    def _takes_json(self) -> bool:
        """Return whether nested answers go into columns of type JSON: as text, a worker spells them in its own way."""
        nested = [field for field in self._target.answer if of_arrow(field.type) is ColumnKind.JSON]
        tables = self.target_tables.look() if nested else None
        return tables is None or all(tables.type_of(field) == "JSON" for field in nested)

    def _labels(self, judging: Judging, name: str) -> dict[object, int]:
        plan, sure = self._plan(judging.nonce).quoted, self._sure(judging).quoted
        found = self._ask(sql.labels(self._target, judging, plan, sure, name)).to_pylist()
        return {row["label"]: row["n"] for row in found}

    def unsure_rows(self, judging: Judging) -> pa.RecordBatchReader:
        """Return the rows of the shard whose answers are not among the sure ones."""
        plan = self._plan(judging.nonce).quoted
        return self._read(sql.unsure_rows(self._target, judging, plan, self._sure(judging).quoted))

    def unsure_answers(self, judging: Judging) -> pa.RecordBatchReader:
        """Return the answers that are not among the sure ones."""
        return self._read(sql.unsure_answers(self._answers(judging), self._sure(judging).quoted))

    def drop_plan(self, nonce: str, parts: Sequence[Part]) -> None:
        """Drop the tables of a plan."""
        for name in (*map(self._sure_of, parts), self._plan(nonce)):
            self.connection.drop(name)

    # Tables.

    def _plan(self, nonce: str) -> TableName:
        return replace(self.target_tables.staging, table=f"llm_plan_{nonce}")

    def _rows(self, selection: Selection) -> TableName:
        return replace(self.target_tables.staging, table=f"llm_rows_{selection.name}")

    def _sure(self, judging: Judging) -> TableName:
        return self._sure_of(judging.part)

    def _sure_of(self, part: Part) -> TableName:
        staged = self.target_tables.staged(part)
        return replace(staged, table=f"{staged.table}_sure")

    def _answers(self, judging: Judging) -> str | None:
        """Return the query for the answers, with the response as text, or None if the vendor has written none."""
        if not judging.answers:
            return None
        name = named(judging.answers)
        table = self.connection.table(name)
        if table is None:
            raise WarehouseError(
                f"The table {name}, which holds answers, is gone. Restore it, or clear the task to ask again."
            )
        is_json = existing_types(table.schema).get("response") == "JSON"
        response = "TO_JSON_STRING(response)" if is_json else "response"
        return f"(SELECT custom_id, status, {response} AS response FROM {name.quoted})"

    # Jobs.

    def _write(
        self, table: TableName, select: str, lifetime: dt.timedelta, parameters: Sequence[Any] = ()
    ) -> None:
        """Make or replace a table by a query, in one job. A job that an earlier attempt began is waited for."""
        until = dt.datetime.now(dt.UTC) + lifetime
        statement = (
            f"CREATE OR REPLACE TABLE {table.quoted}"
            f" OPTIONS(expiration_timestamp=TIMESTAMP '{until:%Y-%m-%d %H:%M:%S}+00') AS\n{select}"
        )
        self._perform(table, statement, digest(select, *parameters), parameters)

    def _perform(
        self, table: TableName, statement: str, content: str, parameters: Sequence[Any] = ()
    ) -> None:
        """Run a statement that changes a table, unless one of the same content ran before and the table still exists."""
        location = self.target_tables.location()
        self.connection.jobs.perform(
            Work(
                doing=f"writing {table}",
                stem=stem_of("write", table),
                content=content,
                location=location,
                submit=lambda job_id: self._submit(
                    job_id,
                    statement,
                    location,
                    labels={**self.connection.labels(self._target), **content_label(content)},
                    parameters=parameters,
                ),
                standing=lambda _: self.connection.table(table) is not None,
            )
        )

    def _submit(
        self,
        job_id: str,
        statement: str,
        location: str | None,
        *,
        labels: Mapping[str, str],
        parameters: Sequence[Any],
    ) -> Any:
        from google.cloud.bigquery import QueryJobConfig

        config = QueryJobConfig(labels=dict(labels), query_parameters=list(parameters))
        if self.connection.reads.dataset is not None:
            config.default_dataset = self.connection.reads.dataset
        return self.connection.client.query(
            statement,
            job_id=job_id,
            location=location,
            job_config=config,
            retry=self.connection.patience.retry(),
            job_retry=None,
        )

    def _read(self, select: str) -> pa.RecordBatchReader:
        return self.connection.reads.query(
            Query(
                sql=select,
                doing=f"reading the stage of {self.target_tables.answers}",
                labels=self.connection.labels(self._target),
                location=self.target_tables.location(),
            )
        )

    def _ask(self, select: str) -> pa.Table:
        return self._read(select).read_all()

    def _batch(self, select: str) -> pa.RecordBatch:
        found = self._ask(select)
        return pa.RecordBatch.from_struct_array(found.to_struct_array().combine_chunks())

    def _counts(self, select: str) -> dict[Reason, int]:
        return {Reason(row["reason"]): row["n"] for row in self._ask(select).to_pylist()}


def named(uri: str) -> TableName:
    """Return the table of a URI."""
    project, dataset, table = uri.removeprefix(_SCHEME).rsplit(".", 2)
    return TableName(project=project, dataset=dataset, table=table)


def _with_postponed(found: Mapping[Reason, int], planned: Mapping[Reason, int]) -> dict[Reason, int]:
    """Return the rows by reason, when of those that could be sent only the planned ones are."""
    planned = {reason: count for reason, count in planned.items() if reason in SENT}
    reasons = {reason: count for reason, count in found.items() if reason not in SENT} | planned
    left = sum(count for reason, count in found.items() if reason in SENT) - sum(planned.values())
    return {**reasons, Reason.POSTPONED: left} if left else reasons


def source_types(connection: Connection, source: Source) -> dict[str, str]:
    """Return the columns of a source with their types in BigQuery, by a dry run, which is free."""
    return existing_types(source_fields(connection, source))


def source_schema(connection: Connection, source: Source) -> pa.Schema:
    """Return the columns of a source as they would be read."""
    return read_schema(source_fields(connection, source))


def source_fields(connection: Connection, source: Source) -> list[Any]:
    """Return the fields of a source's rows."""
    from google.cloud.bigquery import QueryJobConfig

    config = QueryJobConfig(
        dry_run=True,
        query_parameters=query_parameters(source.parameters),
        labels=connection.labels(),
    )
    if connection.reads.dataset is not None:
        config.default_dataset = connection.reads.dataset
    with translated("reading the source"):
        job = connection.client.query(
            connection.select(source), job_config=config, location=connection.settings.location
        )
    return list(job.schema or ())
