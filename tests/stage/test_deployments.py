"""Two databases, and two deployments, in one workspace: whose run it is, and whose rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest

from airflow_batch_llm.errors import InputError, TargetError
from airflow_batch_llm.stage.records.folder import RunFolder, run_path
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.records.registers import Registers
from airflow_batch_llm.stage.run import Run, own_name
from airflow_batch_llm.warehouses.duckdb.warehouse import DuckDBWarehouse
from airflow_batch_llm.warehouses.registration import Place
from tests.stage.test_planners import Interrupted
from tests.stage.world import Bench, let_go

RUN = "dag/task/run"


@pytest.fixture
def pair(openai: Bench) -> Bench:
    """A bench with the same ten tickets in a second database."""
    openai.world.make_tickets(10)
    with duckdb.connect(str(other_file(openai))) as connection:
        connection.execute(f"ATTACH '{openai.world.database}' AS first")
        connection.execute("CREATE TABLE tickets AS SELECT * FROM first.tickets")
    return openai


def other_file(bench: Bench) -> Path:
    return bench.world.folder / "other.duckdb"


def other(bench: Bench) -> dict[str, Any]:
    """The parts of a run in the second database."""
    warehouse = DuckDBWarehouse(other_file(bench))
    return {"source": warehouse, "target": warehouse}


def answers(file: Path) -> int:
    with duckdb.connect(str(file)) as connection:
        return connection.execute("SELECT count(*) FROM labels").fetchall()[0][0]  # type: ignore[no-any-return]


def test_two_databases_neither_take_nor_end_each_others_rows(pair: Bench) -> None:
    pair.world.simulator.turn(batch_seconds=3600)
    pair.advance("first/t/r", timeout=600.0)
    pair.world.sleep(3 * 3600)

    second = pair.complete("second/t/r", parts=other(pair))

    assert second.report.why == {"new": 10}
    assert RunFolder(workspace=pair.world.workspace(), run="first/t/r").read_report() is None
    assert answers(pair.world.database) == 0
    third = pair.complete("third/t/r")
    assert third.report.why == {"answered": 10}
    assert (answers(pair.world.database), answers(other_file(pair))) == (10, 10)
    assert pair.world.charged() == 20
    assert pair.world.unfinished() == []


def test_a_planner_does_not_wait_for_that_of_another_database(pair: Bench) -> None:
    first = pair.run("first/t/r")
    meanwhile = Interrupted(first.parts.source, lambda: pair.complete("second/t/r", parts=other(pair)))

    pair.complete(pair.run("first/t/r", parts={"source": meanwhile}))

    assert not [said for said in pair.said if "Waiting for" in said]
    assert (answers(pair.world.database), answers(other_file(pair))) == (10, 10)


def test_a_run_for_another_database_is_refused_with_both_named(pair: Bench) -> None:
    pair.complete(RUN)

    for max_tries in (0, 1):
        with pytest.raises(TargetError) as refused:
            pair.advance(RUN, parts=other(pair), max_tries=max_tries)

    said = str(refused.value)
    assert f"planned for main.labels in {pair.world.database.as_uri()}" in said
    assert f"this one is for main.labels in {other_file(pair).as_uri()}" in said
    assert "[batch_llm] deployment" in said
    assert pair.world.charged() == 10


def test_a_run_of_another_deployment_is_refused_with_both_named(pair: Bench) -> None:
    pair.complete(RUN, parts={"deployment": "production"})

    with pytest.raises(TargetError, match=r"of the deployment 'production', .* of the deployment 'staging'"):
        pair.advance(RUN, parts={"deployment": "staging"})
    with pytest.raises(TargetError, match=r"of the deployment 'production', .* of no named deployment"):
        pair.advance(RUN)


def test_two_deployments_on_one_table_buy_each_row_once_and_cancel_nothing_of_each_other(
    pair: Bench,
) -> None:
    pair.world.simulator.turn(batch_seconds=3600)
    pair.advance("production/t/r", parts={"deployment": "production"})
    staging = pair.run("staging/t/r", parts={"deployment": "staging"})

    done = pair.complete(replace(staging, is_given_up=lambda folder, max_tries: True))

    assert done.report.why == {"in_flight": 10}
    pair.complete("production/t/r", parts={"deployment": "production"})
    assert (len(pair.world.answers()), pair.world.charged()) == (10, 10)


@pytest.mark.parametrize("finished", [True, False])
def test_another_table_is_refused_until_a_finished_run_is_cleared(pair: Bench, finished: bool) -> None:
    (pair.complete if finished else pair.advance)(RUN)

    with pytest.raises(TargetError, match=r"planned for main\.labels in .* is for main\.elsewhere in"):
        pair.advance(RUN, target="elsewhere")

    assert pair.complete(RUN, target="main.labels").report.passed, "another spelling of the same table"
    assert pair.complete(RUN, target="elsewhere", max_tries=1).report.why == {"new": 10}


def test_a_run_that_another_database_plans_at_the_same_instant_is_refused_by_the_slower(
    pair: Bench,
) -> None:
    slow = pair.run(RUN)
    overtake = Interrupted(slow.parts.source, lambda: pair.complete(RUN, parts=other(pair)))

    with pytest.raises(TargetError, match="was planned for"):
        pair.advance(pair.run(RUN, parts={"source": overtake}))

    assert pair.world.unfinished() == []
    assert pair.complete("next/t/r").report.why == {"new": 10}
    assert (answers(pair.world.database), answers(other_file(pair))) == (10, 10)


def test_the_own_name_is_below_that_of_a_finished_run_for_another_database(pair: Bench) -> None:
    workspace, parts = pair.world.workspace(), other(pair)

    def name() -> str:
        return own_name(workspace, RUN, lambda: parts["target"].place("labels"))

    assert name() == RUN
    pair.advance(RUN)
    with pytest.raises(TargetError, match="was planned for"):
        name()
    pair.complete(RUN)
    own = name()
    assert own.startswith(f"{RUN}/database=")
    pair.complete(own, parts=other(pair))
    pair.advance(RUN, max_tries=1, only="all")

    assert name() == own, "it goes on, also while the other run is at work again"
    assert answers(other_file(pair)) == 10


def aged(bench: Bench, name: str) -> RunFolder:
    """Make an unfinished run look as an earlier release has left it."""
    workspace = bench.world.workspace()
    folder = RunFolder(workspace=workspace, run=name)
    path = bench.world.folder / "workspace" / folder.path / "plan.json"
    fields = orjson.loads(path.read_bytes())
    plan = Plan.from_json(path.read_bytes())
    registers = Registers(workspace=workspace)
    registers.close_run(plan.registered_as, folder)
    registers.open_run(plan.target.table, folder)
    path.write_bytes(orjson.dumps({k: v for k, v in fields.items() if k not in ("place", "deployment")}))
    return folder


def test_a_run_of_an_earlier_release_goes_on_if_its_table_is_named_alike(pair: Bench) -> None:
    pair.advance(RUN)
    aged(pair, RUN)

    with pytest.raises(TargetError, match=r"planned for labels, and this one is for main\.elsewhere in"):
        pair.advance(RUN, target="elsewhere")
    assert pair.complete(RUN).report.passed

    assert pair.world.charged() == 10
    assert pair.world.unfinished() == []


def test_no_run_is_planned_on_a_table_for_which_an_earlier_release_has_an_unfinished_run(pair: Bench) -> None:
    pair.advance(RUN)
    folder = aged(pair, RUN)
    pair.world.sleep(40 * 3600)

    with pytest.raises(InputError, match=rf"The run {folder.path} is unfinished.*Finish it first"):
        pair.advance("second/t/r")
    assert folder.read_report() is None

    pair.complete(RUN)
    pair.complete("second/t/r")

    assert pair.world.charged() == 10


def test_a_run_without_its_stage_lands_in_no_other_database(pair: Bench) -> None:
    pair.advance(RUN, parts={"deployment": "production"})
    run = Run(parts=pair.world.parts(**other(pair)), name=RUN)

    with pytest.raises(TargetError, match="was planned for"):
        run.advance()
    let_go(run)


def test_the_folder_of_a_named_deployment_is_no_dags() -> None:
    assert run_path("dag", "task", "run", deployment="") == "dag/task/run"
    assert run_path("dag", "task", "run", deployment="prod") == "deployment=prod/dag/task/run"
    assert "/" not in run_path("dag", deployment="a/b").removesuffix("/dag")


@pytest.mark.parametrize(
    ("uri", "database"),
    [
        ("mysql://DB:3306/shop", "mysql://db:3306/shop"),
        ("mysql://etl:s3cret@DB:3306/shop", "mysql://db:3306/shop"),
        ("mysql://etl:s3/cr@et@db/shop", "mysql://db/shop"),
        ("jdbc://jdbc:sqlserver://db:1433;user=etl;password=s3cret", "jdbc://jdbc:sqlserver://db:1433"),
        ("snowflake://account/", "snowflake://account"),
    ],
)
def test_a_place_holds_no_credentials(uri: str, database: str) -> None:
    assert Place.of(uri, "", "public", "labels") == Place(database=database, table="public.labels")


@pytest.mark.parametrize("uri", ["mysql://etl:s3?cret@db/shop", "mysql://db/shop?password=s3@cret"])
def test_a_place_is_a_hash_where_a_password_cannot_be_told_from_a_host(uri: str) -> None:
    assert "cret" not in str(Place.of(uri, "labels"))
    assert "s3" not in str(Place.of(uri, "labels"))
