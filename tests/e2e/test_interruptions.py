"""Kills and actions of users while a batch runs: each row is bought once, and no batch is left running.

A real scheduler, worker and triggerer are killed; the provider's ledger is the judge.
"""

import os
from collections.abc import Callable
from signal import SIGKILL, SIGTERM, Signals

import pytest

from airflow_batch_llm.demo.local_airflow import until
from tests.airflow.standalone import Stack
from tests.e2e.conftest import Case
from tests.e2e.driving import restart, task_pids

Begin = Callable[[str], Case]

#: Longer than a test waits for the call that it slows down.
HELD_SECONDS = 90


def hold_batches(stack: Stack) -> None:
    """Keep batches from ending by themselves."""
    stack.simulator.fault(provider="openai", kind="hold", times=None)


def test_a_table_is_labelled_without_a_retry(begin: Begin) -> None:
    case = begin("one_task")

    case.until_success()

    case.assert_paid_once()


@pytest.mark.parametrize("whole", [True, False], ids=["host", "process"])
def test_a_task_that_dies_before_it_hears_that_its_batch_was_accepted_adopts_it(
    stack: Stack, begin: Begin, whole: bool
) -> None:
    stack.simulator.fault(
        provider="openai", kind="delay", endpoint="create", effect="after", seconds=HELD_SECONDS
    )
    case = begin("one_task")
    case.until_sent()

    case.kill("label", whole=whole)

    case.until_success()
    assert case.task("label")["try_number"] > 1
    case.assert_paid_once()


def test_two_dags_on_one_cron_and_one_target_buy_each_row_once(on_one_cron: list[Case]) -> None:
    for case in on_one_cron:
        case.until_success()

    on_one_cron[0].assert_paid_once()


def test_an_evicted_worker_leaves_the_batch_to_the_next(stack: Stack, begin: Begin) -> None:
    stack.simulator.fault(
        provider="openai", kind="delay", endpoint="create", effect="after", seconds=HELD_SECONDS
    )
    case = begin("one_task")
    case.until_sent()

    case.ask_to_end("label")
    until(lambda: "batches are left running" in case.log("label", 1), "the task to hear of its eviction")
    case.kill("label", whole=True)

    case.until_success()
    assert case.task("label")["try_number"] > 1
    case.assert_paid_once()


def test_a_task_that_dies_while_it_lands_lands_again(stack: Stack, begin: Begin) -> None:
    held = stack.simulator.fault(provider="openai", kind="delay", endpoint="content", seconds=HELD_SECONDS)
    case = begin("one_task")
    until(lambda: stack.simulator.met(held), "the results to be asked for")

    case.kill("label", whole=False)

    case.until_success()
    assert case.task("label")["try_number"] > 1
    case.assert_paid_once()


@pytest.mark.parametrize("number", [SIGKILL, SIGTERM], ids=["kill", "term"])
def test_another_triggerer_goes_on_waiting(stack: Stack, begin: Begin, number: Signals) -> None:
    hold_batches(stack)
    case = begin("one_task")
    case.until_watched("label")

    restart(stack.airflow, "triggerer", number)
    case.finish()

    case.until_success()
    case.assert_paid_once()


def test_a_cleared_task_goes_on_waiting_for_the_same_batch(stack: Stack, begin: Begin) -> None:
    hold_batches(stack)
    case = begin("one_task")
    case.until_watched("label")

    case.clear("label")
    case.until_watched("label", try_number=2)
    case.finish()

    case.until_success()
    case.assert_paid_once()


def test_a_batch_whose_task_is_marked_failed_is_cancelled(stack: Stack, begin: Begin) -> None:
    hold_batches(stack)
    case = begin("one_task")
    case.until_watched("label")

    case.mark_failed("label")

    case.assert_given_up()


def test_a_batch_whose_dag_run_is_failed_is_cancelled(stack: Stack, begin: Begin) -> None:
    hold_batches(stack)
    # Airflow breaks off after a second what a trigger does at its end.
    stack.simulator.fault(provider="openai", kind="delay", endpoint="cancel", seconds=4)
    case = begin("one_task")
    case.until_watched("label")

    case.fail_run()

    case.assert_given_up()


def test_a_cleared_sensor_waits_again_and_cancels_nothing(stack: Stack, begin: Begin) -> None:
    hold_batches(stack)
    case = begin("by_hand")
    case.until_watched("wait")

    case.clear("wait")
    case.until_watched("wait", try_number=2)
    case.finish()

    case.until_success()
    case.assert_paid_once()


def test_a_mapped_task_that_dies_while_it_sends_leaves_nothing_unsent_or_sent_twice(
    stack: Stack, begin: Begin
) -> None:
    stack.simulator.fault(
        provider="openai", kind="delay", endpoint="create", effect="after", nth=2, seconds=HELD_SECONDS
    )
    case = begin("as_group")
    until(lambda: len(case.ledger["batches"]) >= 2, "two batches at the provider")

    def sending() -> list[int]:
        running = [task for task in case.mapped("labels.submit") if task["state"] == "running"]
        return task_pids(running[0]["id"]) if len(running) == 1 else []

    os.kill(until(sending, "the task whose creation is not answered")[-1], SIGKILL)

    case.until_success()
    assert sorted(task["try_number"] for task in case.mapped("labels.submit")) == [1, 1, 2]
    case.assert_paid_once(batches=3)


def test_batches_of_a_drive_that_is_marked_failed_are_waited_for_by_the_finish(
    stack: Stack, begin: Begin
) -> None:
    hold_batches(stack)
    case = begin("as_group")
    case.until_watched("labels.drive")

    case.mark_failed("labels.drive")
    case.until_watched("labels.finish")
    case.finish()
    case.until_state("labels.finish", "failed")
    case.assert_paid_once(batches=3)

    case.clear("labels.drive")
    case.until_success()
    case.assert_paid_once(batches=3)
