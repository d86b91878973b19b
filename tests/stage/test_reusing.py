"""Answers to the same input under another key are copied: no request, no cost, whatever else happens to the run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_batch_llm.core.settings import Only
from airflow_batch_llm.core.spec import earlier_input_hashes
from airflow_batch_llm.errors import InputError, TargetError
from airflow_batch_llm.stage import reusing
from airflow_batch_llm.stage.plan import reading, spool
from tests.stage.kills import EFFECTS, Kill
from tests.stage.processes import Job
from tests.stage.test_canary_killed import fresh
from tests.stage.world import Bench, World


@pytest.fixture(autouse=True)
def rows_that_need_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_ROWS_AT_ONCE", 3)


def have_answers(bench: Bench, rows: int = 6) -> None:
    """Answer tickets, then put the same texts under new keys beside them, and one text that is new."""
    bench.world.make_tickets(rows)
    bench.complete("before")
    bench.world.ask(
        f"INSERT INTO tickets SELECT id + 100, subject, body FROM tickets UNION ALL SELECT {200 + rows}, 'new', 'new'"
    )
    bench.world.ask("ALTER TABLE tickets ADD COLUMN hash VARCHAR DEFAULT 'carried'")


def sources(world: World) -> dict[int, str | None]:
    """The run that each row of the target names as its source."""
    return dict(world.ask("SELECT id, _llm_reused_run FROM labels"))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, {"answered": 6, "reused": 6, "new": 1}),
        ({"carry": ["hash"]}, {"answered": 6, "reused": 6, "new": 1}),
        ({"reuse": "none"}, {"answered": 6, "new": 7}),
        ({"only": Only.ALL}, {"again": 6, "new": 7}),
        ({"only": Only.OUTDATED}, {"answered": 6, "reused": 6, "new": 1}),
        ({"system_prompt": "Another."}, {"older_spec": 6, "new": 7}),
        ({"system_prompt": "Another.", "only": Only.OUTDATED}, {"outdated": 6, "new": 7}),
    ],
)
def test_answers_are_reused_as_the_stage_says(
    openai: Bench, changes: dict[str, object], why: dict[str, int]
) -> None:
    have_answers(openai)
    report = openai.complete("tonight", **changes).report
    assert report.why == why
    copied = [key for key, run in sources(openai.world).items() if run == "before/g1"]
    assert copied == ([*range(100, 106)] if "reused" in why else [])
    assert len(openai.world.answers()) == 13


def test_the_inputs_of_many_rows_are_listed_only_if_a_table_has_answers(
    openai: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = spool.Spool._ask

    def asking(self: spool.Spool, sql: str) -> object:
        asked.append(sql)
        return ask(self, sql)

    monkeypatch.setattr(spool.Spool, "_ask", asking)
    monkeypatch.setattr(reusing, "_NAMED", 3)
    have_answers(openai)
    assert not any("INTO wanted" in sql for sql in asked)
    assert openai.complete("tonight").report.why == {"answered": 6, "reused": 6, "new": 1}
    assert any("INTO wanted" in sql for sql in asked)


def test_a_changed_and_a_failed_row_get_a_copy_and_a_dead_one_waits(openai: Bench) -> None:
    have_answers(openai)
    openai.world.ask("UPDATE tickets SET subject = 'subject 5', body = 'body of 5' WHERE id = 0")
    openai.world.ask(
        "INSERT INTO labels__failures BY NAME SELECT 101 AS id, _llm_input_hash, _llm_spec_hash, _llm_planned_at,"
        " 'refused' AS _llm_outcome, 1 AS _llm_attempts, true AS _llm_dead FROM labels WHERE id = 1"
    )
    assert openai.complete("tonight").report.why == {"answered": 5, "reused": 6, "new": 1, "dead": 1}
    answers = openai.world.answers()
    assert answers[0] == answers[5]
    assert set(openai.world.failures()) == {101}
    report = openai.complete("revived", retry_dead=True).report
    assert report.why == {"answered": 12, "reused": 1}
    assert (report.requests, openai.world.failures()) == (0, {})


def test_nothing_that_a_release_with_other_hashes_has_answered_is_bought_again(
    openai: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier_release:
        earlier_release.setattr(reading, "input_hashes", earlier_input_hashes)
        have_answers(openai)
        openai.world.ask(
            "INSERT INTO labels__failures BY NAME SELECT 206 AS id, _llm_input_hash, _llm_spec_hash, _llm_planned_at,"
            " 'refused' AS _llm_outcome, 1 AS _llm_attempts, true AS _llm_dead FROM labels WHERE id = 1"
        )
        openai.world.ask("UPDATE tickets SET subject = 'subject 1', body = 'body of 1' WHERE id = 206")
    openai.world.ask("UPDATE tickets SET subject = 'changed' WHERE id = 0")
    report = openai.complete("tonight").report
    assert report.why == {"answered": 5, "changed": 1, "reused": 6, "dead": 1}
    assert openai.world.charged() == 7
    earlier = "SELECT count(*) FROM labels GROUP BY _llm_input_hash ORDER BY 1"
    assert openai.world.ask(earlier) == [(1,), (1,), (2,), (2,), (2,), (2,), (2,)]
    assert openai.complete("again").report.why == {"answered": 12, "dead": 1}


def test_a_text_that_a_run_of_such_a_release_is_buying_is_left_to_it(
    openai: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    openai.world.make_tickets(3)
    openai.world.simulator.turn(batch_seconds=3600)
    with monkeypatch.context() as earlier_release:
        earlier_release.setattr(reading, "input_hashes", earlier_input_hashes)
        openai.advance("first")
    openai.world.simulator.turn(batch_seconds=0)
    assert openai.complete("second").report.why == {"in_flight": 3}
    assert openai.complete("first").report.why == {"new": 3}
    assert openai.complete("third").report.why == {"answered": 3}
    assert openai.world.charged() == 3


def test_runs_that_overlap_buy_no_text_twice_and_copy_it_once(openai: Bench) -> None:
    have_answers(openai)
    openai.world.simulator.turn(batch_seconds=3600)
    openai.advance("first")
    openai.world.simulator.turn(batch_seconds=0)
    assert openai.complete("second").report.why == {"answered": 12, "in_flight": 1}
    assert openai.complete("first").report.why == {"answered": 6, "reused": 6, "new": 1}
    assert openai.world.charged() == 7
    assert set(sources(openai.world).values()) == {None, "before/g1"}


def test_a_target_of_an_earlier_release_gets_the_column_or_is_refused(openai: Bench) -> None:
    have_answers(openai)
    openai.world.ask("ALTER TABLE labels DROP COLUMN _llm_reused_run")
    with pytest.raises(TargetError, match="lacks _llm_reused_run, and create_target=False"):
        openai.complete("fixed", create_target=False)
    assert openai.complete("tonight").report.why["reused"] == 6


@pytest.mark.parametrize("reuse", ["labels", 3])
def test_reuse_names_what_it_takes(openai: Bench, reuse: object) -> None:
    with pytest.raises(InputError, match="reuse"):
        openai.run("tonight", reuse=reuse)


def test_another_table_gives_its_answers(openai: Bench) -> None:
    have_answers(openai)
    report = openai.complete("elsewhere", target="others", reuse=["labels"]).report
    assert (report.why, report.requests) == ({"reused": 12, "new": 1}, 1)
    rows = openai.world.ask("SELECT o.label = l.label FROM others o JOIN labels l USING (id)")
    assert rows == [(True,)] * 6


def _traces(verbs: list[str], first: Callable[[str], bool]) -> list[int]:
    """The verbs that leave a trace, from the staging of the rows that get a copy to what is dropped after it."""
    traces = [number for number, verb in enumerate(verbs, start=1) if verb.rpartition(".")[2] in EFFECTS]
    at = next(place for place, number in enumerate(traces) if first(verbs[number - 1]))
    return traces[at - 1 : at + 2]


def test_a_worker_killed_around_the_copy_leaves_nothing_twice_and_an_answer_that_is_gone_to_the_next_run(
    openai: Bench, tmp_path: Path
) -> None:
    bench = fresh(openai, tmp_path / "undisturbed")
    have_answers(bench)
    verbs = Job(world=bench.world).run().verbs
    points = _traces(verbs, lambda verb: verb == "warehouse.copy")
    assert len(points) == 3
    for number in points:
        bench = fresh(openai, tmp_path / str(number))
        have_answers(bench)
        first = Job(world=bench.world, kill=Kill(number, after=True)).run()
        assert first.killed, verbs[number - 1]
        ended = Job(world=bench.world).run()
        assert not ended.error, ended.error
        assert ended.report["why"] == {"answered": 6, "reused": 6, "new": 1}, verbs[number - 1]
        assert bench.world.charged() == 7
        assert len(bench.world.answers()) == 13
        assert set(sources(bench.world).values()) == {None, "before/g1"}
        assert not list(tmp_path.glob(f"{number}/*.staging/*"))
    bench = fresh(openai, tmp_path / "gone")
    have_answers(bench)
    assert Job(world=bench.world, kill=Kill(verbs.index("warehouse.copy") + 1, after=False)).run().killed
    bench.world.ask("DELETE FROM labels WHERE id = 2")
    ended = Job(world=bench.world).run()
    assert ended.report["why"] == {"answered": 6, "reused": 5, "lost": 1, "new": 1}, ended.error
    assert bench.complete("next").report.why == {"answered": 11, "new": 2}
