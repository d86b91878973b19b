"""Two deployments at the same spec and workspace: each has a database of its own."""

import shutil
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from tests.cli.conftest import Desk


@pytest.fixture
def pair(desk: Desk) -> tuple[Desk, Desk]:
    """The same spec, with a relative path to its database, in two folders."""
    desks = []
    for name in ("staging", "production"):
        folder = desk.folder / name
        folder.mkdir()
        shutil.copy(desk.folder / "warehouse.duckdb", folder)
        desks.append(replace(desk, folder=folder))
        desks[-1].write(workspace=str(desk.folder / "workspace"))
    return desks[0], desks[1]


def folders(desk: Desk) -> list[Path]:
    """The folders of runs, in the order of their paths."""
    return sorted(plan.parent.parent for plan in (desk.folder.parent / "workspace").rglob("g1/plan.json"))


@pytest.mark.parametrize("named", [True, False])
def test_the_same_command_answers_into_each_database_and_pays_each_row_once(
    pair: tuple[Desk, Desk], named: bool
) -> None:
    for desk in (*pair, pair[1]):  # the second one resumes its own
        options = ("--deployment", desk.folder.name) if named else ()
        done = desk.run("--json", *options)
        assert done.returncode == 0, done.stderr
        assert orjson.loads(done.stdout)["why"] == {"new": 25}

    assert [desk.ask("SELECT count(*) FROM labels") for desk in pair] == [[(25,)], [(25,)]]
    assert pair[0].charged() == 50
    first, second = folders(pair[0])
    if named:
        assert [folder.parent.parent.name for folder in (first, second)] == [
            "deployment=production",
            "deployment=staging",
        ]
    else:
        assert (second if second.parent == first else first).name.startswith("database=")


def test_a_named_run_of_another_table_is_refused_with_what_to_do(pair: tuple[Desk, Desk]) -> None:
    desk, _ = pair
    assert desk.run("--run", "nightly").returncode == 0
    desk.write(workspace=str(desk.folder.parent / "workspace"), target="elsewhere")

    done = desk.run("--run", "nightly")

    assert done.returncode == 2
    assert "was planned for main.labels in file://" in done.stderr
    assert "this one is for main.elsewhere in file://" in done.stderr
    assert "--deployment" in done.stderr
    assert desk.charged() == 25


def test_an_unfinished_run_for_another_database_is_refused(pair: tuple[Desk, Desk]) -> None:
    staging, production = pair
    staging.simulator.turn(batch_seconds=3600)
    with production.start("run", str(production.spec_file)) as process:
        assert process.stderr is not None
        while "running" not in (line := process.stderr.readline()):
            assert line, "the process has ended without saying it"
        process.kill()
        process.communicate()

    done = staging.run()

    assert done.returncode == 2
    assert "production/warehouse.duckdb, and this one is for main.labels in file://" in done.stderr
    assert len(staging.simulator.ledger()["anthropic"]["batches"]) == 3, "ten rows each, of one run"


def test_inspect_shows_the_deployment_and_the_database(desk: Desk) -> None:
    desk.write(deployment="staging")
    desk.run()
    (folder,) = (desk.folder / "workspace" / "deployment=staging" / "runs").iterdir()

    shown = desk.command("inspect", str(folder)).stdout
    (as_json,) = orjson.loads(desk.command("inspect", str(folder), "--json").stdout)

    database = (desk.folder / "warehouse.duckdb").as_uri()
    assert f"  Database: {database}. Deployment: staging.\n" in shown
    assert (as_json["deployment"], as_json["database"]) == ("staging", database)
