"""A new member of a closed vocabulary is noticed wherever the code decides by members.

mypy checks each `match` that has no default, or ends with `assert_never`. Here are the decisions that mypy does not see: a
`match` with another default, and the comparisons, sets and mappings that name some members and treat the rest alike.
"""

import ast
import inspect
import pkgutil
from collections.abc import Iterator, Sequence
from enum import Enum
from importlib import import_module
from types import ModuleType

import pytest

import airflow_batch_llm
from airflow_batch_llm.core import (
    answer,
    attachment,
    budget,
    canary,
    estimate,
    evaluation,
    evaluation_result,
    journal,
    model,
    output_type,
    selection,
    settings,
    submission,
    waiting,
)
from airflow_batch_llm.core.reservation import TicketKind
from airflow_batch_llm.providers.vertex import jobs
from airflow_batch_llm.stage import inspection
from airflow_batch_llm.stage.records import run_index
from airflow_batch_llm.testing.warehouse_writes import ANSWERS
from airflow_batch_llm.warehouses import dialect, kind, registration, target
from airflow_batch_llm.warehouses.files import formats, source

#: The members of each vocabulary for which a person has checked every decision that mypy does not see.
LOOKED_AT: dict[type[Enum], str] = {
    model.Outcome: "SUCCEEDED INVALID TRUNCATED REFUSED ERRORED EXPIRED CANCELED MISSING",
    model.BatchState: "RUNNING ENDED REJECTED",
    model.Way: "BATCH FLEX NOW",
    model.ColumnType: "STRING INTEGER NUMBER DECIMAL BOOLEAN TIMESTAMP DATE JSON VECTOR",
    budget.Per: "DAY WEEK MONTH YEAR ALL",
    canary.Ruling: "GO BAD_ANSWERS OVER_BUDGET",
    evaluation.Metric: "EXACT CASEFOLD NUMBER SET",
    evaluation_result.GateRuling: "PASSED FAILED UNCLEAR",
    answer.AnswerFault: "EMPTY NOT_JSON SCHEMA LABEL RANGE",
    journal.RecordKind: "INTENT RELEASED REFUSED SUBMITTED ASKING ENDED STAGED",
    output_type.AnswerKind: "TEXT LABEL OBJECT VALUE VECTOR",
    selection.Reason: (
        "NEW CHANGED OUTDATED AGAIN RETRIED ANSWERED OLDER_SPEC DEAD REUSED LOST IN_FLIGHT POSTPONED STOPPED"
        " UNSENDABLE"
    ),
    estimate.EstimateSource: "BYTES COUNTED EARLIER_RUN CANARY",
    attachment.Uploads: "AUTO ALWAYS NEVER",
    model.Caching: "AUTO ON OFF",
    model.Execution: "WORKER WAREHOUSE",
    settings.BadRow: "RECORD FAIL",
    settings.Only: "CHANGED OUTDATED NEW ALL",
    settings.Exhausted: "RECORD REVIEW",
    settings.OverBudget: "FAIL PARTIAL",
    settings.SchemaChange: "APPEND_NEW_COLUMNS IGNORE FAIL",
    settings.StageWay: "BATCH FLEX NOW AUTO",
    settings.WriteMode: "MERGE APPEND",
    submission.Phase: (
        "READING SEARCHING UPLOADING INTENDING CONFIRMING SENDING RECORDING REREADING CANCELLING OVER"
    ),
    TicketKind: "OPENED RENEWED SEALED OVER",
    waiting.Wake: "ALL_ENDED PLACE_FREE STRAY TIME DEADLINE UNREACHABLE",
    jobs._End: "SUCCEEDED PARTIALLY_SUCCEEDED CANCELLED EXPIRED FAILED",
    inspection.ShardState: "PLANNED INTENDED ASKING SUBMITTED ENDED STAGED REFUSED MERGED",
    run_index.RunState: "BEGUN PASSED FAILED",
    dialect.Upsert: "MERGE ON_CONFLICT ON_DUPLICATE_KEY UPDATE_INSERT DELETE_INSERT DELETE_KEYS_INSERT",
    kind.ColumnKind: (
        "STRING SMALLINT INTEGER BIGINT REAL DOUBLE DECIMAL BOOLEAN DATE TIME TIMESTAMP TIMESTAMPTZ BINARY UUID JSON"
        " VECTOR ANY"
    ),
    target.ConstraintKind: "UNIQUE CHECK FOREIGN_KEY",
    registration.UriForm: "SERVER PROJECT FILE",
    formats._Kind: "NULL BOOLEAN INTEGER NUMBER STRING JSON",
    source.FileFormat: "PARQUET CSV JSONL",
}


def _modules() -> Iterator[ModuleType]:
    for room in ("core", "providers", "stage", "warehouses"):
        package = import_module(f"{airflow_batch_llm.__name__}.{room}")
        names = (found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."))
        yield from (package, *map(import_module, names))


TREES = [(module, ast.parse(inspect.getsource(module))) for module in _modules()]
VOCABULARIES = {
    found
    for module, _ in TREES
    for found in vars(module).values()
    if isinstance(found, type) and issubclass(found, Enum) and found.__module__ == module.__name__
}


def _named(nodes: Sequence[ast.AST | None], module: ModuleType) -> set[type[Enum]]:
    """Return the vocabularies that have a member among these nodes."""
    kinds = {
        getattr(module, node.value.id, None)
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    return VOCABULARIES & kinds


def _told_apart(node: ast.AST) -> Sequence[ast.AST | None]:
    match node:
        case ast.Compare():
            return [node.left, *node.comparators]
        case ast.Dict():
            return node.keys
        case ast.Set() | ast.Tuple() | ast.List():
            return node.elts
        case _:
            return ()


@pytest.mark.parametrize("vocabulary", sorted(VOCABULARIES, key=str), ids=lambda found: found.__qualname__)
def test_somebody_has_looked_at_every_decision_for_each_member(vocabulary: type[Enum]) -> None:
    places = [
        f"{module.__name__}:{node.lineno}"
        for module, tree in TREES
        for node in ast.walk(tree)
        if isinstance(node, ast.expr) and vocabulary in _named(_told_apart(node), module)
    ]

    assert set(LOOKED_AT.get(vocabulary, "").split()) == {*vocabulary.__members__}, (
        f"Look at {places} for the new member, then name it in LOOKED_AT."
    )


def test_no_default_swallows_a_new_member() -> None:
    swallowing = [
        f"{module.__name__}:{case.pattern.lineno}"
        for module, tree in TREES
        for node in ast.walk(tree)
        if isinstance(node, ast.Match)
        and _named([part for case in node.cases for part in ast.walk(case.pattern)], module)
        for case in node.cases
        if isinstance(case.pattern, ast.MatchAs)
        and case.pattern.pattern is None
        and "assert_never" not in ast.unparse(case.body[0])
    ]

    assert swallowing == []


def test_the_contract_of_a_warehouse_lands_a_column_of_every_type() -> None:
    assert set(ANSWERS) == set(model.ColumnType)
