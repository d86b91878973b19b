"""The record that a landed shard leaves for the run, across releases."""

import subprocess
import sys
from pathlib import Path

import duckdb
import orjson

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.report import Report
from airflow_batch_llm.simulator.handle import Simulator
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


#: A task that plans, sends and lands answers of every type of column.
NIGHT = """
import sys
import time
from pathlib import Path
from airflow_batch_llm.stage.drive import complete
from tests.benchmarks import stage_steps

kinds = ("string", "integer", "number", "boolean", "array")
properties = {kind: {"type": kind} for kind in kinds} | {
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "date-time"},
    "decimal": {"type": "string", "format": "decimal"},
}
stage_steps.LABELS = {"type": "object", "properties": properties}
folder, url = sys.argv[1:]
task = stage_steps.Ours(Path(folder), "all", "openai", url)
complete(task._run, sleep=lambda seconds: time.sleep(0.05))
print("pandas" in sys.modules)
"""


def test_a_task_imports_no_pandas(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "bench.duckdb")) as connection:
        connection.execute(
            "CREATE TABLE tickets AS SELECT range AS id, 'late ' || range AS body FROM range(9)"
        )
    with Simulator(batch_seconds=0) as simulator:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", NIGHT, str(tmp_path), simulator.url],
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout.splitlines()[-1] == "False"
    with duckdb.connect(str(tmp_path / "bench.duckdb")) as connection:
        (landed,) = connection.execute("SELECT count(*) FROM ours").fetchall()
    assert landed == (9,)
