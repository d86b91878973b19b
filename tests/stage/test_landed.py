"""What a landed shard leaves for the run, across releases."""

import orjson

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.report import Report
from airflow_batch_llm.stage.records.standings import Again, ShardResult
from tests.stage.world import Bench

LANDED = ShardResult(
    report=Report(outcomes={Outcome.SUCCEEDED: 3, Outcome.INVALID: 1}, attempts={1: 4}, batches=2),
    again=(Again(2, Outcome.INVALID, "schema_mismatch", "strong"),),
    again_rows={Outcome.INVALID: 1},
    samples=["7"],
    batches=["one", "two"],
)


def test_it_is_read_as_it_was_written() -> None:
    again = ShardResult.from_json(LANDED.to_json())

    assert (again.report, again.again, again.again_rows) == (LANDED.report, LANDED.again, LANDED.again_rows)
    assert (list(again.samples), list(again.batches)) == (["7"], ["one", "two"])


def test_one_that_an_earlier_release_wrote_names_no_batches() -> None:
    fields = orjson.loads(LANDED.to_json())
    del fields["batches"]

    again = ShardResult.from_json(orjson.dumps(fields))

    assert (again.report, list(again.batches)) == (LANDED.report, [])


def test_the_report_that_an_earlier_release_stored_is_read(openai: Bench) -> None:
    openai.world.make_tickets(3)
    done = openai.complete()
    (path,) = openai.world.folder.glob("workspace/**/report.json")
    stored = orjson.loads(path.read_bytes())
    stored["about"] |= {"output_type_ref": None, "source": None}
    path.write_bytes(orjson.dumps(stored))

    assert openai.complete() == done
