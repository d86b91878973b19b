"""Runs that nobody goes on with: their answers are paid, and must not keep rows from the next run for long."""

from airflow_batch_llm.core.model import Outcome
from tests.stage.world import Bench


def test_a_run_whose_batches_were_cancelled_gives_its_rows_to_the_next(openai: Bench) -> None:
    openai.world.make_tickets(10)
    openai.world.simulator.turn(batch_seconds=3600)
    openai.advance("monday")
    (batch,) = openai.batches()
    openai.world.provider().cancel(batch)
    openai.world.sleep(4000)
    openai.world.simulator.turn(batch_seconds=0.2)

    tuesday = openai.complete("tuesday")

    assert not [message for message in openai.said if "could not be brought to its end" in message]
    assert tuesday.report.why == {"new": 10}
    assert len(openai.world.answers()) == 10


def test_answers_of_a_run_that_was_left_alone_land_with_the_next_and_are_not_bought_again(
    openai: Bench,
) -> None:
    openai.world.make_tickets(10)
    openai.advance("monday")
    openai.world.sleep(600)

    tuesday = openai.complete("tuesday")

    assert not [message for message in openai.said if "could not be brought to its end" in message]
    assert tuesday.report.why == {"answered": 10}
    assert openai.world.charged() == 10
    assert len(openai.world.answers()) == 10
    assert openai.complete("monday").report.final == {Outcome.SUCCEEDED: 10}
