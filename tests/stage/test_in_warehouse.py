"""A stage that runs in the warehouse leaves what a worker leaves, and its rows pass through no worker."""

from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

from airflow_batch_llm.errors import InputError, StoreError
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.stage.land.finishing import Finished
from airflow_batch_llm.stage.run import Pause
from tests.emulators.servers import Emulators
from tests.stage.bigquery_world import BigQueryWorld, new_staging
from tests.stage.kill_matrix import OF_THE_RUN
from tests.stage.world import Bench

#: What differs in the reports of two runs on the same rows: a later one has measured tokens.
NOT_COMPARED = {"durations", "estimate", "estimate_off", "drift"}

#: Texts that need care on their way through SQL and JSON, a blank one, one that is too long, and NULL.
SUBJECTS = [
    "'plain'",
    "'\"quoted\" \\\\n \\\\u00e9'",
    "'Grüße \\u2028 \\U0001f600'",
    "'tab\\tand\\nline'",
    "NULL",
]


@pytest.fixture(scope="module")
def simulator(emulators: Emulators) -> Iterator[Simulator]:
    with Simulator(batch_seconds=0, bigquery_url=emulators.bigquery) as running:
        yield running


@pytest.fixture
def bench(emulators: Emulators, simulator: Simulator, tmp_path: Path) -> Iterator[Bench]:
    environ = {"BIGQUERY_EMULATOR_HOST": emulators.bigquery}
    world = BigQueryWorld(
        folder=tmp_path,
        provider_name="vertex",
        url=simulator.url,
        environ=environ,
        staging=new_staging(emulators.bigquery),
    )
    world.begin()
    yield Bench(world)
    simulator.reset()


def world_of(bench: Bench) -> BigQueryWorld:
    assert isinstance(bench.world, BigQueryWorld)
    return bench.world


def left(bench: Bench, done: Finished) -> dict[str, Any]:
    """Return what a run leaves, without what differs from run to run. The tables are dropped."""
    found: dict[str, Any] = {}
    for name in ("labels", "labels__failures"):
        rows = world_of(bench).rows(f"SELECT * FROM {name} ORDER BY id")
        found[name] = [{k: v for k, v in row.items() if k not in OF_THE_RUN} for row in rows]
        world_of(bench).ask(f"DROP TABLE {name}")
    report = done.report.to_json()
    return found | {name: value for name, value in report.items() if name not in NOT_COMPARED}


def make_rows(bench: Bench) -> None:
    """Twelve rows: odd texts, repeated ones, a blank prompt, and columns of several types that are carried."""
    subjects = [SUBJECTS[at % len(SUBJECTS)] for at in range(11)]
    rows = [
        f"SELECT {at} AS id, {subject} AS subject, {at % 6} AS body" for at, subject in enumerate(subjects)
    ]
    blank = "SELECT 99, ' ', CAST(NULL AS INT64)"
    world_of(bench).ask(
        "CREATE OR REPLACE TABLE tickets AS SELECT id, subject, body, PARSE_JSON('{\"a\": [1, 2.5]}') AS j,"
        " b'bytes' AS raw, CAST(id AS NUMERIC) AS n, STRUCT(id AS a, 'x' AS b) AS s, DATE '2026-01-02' AS d"
        f" FROM ({' UNION ALL '.join([*rows, blank])})"
    )


CARRIED = {"carry": ("subject", "j", "raw", "n", "s", "d"), "prompt": "{{ subject }}{{ body }}"}


def test_both_ways_leave_the_same_rows_and_none_is_bought_again_by_the_other(bench: Bench) -> None:
    make_rows(bench)
    mine = bench.complete("dag/task/warehouse", execution="warehouse", **CARRIED)
    assert {name for name in world_of(bench).tables() if not name.startswith("llm_answers_")} == {
        "labels",
        "labels__failures",
        "tickets",
    }
    again = bench.complete("dag/task/again", **CARRIED)
    assert (again.report.why, again.report.requests) == ({"answered": 11, "unsendable": 1}, 0)
    by_warehouse = left(bench, mine)
    by_worker = left(bench, bench.complete("dag/task/worker", **CARRIED))
    assert {
        name: (by_warehouse[name], by_worker[name])
        for name in by_worker
        if by_warehouse[name] != by_worker[name]
    } == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"canary": 5}, "cannot do canary"),
        ({"way": "now"}, "cannot do way='now'"),
        ({"rows_per_request": 5}, "cannot do rows_per_request"),
        ({}, "DuckDBWarehouse cannot. BigQuery can"),
    ],
)
def test_what_no_statement_can_do_is_refused_before_anything_is_sent(
    openai: Bench, changes: dict[str, Any], message: str
) -> None:
    openai.world.make_tickets(2)
    with pytest.raises(InputError, match=message):
        openai.complete(execution="warehouse", **changes)
    assert openai.batches() == []


def test_a_run_whose_plan_is_gone_is_refused_until_its_folder_is_deleted(bench: Bench) -> None:
    bench.world.make_tickets(2)
    bench.advance("dag/task/lost", execution="warehouse")
    (plan,) = (name for name in world_of(bench).tables() if name.startswith("llm_plan_"))
    world_of(bench).ask(f"DROP TABLE {plan}")
    with pytest.raises(
        InputError, match=f"dag/task/lost/g1 cannot end: its table {plan} .* Delete the run folder"
    ):
        bench.complete("dag/task/lost", execution="warehouse")
    with pytest.raises(InputError, match="dag/task/lost/g1 asks rows of this target, and its table"):
        bench.complete("dag/task/next", execution="warehouse")
    assert (len(bench.batches()), bench.world.charged()) == (1, 2)
    assert not {name for name in world_of(bench).tables() if name.startswith("llm_rows_")}
    rmtree(bench.world.folder / "workspace/dag/task/lost")
    assert isinstance(bench.advance("dag/task/next", execution="warehouse"), Pause)


class _NoPlan:
    """A workspace that refuses to create a plan."""

    def __init__(self, workspace: Any) -> None:
        self._workspace = workspace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workspace, name)

    def create(self, path: str, data: bytes) -> bool:
        if path.endswith("/plan.json"):
            raise StoreError("The disk is full.")
        return self._workspace.create(path, data)  # type: ignore[no-any-return]


def test_rows_of_a_planner_that_failed_are_left_out_by_a_run_that_is_staged_elsewhere(bench: Bench) -> None:
    bench.world.make_tickets(4)
    own = {"execution": "warehouse", "max_rows": 2}
    with pytest.raises(StoreError):
        bench.advance(bench.run("dag/task/one", parts={"workspace": _NoPlan(bench.world.workspace())}, **own))

    elsewhere = new_staging(world_of(bench).rest).rpartition(".")[2]
    two = bench.complete("dag/task/two", execution="warehouse", staging_schema=elsewhere)
    assert two.report.why == {"new": 2, "in_flight": 2}
    assert bench.complete("dag/task/one", **own).report.rows == 2
    assert (bench.world.charged(), sorted(bench.world.answers())) == (4, [0, 1, 2, 3])
