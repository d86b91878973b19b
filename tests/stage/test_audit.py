"""The audit of a run by the records of its folder: who sent what, and how it ended."""

import hashlib
from dataclasses import replace
from pathlib import Path

import orjson

from airflow_batch_llm.core.journal import Doer
from airflow_batch_llm.stage.audit import audit
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.send.sweeping import cancel_run
from tests.stage.world import Bench, let_go

FIRST = Doer(host="worker-1", dag_id="dag", task_id="task", run_id="run", try_number=1, conn_id="llm")
SECOND = replace(FIRST, host="worker-2", try_number=2)


def folder(bench: Bench) -> RunFolder:
    return RunFolder(workspace=bench.world.workspace(), run="dag/task/run")


def test_each_batch_has_its_sender_the_hash_of_its_requests_and_its_end(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.fault(kind="refused", rows=[3])
    openai.fault(kind="hold", nth=2)
    first = openai.run(parts={"by": FIRST}, rows_per_batch=10)
    openai.advance(first)
    second = openai.run(parts={"by": SECOND}, rows_per_batch=10)
    cancelled = cancel_run(
        folder(openai), second.parts.provider, Doer(host="desk", user="ann"), openai.world.clock
    )
    let_go(second)
    openai.complete(openai.run(parts={"by": SECOND}, rows_per_batch=10))

    found = audit(folder(openai))

    requests = {
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in Path(openai.world.folder / "workspace/dag/task/run/g1/plans").rglob("*.requests.jsonl")
    }
    assert {batch.requests_sha256 for batch in found.batches} == requests
    assert (found.planned_by, found.rows) == (FIRST.to_json(), 20)
    assert [batch.sent_by for batch in found.batches[:2]] == [FIRST.to_json()] * 2
    assert all(batch.ended_by["host"] in ("worker-1", "worker-2") for batch in found.batches)
    assert sum(found.batches[0].outcomes.values()) == 10
    (cancellation,) = found.cancellations
    assert (cancellation.by, set(cancellation.batches)) == (
        {"host": "desk", "user": "ann"},
        set(cancelled.now),
    )
    assert found.ended_at is not None
    assert sum(found.outcomes.values()) == 20
    told = orjson.dumps(found.to_json()).decode()
    assert "subject" not in told
    assert "keys" not in told


def test_a_folder_of_an_earlier_release_says_that_nobody_is_known(openai: Bench) -> None:
    openai.world.make_tickets(5)
    openai.complete(openai.run(parts={"by": FIRST}))
    for path in (openai.world.folder / "workspace/dag/task/run/g1").rglob("*.json"):
        record = orjson.loads(path.read_bytes())
        if isinstance(record, dict) and record.keys() & {"by", "planned_by"}:
            path.write_bytes(orjson.dumps({k: v for k, v in record.items() if k not in ("by", "planned_by")}))

    found = audit(folder(openai))

    assert (found.planned_by, [batch.sent_by for batch in found.batches]) == ({}, [{}])
    assert found.passed
    assert openai.complete().report.passed
