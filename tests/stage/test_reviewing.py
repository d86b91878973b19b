"""Dead rows that people answer: how they come into the review table, and how their answers come into the target."""

import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.errors import InputError
from tests.stage.kill_matrix import points
from tests.stage.kills import Kill
from tests.stage.processes import Ended, Job
from tests.stage.world import Bench, World

REFUSED = [3, 4]


def waiting(bench: Bench) -> list[tuple[int, str | None, str | None]]:
    """The key, the label and the reviewer of each row of the review table."""
    rows = bench.world.ask("SELECT id, label, reviewed_by FROM labels__review ORDER BY id")
    assert len({row[0] for row in rows}) == len(rows), "a key stands twice in the review table"
    return rows


def answer(bench: Bench, key: int, label: str, by: str = "ada") -> None:
    bench.world.ask(
        f"UPDATE labels__review SET label = '{label}', reviewed_by = '{by}', reviewed_at = '2026-11-28 09:00:00Z'"
        f" WHERE id = {key}"
    )


def refuse_some(bench: Bench, rows: int = 10) -> None:
    """A first run, in which the provider refuses two rows."""
    bench.world.make_tickets(rows)
    bench.fault(kind="refused", rows=REFUSED)
    done = bench.complete("dag/task/first", on_exhausted="review", min_success_ratio=0)
    assert done.report.final == {Outcome.SUCCEEDED: rows - 2, Outcome.REFUSED: 2}


def test_a_person_answers_a_dead_row_and_the_next_run_merges_it(bench: Bench) -> None:
    refuse_some(bench)
    assert waiting(bench) == [(3, None, None), (4, None, None)]
    ((subject, outcome, run),) = bench.world.ask(
        "SELECT subject, _llm_outcome, _llm_run_id FROM labels__review WHERE id = 3"
    )
    assert (subject, outcome, run) == ("subject 3", "refused", "dag/task/first/g1")
    sent = bench.world.ask("SELECT _llm_input_hash, _llm_spec_hash FROM labels__failures WHERE id = 3")
    charged = bench.world.charged()
    answer(bench, 3, "bug")

    done = bench.complete("dag/task/second", on_exhausted="review")

    assert (done.report.reviewed, done.report.rows, bench.world.charged()) == (1, 0, charged)
    assert bench.world.answers()[3] == "bug"
    ((model, cost, run, at, *hashes),) = bench.world.ask(
        "SELECT _llm_model, _llm_cost_usd, _llm_run_id, _llm_processed_at, _llm_input_hash, _llm_spec_hash"
        " FROM labels WHERE id = 3"
    )
    assert (model, cost, run) == ("human:ada", 0, "dag/task/second/g1")
    assert at == datetime(2026, 11, 28, 9, tzinfo=UTC)
    assert [tuple(hashes)] == sent
    assert waiting(bench) == [(4, None, None)]
    assert list(bench.world.failures()) == [4]
    assert any(said.startswith("Reviewed 1:") for said in bench.said)


def test_a_row_that_waits_is_not_asked_again_unless_its_input_changes(openai: Bench) -> None:
    refuse_some(openai)
    before = openai.world.charged()
    assert openai.complete("dag/task/second", on_exhausted="review").report.rows == 0
    openai.world.ask("UPDATE tickets SET body = 'changed' WHERE id = 3")

    done = openai.complete("dag/task/third", on_exhausted="review")

    assert (done.report.rows, openai.world.charged()) == (1, before + 1)
    assert waiting(openai) == [(4, None, None)]  # the model has answered the changed row


def test_an_answer_to_an_older_input_is_merged_and_the_changed_row_is_asked(openai: Bench) -> None:
    refuse_some(openai)
    answer(openai, 3, "bug")
    answer(openai, 4, "bug")
    openai.world.ask("UPDATE tickets SET body = 'changed' WHERE id = 3")

    done = openai.complete("dag/task/second", on_exhausted="review")

    assert (done.report.reviewed, dict(done.report.why)) == (2, {"answered": 9, "changed": 1})
    models = openai.world.ask("SELECT id, _llm_model FROM labels WHERE id IN (3, 4) ORDER BY id")
    assert (models[0][1].startswith("human:"), models[1]) == (False, (4, "human:ada"))
    assert waiting(openai) == []


def test_an_answer_that_does_not_fit_stays_and_the_log_names_its_key_without_a_value(openai: Bench) -> None:
    refuse_some(openai)
    answer(openai, 3, "none of them")
    openai.world.ask("UPDATE labels__review SET reviewed_by = ' ', label = 'bug' WHERE id = 4")

    done = openai.complete("dag/task/second", on_exhausted="review")

    assert done.report.reviewed == 0
    assert [row[0] for row in waiting(openai)] == [3, 4]
    (said,) = [said for said in openai.said if "labels__review" in said]
    assert "2 reviewed rows do not fit" in said
    assert "3 (The answer" in said
    assert "4 (reviewed_by is empty)" in said
    assert "none of them" not in said

    answer(openai, 3, "bug")
    assert openai.complete("dag/task/third", on_exhausted="review").report.reviewed == 1


def test_a_row_that_no_run_has_put_there_is_named(openai: Bench) -> None:
    refuse_some(openai)
    openai.world.ask("INSERT INTO labels__review (id, label, reviewed_by) VALUES (99, 'bug', 'ada')")

    assert openai.complete("dag/task/second", on_exhausted="review").report.reviewed == 0
    assert any("99 (_llm_input_hash, _llm_spec_hash" in said for said in openai.said)


def test_retry_dead_asks_and_a_good_answer_takes_the_row_out(openai: Bench) -> None:
    refuse_some(openai)

    done = openai.complete("dag/task/second", on_exhausted="review", retry_dead=True)

    assert done.report.final == {Outcome.SUCCEEDED: 2}
    assert waiting(openai) == []


def test_dead_rows_of_earlier_runs_come_in_when_the_setting_is_turned_on(openai: Bench) -> None:
    openai.world.make_tickets(10)
    openai.fault(kind="refused", rows=REFUSED)
    openai.complete("dag/task/first", min_success_ratio=0)

    openai.complete("dag/task/second", on_exhausted="review")

    assert [row[0] for row in waiting(openai)] == REFUSED
    answer(openai, 3, "bug")
    assert openai.complete("dag/task/third", on_exhausted="review").report.reviewed == 1


def test_a_plan_that_is_only_looked_at_merges_nothing(openai: Bench) -> None:
    refuse_some(openai)
    answer(openai, 3, "bug")

    openai.complete("dag/task/second", on_exhausted="review", plan_only=True)

    assert waiting(openai)[0] == (3, "bug", "ada")


def test_a_warehouse_without_a_review_table_refuses_the_setting_before_anything_is_sent(
    openai: Bench,
) -> None:
    class Plain:
        """A target with the verbs of every warehouse and no more."""

        def __init__(self, inner: object) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> object:
            if name in ("prepare_reviews", "refresh_reviews", "read_reviews"):
                raise AttributeError(name)
            return getattr(self._inner, name)

    openai.world.make_tickets(5)
    target = Plain(openai.world.parts().target)

    with pytest.raises(InputError, match=r"needs a review table, and Plain keeps none.*Nothing was sent"):
        openai.complete(openai.run(parts={"target": target}, on_exhausted="review"))
    assert openai.batches() == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"review_target": "labels"}, "review_target is labels, which holds other rows"),
        ({"write_mode": "append"}, "needs one row per key"),
    ],
    ids=["the target itself", "append"],
)
def test_a_review_that_cannot_work_is_refused(openai: Bench, changes: dict[str, str], match: str) -> None:
    with pytest.raises(InputError, match=match):
        openai.run(on_exhausted="review", **changes)


# -- killed and retried ----------------------------------------------------------------------------------------------

CHANGES = {"on_exhausted": "review", "min_success_ratio": 0}


def begun(world: World) -> None:
    """Two dead rows of a first run, one of them answered; then two new rows, one of which will be refused."""
    bench = Bench(world)
    world.begin()
    refuse_some(bench)
    answer(bench, 3, "bug")
    world.ask("INSERT INTO tickets SELECT i, 'subject ' || i, 'body of ' || i FROM range(10, 12) t(i)")
    bench.fault(kind="refused", rows=[1])


def second_run(world: World, kill: Kill | None = None) -> Ended:
    return Job(world=world, name="dag/task/second", changes=CHANGES, kill=kill).run()


def review_points(verbs: Sequence[str]) -> Iterator[Kill]:
    """The points after verbs that change a table, and all of those while answers are merged.

    At the others a run without reviews is killed.
    """
    merging = range(verbs.index("warehouse.prepare_reviews"), verbs.index("warehouse.refresh_reviews") + 1)
    for kill in points(verbs, every=False):
        if verbs[kill.point - 1].startswith("warehouse.") or kill.point - 1 in merging:
            yield kill


def judge(world: World, ended: Ended) -> None:
    """Check that the answer is merged once, each new row is asked once, and each dead row waits once."""
    assert not ended.error, ended.error
    ledger = world.ledger()
    merged = world.ask("SELECT id, label, _llm_run_id FROM labels WHERE _llm_model = 'human:ada'")
    seen = {
        "charged": (ledger["rows"]["charged"], ledger["duplicates"]["surplus_charges"]),
        "merged": merged,
        "answers": sorted(world.answers()),
        "dead": sorted(world.failures()),
        "waiting": waiting(Bench(world)),
        "reviewed": ended.report["reviewed"],
        "unfinished": world.unfinished(),
    }
    assert seen == {
        "charged": (12, 0),
        "merged": [(3, "bug", "dag/task/second/g1")],
        "answers": [0, 1, 2, 3, 5, 6, 7, 8, 9, 10],
        "dead": [4, 11],
        "waiting": [(4, None, None), (11, None, None)],
        "reviewed": 1,
        "unfinished": [],
    }


def test_a_run_killed_anywhere_merges_each_answer_once_and_loses_none(openai: Bench, tmp_path: Path) -> None:
    begun(openai.world)
    ended = second_run(openai.world)
    judge(openai.world, ended)
    failed = {}

    for kill in review_points(ended.verbs):
        folder = tmp_path / str(kill.point)
        folder.mkdir()
        world = World(folder=folder, provider_name="openai", url=openai.world.url)
        begun(world)
        try:
            assert second_run(world, kill).killed
            judge(world, second_run(world))
        except AssertionError as error:
            failed[f"after {kill.point} {ended.verbs[kill.point - 1]}"] = str(error)
        shutil.rmtree(folder)

    assert failed == {}
