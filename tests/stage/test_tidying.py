"""Registers that no Dag can stand in for, and payloads that go when their time has come."""

from typing import Any

import pytest

from airflow_batch_llm.errors import InputError, StoreUnavailable
from airflow_batch_llm.stage.records.folder import safe_name
from airflow_batch_llm.store.workspace import Workspace
from tests.stage.world import Bench

DAY = 86_400.0


def kinds(bench: Bench, run: str) -> set[str]:
    """The kinds of files that hold prompts or answers."""
    folder = bench.world.folder / "workspace" / run / "g1"
    return {path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file()} & {
        "plans",
        "results",
    }


@pytest.mark.parametrize("name", ["known", "targets", "loose", "due", "_registers", ".registers"])
def test_a_dag_may_have_the_name_of_a_register(openai: Bench, name: str) -> None:
    openai.world.make_tickets(20)
    openai.complete(f"{safe_name(name)}/openai/monday", keep_days=0.0)
    openai.complete(f"{safe_name(name)}/openai/tuesday", keep_days=0.0, only="all")

    assert openai.world.charged() == 40
    assert openai.world.unfinished() == []
    assert not any(kinds(openai, f"{safe_name(name)}/openai/{day}") for day in ("monday", "tuesday"))


@pytest.mark.parametrize("register", ["targets", "due"])
def test_no_run_is_planned_in_a_workspace_of_the_earlier_layout(openai: Bench, register: str) -> None:
    openai.world.make_tickets(20)
    openai.advance("dag/task/first")
    workspace = openai.world.folder / "workspace"
    (workspace / ".registers" / register).rename(workspace / register)

    with pytest.raises(InputError, match=f"/workspace/{register} was written by an earlier release"):
        openai.advance("dag/task/second")
    openai.complete("dag/task/first")

    assert openai.world.charged() == 20


class FaultyStorage:
    """A store that refuses one verb on the paths that begin with a prefix."""

    def __init__(self, storage: Any, verb: str, prefix: str) -> None:
        self._storage, self._verb, self._prefix = storage, verb, prefix

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._storage, name)

        def refusing(path: str, *arguments: Any) -> Any:
            if path.startswith(self._prefix):
                raise StoreUnavailable("the disk is full")
            return verb(path, *arguments)

        return refusing if name == self._verb else verb


def faulty(bench: Bench, verb: str, prefix: str) -> dict[str, Workspace]:
    whole = bench.world.workspace()
    return {"workspace": Workspace(whole.uri, FaultyStorage(whole._storage, verb, prefix))}


def test_a_store_error_delays_one_run_and_forgets_none(openai: Bench) -> None:
    openai.world.make_tickets(20)
    for name in ("first", "second"):
        openai.complete(name, keep_days=1.0, only="all")
    openai.world.sleep(2 * DAY)
    openai.complete(openai.run("third", parts=faulty(openai, "delete_folder", "first/")))
    assert kinds(openai, "first") == {"plans", "results"}
    assert kinds(openai, "second") == set()
    assert any("first/g1 could not be deleted yet" in said for said in openai.said)

    openai.world.sleep(2 * DAY)
    openai.complete("fourth")
    assert kinds(openai, "first") == set()


def test_a_run_that_never_ended_is_tidied_after_its_deadline(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.advance("first", keep_days=0.0)
    openai.world.sleep(5 * DAY)
    openai.complete("second", target="elsewhere")
    assert kinds(openai, "first") == {"plans"}

    openai.world.sleep(30 * DAY)
    openai.complete("third", target="elsewhere")
    assert kinds(openai, "first") == set()
    assert openai.world.unfinished() == []


def test_what_a_planner_left_without_a_plan_is_tidied(openai: Bench) -> None:
    openai.world.make_tickets(20)
    run = openai.run("first", keep_days=0.0, parts=faulty(openai, "create", "first/g1/plan.json"))
    with pytest.raises(StoreUnavailable):
        openai.advance(run)
    assert kinds(openai, "first") == {"plans"}

    openai.world.sleep(8 * DAY)
    openai.complete("second", target="elsewhere")
    assert kinds(openai, "first") == set()
