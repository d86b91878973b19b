"""Evaluations over the simulator: whole runs, and models whose accuracy is known."""

from dataclasses import replace
from pathlib import Path

import pytest

from airflow_batch_llm.errors import EvaluationFailed
from airflow_batch_llm.stage.evaluating import Evaluator
from airflow_batch_llm.stage.run import Pause
from tests.benchmarks.evaluation import EQUAL, GATE, WEAKER, asked, count, make_golden, open_run
from tests.stage.world import Bench, let_go


def test_intervals_hold_the_truth_and_the_gate_finds_the_worse_model(anthropic: Bench) -> None:
    # The benchmark does so for 100 seeds.
    found = count(anthropic, seeds=2, rows=300)

    assert found[f"{EQUAL} covered"] == found[f"{WEAKER} covered"] == 2
    assert found[f"{EQUAL} failed"] == 0
    assert found[f"{WEAKER} failed"] == 2


def test_rows_that_another_run_is_asking_about_are_not_counted_as_wrong(anthropic: Bench) -> None:
    make_golden(anthropic.world, 0, 20)
    anthropic.world.simulator.turn(batch_seconds=3600)
    assert isinstance(anthropic.advance(open_run(anthropic, 1, WEAKER)), Pause)

    candidate = asked(anthropic, 2, WEAKER)
    with pytest.raises(EvaluationFailed, match="Another run is asking about 20 golden rows"):
        Evaluator(evaluation=GATE).result(candidate)
    let_go(candidate.run)


def test_a_golden_row_that_came_after_the_table_was_read_is_left_out_and_not_counted_as_wrong(
    anthropic: Bench,
) -> None:
    make_golden(anthropic.world, 0, 20)
    candidate, second = asked(anthropic, 1, WEAKER), asked(anthropic, 2, EQUAL)
    anthropic.world.ask("INSERT INTO golden SELECT * REPLACE (id + 1000 AS id) FROM golden WHERE id < 3")
    told: list[str] = []
    run = replace(candidate.run, parts=replace(candidate.run.parts, log=told.append))

    (column,) = Evaluator(evaluation=GATE).result(replace(candidate, run=run), second).columns
    for one in (candidate, second):
        let_go(one.run)

    assert (column.rows, column.no_answer) == (20, 0)
    assert column.comparison is not None
    assert column.comparison.pairs.rows == 20
    assert [text for text in told if text.startswith("3 golden rows came after")]


def test_a_worker_that_died_before_the_page_was_drawn_leaves_it_to_the_next(anthropic: Bench) -> None:
    make_golden(anthropic.world, 0, 20)
    candidate = asked(anthropic, 1, WEAKER)
    first = Evaluator(evaluation=GATE).result(candidate)
    page = Path(candidate.run.generation().folder.evaluation_page_uri)
    drawn = page.read_bytes()
    page.unlink()
    anthropic.world.ask("UPDATE golden SET right_label = 'other'; DROP TABLE answers_2__results")

    again = Evaluator(evaluation=GATE).result(candidate)
    let_go(candidate.run)

    assert again == first
    assert page.read_bytes() == drawn
    assert anthropic.world.ask("SELECT golden_rows, right_rows FROM answers_2__results") == [
        (20, first.columns[0].right)
    ]
