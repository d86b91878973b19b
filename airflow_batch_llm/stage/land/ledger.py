"""Write the ledger, a table of the user's: the spending of each run, in one row for each round and route.

The rows follow from the run folder alone, so they may be written at any time, by any process, again. A failure to write
them never fails a run: the workspace notes it, and the next run with the same ledger writes them.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import pyarrow as pa

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.report import Report
from airflow_batch_llm.core.request import canonical, digest
from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.core.value import plain
from airflow_batch_llm.errors import BatchLLMError, InputError, WarehouseError
from airflow_batch_llm.stage.parts import Parts, UsageTable
from airflow_batch_llm.stage.records.folder import RunFolder, run_folders
from airflow_batch_llm.stage.records.plan import Plan, PlannedRoute, PlannedShard
from airflow_batch_llm.stage.records.registers import Due, Registers
from airflow_batch_llm.stage.records.standings import ShardResult, read_all_landed, read_rounds
from airflow_batch_llm.stage.send.sweeping import Stray
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.warehouses.base import Warehouse, WritesRecords
from airflow_batch_llm.warehouses.side_tables import USAGE_COLUMNS, USAGE_KEY

#: The most other runs that one run writes, so that a long outage does not delay it.
_RUNS_AT_ONCE = 50

#: Rows of one write when a ledger is rebuilt.
_ROWS_AT_ONCE = 200

#: The parts of a spec that make its prompt version.
_PROMPT = ("prompt", "prompt_params", "system_prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Keeps the ledger of one process's runs. Without a table it does nothing."""

    parts: Parts

    def expect(self, folder: RunFolder, at: float) -> None:
        """Note, before anything is sent, that other runs may write this run's rows at this time if it has not."""
        if self.parts.usage is not None:
            self._registers.add_unwritten(self.parts.usage.book, folder, at)

    def settle(self, folder: RunFolder) -> None:
        """Write a run that has ended, once, and the runs that others have left to write."""
        table = self.parts.usage
        if table is None:
            return
        try:
            strays = len(folder.stray_names())
            if folder.is_in_ledger(table.book, strays):
                return
            due = self._due(table, folder)
            self._write(table, [folder, *(one.folder for one in due)])
            folder.note_in_ledger(table.book, strays)
            self._registers.drop_unwritten(table.book, [folder, *(one.folder for one in due)])
        except Exception as error:  # noqa: BLE001 - what is paid for must not fail for the sake of its bill
            self._postpone(table, folder, error)

    def update(self, folder: RunFolder) -> None:
        """Write the run's spending so far. It is written again when the run ends."""
        table = self.parts.usage
        if table is None:
            return
        try:
            self._write(table, [folder])
        except Exception as error:  # noqa: BLE001 - as above
            self._postpone(table, folder, error)

    @property
    def _registers(self) -> Registers:
        return Registers(workspace=self.parts.workspace)

    def _due(self, table: UsageTable, but: RunFolder) -> list[Due]:
        found = self._registers.unwritten(table.book, self.parts.clock())
        return [due for due in found if due.folder.path != but.path][:_RUNS_AT_ONCE]

    def _write(self, table: UsageTable, folders: Sequence[RunFolder]) -> None:
        rows = [row for folder in folders for row in usage_rows(folder)]
        if rows:
            try:
                write_rows(table, rows)
            except WarehouseError:  # of two that create the table at once, one is refused
                write_rows(table, rows)

    def _postpone(self, table: UsageTable, folder: RunFolder, error: Exception) -> None:
        told = error.in_full if isinstance(error, BatchLLMError) else f"{type(error).__name__}."
        self.parts.warn(
            f"The spending of {folder.path} could not be written to {table.name}; the next run with this ledger writes"
            f" it. {told}"
        )
        with suppress(BatchLLMError):  # `usage --rebuild` finds it
            self._registers.add_unwritten(table.book, folder, self.parts.clock())


def write_rows(table: UsageTable, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a ledger. Raises `InputError` if its database keeps none."""
    with table.opened() as warehouse:
        if not isinstance(warehouse, WritesRecords):
            raise InputError(
                f"{type(warehouse).__name__} keeps no ledger. Name the connection of another database in usage_conn_id."
            )
        warehouse.write_records(table.name, pa.RecordBatch.from_pylist(list(rows), schema=USAGE_COLUMNS))


def ledger_rows(warehouse: Warehouse, name: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield these columns of a ledger, and `started_at` as a time, also where a database gives times as text."""
    for batch in warehouse.read(Source(table=name)):
        for row in batch.select(["started_at", *columns]).to_pylist():
            began = row["started_at"]
            yield row | {"started_at": datetime.fromisoformat(began) if isinstance(began, str) else began}


def rebuild(table: UsageTable, workspace: Workspace, deployment: str) -> int:
    """Write all runs of a deployment that have spent something, from their run folders. Returns their number."""
    found, rows = 0, list[dict[str, Any]]()
    for folder in run_folders(workspace):
        data = folder.read_plan()
        if data is None or Plan.from_json(data).deployment != deployment:
            continue
        spent = usage_rows(folder)
        found += bool(spent)
        rows.extend(spent)
        if len(rows) >= _ROWS_AT_ONCE:
            write_rows(table, rows)
            rows.clear()
    if rows:
        write_rows(table, rows)
    return found


def usage_rows(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the rows of one generation of a run, as far as its answers have landed."""
    rounds = list(read_rounds(folder))
    landed = read_all_landed(folder, [shard.number for plan in rounds for shard in plan.shards])
    strays = [stray for stray in _strays(folder) if not _is_landed(stray, landed)]
    rows = []
    for plan in rounds:
        span = _span(folder, plan)
        for label, shards in _by_label(plan).items():
            results = [landed[shard.number] for shard in shards if shard.number in landed]
            if results:
                numbers = {shard.number for shard in shards}
                extra = [stray for stray in strays if stray.shard in numbers]
                rows.append(
                    _identity(folder, rounds[0], plan, plan.route(shards[0]), label)
                    | _amounts(sum((one.report for one in results), Report()), extra)
                    | span
                )
    return rows


def _strays(folder: RunFolder) -> Iterator[Stray]:
    found = (folder.read_stray_file(name) for name in folder.stray_names())
    return (Stray.from_json(data) for data in found if data is not None)


def _is_landed(stray: Stray, landed: Mapping[int, ShardResult]) -> bool:
    """Return whether the cost of a stray is in the result of its shard already."""
    return stray.shard in landed and stray.batch_id in landed[stray.shard].batches


def _by_label(plan: Plan) -> dict[str, list[PlannedShard]]:
    """Return the shards by the name of their route. A canary has one of its own: it may be asked in another way."""
    shards: dict[str, list[PlannedShard]] = {}
    for shard in plan.shards:
        route = plan.route(shard)
        label = f"{route.name} (canary)" if shard in plan.canary else route.name
        shards.setdefault(label, []).append(shard)
    return shards


def _identity(folder: RunFolder, first: Plan, plan: Plan, route: PlannedRoute, label: str) -> dict[str, Any]:
    """Return the columns that name the run, its spec and its first planner. Later workers may only have ended the run."""
    by = first.planned_by
    return {
        USAGE_KEY: digest(canonical([first.deployment, folder.run_id, plan.round, label])),
        "run_id": folder.run_id,
        "round": plan.round,
        "route": label,
        "deployment": first.deployment or None,
        "team": by.get("team"),
        "dag_id": by.get("dag_id"),
        "task_id": by.get("task_id"),
        "dag_run_id": by.get("run_id"),
        "map_index": by.get("map_index"),
        "try_number": by.get("try_number"),
        "provider": plan.vendor(route),
        "model": route.call.model,
        "way": route.way.value,
        "target": plan.target.table,
        "spec_hash": route.spec_hash,
        "prompt_version": _prompt_version(plan.spec),
    }


def _prompt_version(spec: Mapping[str, object]) -> str:
    parts = {name: spec.get(name) for name in _PROMPT}
    if examples := spec.get(
        "examples"
    ):  # a spec without them keeps the version that it had in older releases
        parts["examples"] = examples
    return digest(canonical(plain(parts)))[:12]


def _amounts(report: Report, strays: Sequence[Stray]) -> dict[str, Any]:
    stray = math.fsum(one.cost or 0.0 for one in strays)
    usage, spent, outcomes = report.usage, report.spent, Counter(report.outcomes)
    cost = spent.cost + stray
    return {
        **{f"rows_{outcome.value}": outcomes[outcome] for outcome in Outcome},
        "requests": report.requests,
        **usage._asdict(),
        "usd": cost,
        "list_usd": spent.list_cost,
        "saved_usd": spent.list_cost - cost,
        "stray_usd": spent.stray_cost + stray,
        "unpriced": spent.unpriced + sum(one.unpriced for one in strays),
        "maybe_twice": report.maybe_twice,
        "waited_seconds": report.durations.queued + report.durations.running,
    }


def _span(folder: RunFolder, plan: Plan) -> dict[str, Any]:
    """Return the times at which a round began and was merged. None if it is not merged yet."""
    before = folder.read_published(plan.round - 1) if plan.round > 1 else None
    began = plan.planned_at if before is None else orjson.loads(before)["at"]
    merged = folder.read_published(plan.round)
    return {
        "started_at": datetime.fromtimestamp(began, UTC),
        "ended_at": None if merged is None else datetime.fromtimestamp(orjson.loads(merged)["at"], UTC),
    }
