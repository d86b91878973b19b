"""Example Dags whose story needs a scheduler."""

import signal
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_batch_llm.demo import warehouse
from airflow_batch_llm.demo.local_airflow import until
from tests.airflow.standalone import Stack
from tests.dags.reviews import write_reviews
from tests.e2e.driving import answer_request, end, run_state, tasks
from tests.e2e.mail import Mailbox, content


def succeeded(stack: Stack, dag_id: str, run_id: str) -> None:
    api = stack.airflow.api

    def look() -> bool:
        state = run_state(api, dag_id, run_id)
        assert state != "failed", [task["state"] for task in tasks(api, dag_id, run_id)]
        return bool(state == "success")

    until(look, f"{run_id} of {dag_id} to succeed", 150)


def first_run(stack: Stack, dag_id: str) -> str:
    return until(lambda: next(iter(stack.airflow.api.run_ids(dag_id)), None), f"a run of {dag_id}")


def bought(stack: Stack) -> Any:
    return stack.simulator.ledger()["anthropic"]["rows"]["charged"]


def test_the_scheduled_night_labels_all_and_the_next_run_only_what_changed(stack: Stack) -> None:
    stack.airflow.api.unpause("nightly_labels")
    succeeded(stack, "nightly_labels", first_run(stack, "nightly_labels"))
    tickets = stack.ask("SELECT count(*) FROM support.tickets")
    before = bought(stack)

    assert stack.ask("SELECT count(*) FROM support.ticket_labels") == tickets

    warehouse.change(stack.duckdb, 3)
    run_id = stack.airflow.api.trigger("nightly_labels", logical_date=datetime.now(UTC).isoformat())
    succeeded(stack, "nightly_labels", run_id)

    assert bought(stack) == before + 3


def test_the_morning_collects_what_the_evening_has_sent(stack: Stack) -> None:
    for dag_id in ("morning_collects", "evening_sends"):
        stack.airflow.api.unpause(dag_id)

    succeeded(stack, "evening_sends", first_run(stack, "evening_sends"))
    succeeded(stack, "morning_collects", first_run(stack, "morning_collects"))

    tickets = stack.ask("SELECT count(*) FROM support.tickets")
    assert stack.ask("SELECT count(*) FROM support.priorities") == tickets


def test_a_run_that_is_not_complete_at_six_sends_one_mail(stack: Stack, mailbox: Mailbox) -> None:
    stack.simulator.fault(provider="anthropic", kind="hold", times=None)
    began_late = datetime.now(UTC) - timedelta(hours=8) + timedelta(seconds=10)  # so six o'clock is near
    run_id = stack.airflow.api.trigger("complete_by_six", logical_date=began_late.isoformat())
    stack.airflow.api.unpause("complete_by_six")

    def mails() -> list[str]:
        return [str(mail["subject"]) for mail in mailbox.mails if run_id in content(mail)]

    until(mails, "a mail", 150)
    assert run_state(stack.airflow.api, "complete_by_six", run_id) in ("queued", "running")
    running = until(lambda: stack.simulator.ledger()["anthropic"]["running"], "a batch")
    stack.simulator.clear_faults()
    for batch_id in running:
        stack.simulator.finish(batch_id)
    succeeded(stack, "complete_by_six", run_id)
    assert mails() == ["complete_by_six is not complete at six"]


def test_a_watcher_starts_a_run_for_the_files_that_have_arrived_also_while_no_triggerer_lived(
    stack: Stack,
) -> None:
    inbox = stack.inbox.with_name("watched")
    stack.airflow.api.unpause("file_watcher")
    write_reviews(inbox, 3)
    succeeded(stack, "file_watcher", first_run(stack, "file_watcher"))
    uris = "SELECT count(*), any_value(_llm_source_uri) FROM shop.watched_reviews"

    assert stack.ask(uris) == [(3, (inbox / "reviews.jsonl").as_uri())]
    assert bought(stack) == 3

    end(stack.airflow, "triggerer", signal.SIGKILL)
    (inbox / "later.jsonl").write_text('{"review_id": 100, "text": "Late, but lovely."}\n')
    stack.airflow.services["triggerer"].start()
    until(lambda: len(stack.airflow.api.run_ids("file_watcher")) > 1, "a run for the later file", 150)
    for run_id in stack.airflow.api.run_ids("file_watcher"):
        succeeded(stack, "file_watcher", run_id)

    assert stack.ask("SELECT count(*) FROM shop.watched_reviews") == [(4,)]
    assert bought(stack) == 4


def test_the_run_of_a_day_starts_the_run_of_the_same_day_in_the_dag_that_follows(stack: Stack) -> None:
    for dag_id in ("apologies_of_day", "mood_of_day"):
        stack.airflow.api.unpause(dag_id)

    succeeded(stack, "mood_of_day", first_run(stack, "mood_of_day"))
    succeeded(stack, "apologies_of_day", first_run(stack, "apologies_of_day"))

    [(day,)] = stack.ask("SELECT DISTINCT day FROM support.day_moods")
    asked = f"SELECT ticket_id FROM support.tickets WHERE day = DATE '{day}' ORDER BY ALL"
    assert stack.ask("SELECT ticket_id FROM support.day_moods ORDER BY ALL") == stack.ask(asked)
    angry = "FROM support.day_moods JOIN support.tickets USING (ticket_id) WHERE mood = 'angry' AND body IS NOT NULL"
    apologised = stack.ask("SELECT ticket_id FROM support.day_apologies ORDER BY ALL")
    assert apologised == stack.ask(f"SELECT ticket_id {angry} ORDER BY ALL")
    assert apologised


def test_an_expensive_run_goes_on_when_a_person_approves_it_and_buys_nothing_when_not(stack: Stack) -> None:
    api, dag_id = stack.airflow.api, "approve_the_bill"
    api.unpause(dag_id)

    rejected = api.trigger(dag_id, {"approve_above_usd": 0})
    asked = answer_request(api, dag_id, rejected, "approve", "Reject")
    succeeded(stack, dag_id, rejected)

    assert asked.startswith("May this cost $0.")
    assert (api.task(dag_id, rejected, "label")["state"], bought(stack)) == ("skipped", 0)

    approved = api.trigger(dag_id, {"approve_above_usd": 0})
    answer_request(api, dag_id, approved, "approve", "Approve")
    succeeded(stack, dag_id, approved)

    tickets = stack.ask("SELECT count(*) FROM support.tickets")
    assert stack.ask("SELECT count(wants_refund) FROM support.refunds") == tickets


def test_what_a_person_answers_while_airflow_asks_is_merged(stack: Stack) -> None:
    api, dag_id = stack.airflow.api, "human_review"
    stack.simulator.fault(provider="anthropic", kind="refused", rows=[0])
    api.unpause(dag_id)
    run_id = first_run(stack, dag_id)
    until(
        lambda: api.task(dag_id, run_id, "ask")["state"] in ("awaiting_input", "deferred"),
        "the question",
        150,
    )
    charged = bought(stack)
    stack.ask("UPDATE support.reviewed__review SET topic = 'billing', reviewed_by = 'ada'")

    asked = answer_request(api, dag_id, run_id, "ask", "The tickets are answered")
    succeeded(stack, dag_id, run_id)

    merged = stack.ask("SELECT count(*) FROM support.reviewed WHERE _llm_model = 'human:ada'")[0][0]
    assert asked == f"Tickets that wait for a person: {merged}"
    assert api.xcom(dag_id, run_id, "merge")["reviewed"] == merged >= 1
    assert (bought(stack), stack.ask("SELECT count(*) FROM support.reviewed__review")) == (charged, [(0,)])
