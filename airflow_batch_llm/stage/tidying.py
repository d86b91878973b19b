"""Deletes prompts and answers when their time has come: of finished runs, and of runs that never finished.

Payloads go first and the register's entry last, so that a crash or a store error between the two only delays them.
"""

import orjson

from airflow_batch_llm.errors import BatchLLMError, StoreError
from airflow_batch_llm.stage.land.finishing import Finisher
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.records.registers import Due, Registers

_DAY_SECONDS = 86_400.0
#: An unfinished run keeps its payloads at least this long after its deadline, so that people can repair and retry.
_UNFINISHED_DAYS = 7.0
#: Runs handled at one start, so that a large backlog does not delay the work.
_RUNS_AT_ONCE = 20


def register_unfinished(parts: Parts, folder: RunFolder, keep_days: float | None) -> None:
    """Register a run before its first payload is written, so that a failed run is tidied too."""
    if keep_days is not None:
        at = parts.clock() + max(keep_days, _UNFINISHED_DAYS) * _DAY_SECONDS
        Registers(workspace=parts.workspace).add_due(folder, at)


def tidy(parts: Parts) -> None:
    """Delete payloads whose time has come. An error delays one run by a day and is a warning."""
    registers = Registers(workspace=parts.workspace)
    try:
        for handled, due in enumerate(registers.due(parts.clock())):
            if handled == _RUNS_AT_ONCE:
                break
            try:
                _tidy_run(parts, registers, due)
            except BatchLLMError as error:
                parts.warn(
                    f"The prompts and answers of {due.folder.path} could not be deleted yet: {error.in_full}"
                )
                registers.add_due(due.folder, parts.clock() + _DAY_SECONDS)
                registers.drop_due(due)
    except StoreError as error:
        parts.warn(f"Prompts and answers whose time has come could not be looked for: {error.in_full}")


def _tidy_run(parts: Parts, registers: Registers, due: Due) -> None:
    data = due.folder.read_plan()
    plan = None if data is None else Plan.from_json(data)
    at = _kept_until(parts, due.folder, plan)
    if plan is None and registers.is_registered_later(due):
        registers.drop_due(due)
    elif at > parts.clock():
        registers.add_due(due.folder, at)
        registers.drop_due(due)
    else:
        due.folder.delete_payloads()
        if plan is not None:
            registers.close_run(plan.target.table, due.folder)
        registers.drop_due(due)


def _kept_until(parts: Parts, folder: RunFolder, plan: Plan | None) -> float:
    """Return when the payloads of a run may go, in seconds since the epoch."""
    if plan is None:
        return 0.0
    days = plan.limits.keep_days
    finished = Finisher(parts=parts, folder=folder, first=plan).stored()
    if finished is None:
        last = max((orjson.loads(data)["at"] for data in folder.deadlines()), default=plan.planned_at)
        return last + max(days or 0.0, _UNFINISHED_DAYS) * _DAY_SECONDS
    return (finished.about.completed_at or 0.0) + (days or 0.0) * _DAY_SECONDS
