"""Each example Dag runs as it stands, leaves its table, and pays for each row once."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_batch_llm.demo.story import gone_live
from airflow_batch_llm.plugins.page.reading import Reader
from tests.dags.conftest import DAGS, Stand, read_dags, run_example
from tests.dags.reviews import write_reviews
from tests.edge.dag_runs import asset_extras, run_dag, states, synchronised, xcom

TICKETS = "SELECT count(*) FROM support.tickets"
TEXTS = "SELECT count(*) FROM (SELECT DISTINCT subject, body FROM support.tickets)"
BODY_TEXTS = (
    "SELECT count(*) FROM (SELECT DISTINCT subject, body FROM support.tickets WHERE body IS NOT NULL)"
)
BODIES = "SELECT count(*) FROM support.tickets WHERE body IS NOT NULL"


def test_the_night_labels_every_ticket_and_the_next_only_those_that_changed(stand: Stand) -> None:
    run_example("nightly_labels", logical_date=datetime.now(UTC))

    texts = stand.number(TEXTS)
    assert stand.number("SELECT count(*) FROM support.ticket_labels") == stand.number(TICKETS)
    assert stand.charged() == texts

    stand.change(3)
    run_example("nightly_labels", logical_date=datetime.now(UTC))

    assert stand.charged() == texts + 3
    assert stand.number("SELECT count(*) FROM support.ticket_labels") == stand.number(TICKETS)


def test_orders_become_typed_columns(stand: Stand) -> None:
    run_example("extract_orders")

    described = stand.ask("DESCRIBE shop.order_lines")
    types = {name: kind for name, kind, *_ in described if not name.startswith("_llm_")}
    assert types == {
        "order_id": "INTEGER",
        "buyer_name": "VARCHAR",
        "buyer_city": "VARCHAR",
        "article": "VARCHAR",
        "quantity": "BIGINT",
        "is_complaint": "BOOLEAN",
    }
    assert stand.number("SELECT count(*) FROM shop.order_lines") == stand.charged() == 40


def test_three_tasks_share_one_run(stand: Stand) -> None:
    done = run_example("three_tasks")

    assert xcom(done, "send")["batch_ids"] == xcom(done, "collect")["batches"]
    assert stand.number("SELECT count(*) FROM support.moods") == stand.number(TICKETS)


def test_a_large_table_is_spread_over_tasks(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_LLM_ROWS_PER_BATCH", "15")

    done = run_example("large_table")

    portions = xcom(done, "find_products.plan")
    assert len(portions) == 4
    assert stand.number("SELECT count(product) FROM support.products") == stand.number(TICKETS)
    assert stand.charged() == stand.number(TEXTS)


def test_files_that_arrive_are_asked_about_and_put_away(stand: Stand) -> None:
    write_reviews(stand.inbox, 6)

    run_example("file_arrival")

    rows = stand.ask("SELECT review_id, _llm_source_uri FROM shop.review_summaries ORDER BY review_id")
    assert rows == [(number, (stand.inbox / "reviews.jsonl").as_uri()) for number in range(1, 7)]
    assert [path.name for path in (stand.inbox / "done").iterdir()] == ["reviews.jsonl"]


def test_files_of_an_event_are_summarised(stand: Stand) -> None:
    write_reviews(stand.inbox, 6)
    uri = (stand.inbox / "reviews.jsonl").as_uri()

    run_example("file_watcher", run_conf={"uris": [uri]})

    assert stand.ask("SELECT count(*), any_value(_llm_source_uri) FROM shop.watched_reviews") == [(6, uri)]


def test_rows_that_wait_are_counted_and_summarized(stand: Stand) -> None:
    (watcher,) = read_dags()["rows_watcher"].timetable.asset_condition.watchers
    trigger = watcher.trigger
    assert trigger.look() == [{"rows": stand.number(TICKETS)}]

    run_example("rows_watcher")

    assert stand.number("SELECT count(summary) FROM support.summaries") == stand.number(TICKETS)
    assert trigger.look() == []


def test_rows_that_have_waited_for_long_are_summarized_into_a_table_that_was_there(stand: Stand) -> None:
    run_example("pending_rows")

    assert stand.number("SELECT count(summary) FROM support.summaries") == stand.number(TICKETS)


def test_the_second_stage_asks_only_where_the_first_found_something_missing(stand: Stand) -> None:
    run_example("two_stages")

    gaps = "SELECT ticket_id FROM support.gaps WHERE NOT is_complete AND missing IS NOT NULL ORDER BY 1"
    assert stand.number("SELECT count(*) FROM support.gaps") == stand.number(BODIES)
    assert stand.ask("SELECT ticket_id FROM support.questions ORDER BY 1") == stand.ask(gaps) != []


def test_a_function_of_the_row_is_the_prompt_of_each_area(stand: Stand) -> None:
    done = run_example("prompt_function")

    for index, (area, words) in enumerate(
        {"app": "crash|error|slow", "money": "invoice|charge|refund"}.items()
    ):
        asked = stand.number(
            f"SELECT count(*) FROM support.tickets WHERE regexp_matches(lower(body), '{words}')"
        )
        assert stand.number(f"SELECT count(tone) FROM support.tones_{area}") == asked > 0
        assert xcom(done, "judge_tone", map_index=index)["outcomes"] == {"succeeded": asked}


def test_every_text_gets_an_embedding_of_the_wanted_length(stand: Stand) -> None:
    run_example("embeddings")

    lengths = stand.ask("SELECT len(embedding), count(*) FROM support.ticket_embeddings GROUP BY 1")
    assert lengths == [(256, stand.number(BODIES))]
    assert stand.charged("anthropic") == 0


def test_a_better_prompt_is_asked_after_an_estimate_that_sends_nothing(stand: Stand) -> None:
    run_example("nightly_labels", logical_date=datetime.now(UTC))
    texts = stand.charged()

    done = run_example("reanswer")

    assert xcom(done, "estimate")["requests"] == 0
    assert xcom(done, "answer_again")["why"] == {"outdated": stand.number(TICKETS)}
    assert stand.charged() == 2 * texts


def test_a_better_prompt_goes_live_after_it_was_measured_and_the_nights_go_on_with_it(stand: Stand) -> None:
    run_example("nightly_topics", logical_date=datetime.now(UTC))

    done = run_example("prompt_rollout")

    told = xcom(done, "evaluate")
    golden = stand.number("SELECT count(*) FROM support.golden_tickets")
    right = stand.number(
        "SELECT count(*) FROM support.golden_tickets JOIN support.topic_evaluation USING (ticket_id)"
        " WHERE topic = expected_topic"
    )
    (topic,) = told["columns"].values()
    assert (topic["rows"], topic["right"]) == (golden, right)
    assert topic["accuracy"] > 0.9 > topic["baseline_right"] / golden
    assert [finding["ruling"] for finding in told["findings"]] == ["passed", "passed"]
    tickets = stand.number(TICKETS)
    assert xcom(done, "label_tickets")["why"] == {"outdated": tickets}
    assert stand.number("SELECT count(*) FROM support.ticket_topics") == tickets
    shown = Reader().runs_of_task("prompt_rollout", done.run_id, "a task without a run", -1)
    assert {record.target for record in shown} == {
        "support.topic_evaluation",
        "support.topic_evaluation__against",
        "support.ticket_topics",
    }

    live = stand.folder / "live"
    live.mkdir()
    (live / "prompt_rollout.py").write_text(gone_live((DAGS / "prompt_rollout.py").read_text()))
    charged = stand.charged()
    night = run_dag(read_dags(live)["nightly_topics"], logical_date=datetime.now(UTC))

    assert xcom(night, "label_tickets")["why"] == {"answered": tickets}
    assert stand.charged() == charged


def test_the_evening_sends_and_tells_the_asset_what_it_sent(stand: Stand) -> None:
    done = run_example("evening_sends")

    (extra,) = asset_extras(done)
    assert extra["handle"] == xcom(done, "send")
    assert read_dags()["morning_collects"].task_ids == ["handles", "collect"]


def test_what_the_model_refuses_waits_for_a_person_and_the_next_run_merges_the_answer(stand: Stand) -> None:
    stand.simulator.fault(provider="anthropic", kind="refused", rows=[0, 1])

    done = run_dag(read_dags()["human_review"], mark_success_pattern="ask|is_answered")

    assert set(states(done).values()) == {"success"}
    waiting = "SELECT count(*), count(reviewed_by), count(body) FROM support.reviewed__review"
    rows = xcom(done, "count_waiting")
    assert rows >= 2
    assert stand.ask(waiting)[0][:2] == (rows, 0)
    charged = stand.charged()
    stand.ask("UPDATE support.reviewed__review SET topic = 'billing', reviewed_by = 'ada'")

    done = run_dag(read_dags()["human_review"])

    assert xcom(done, "label")["reviewed"] == rows
    assert states(done)["merge"] == "skipped"
    assert stand.number("SELECT count(topic) FROM support.reviewed") == stand.number(TICKETS)
    assert stand.number("SELECT count(*) FROM support.reviewed WHERE _llm_model = 'human:ada'") == rows
    assert stand.charged() == charged


def test_a_cheap_run_asks_nobody_and_an_expensive_one_waits_for_an_approval(stand: Stand) -> None:
    cheap = run_dag(read_dags()["approve_the_bill"])

    assert states(cheap)["approve"] == "skipped"
    assert stand.number("SELECT count(wants_refund) FROM support.refunds") == stand.number(TICKETS)

    stand.change(3)
    asked = run_dag(
        read_dags()["approve_the_bill"],
        run_conf={"approve_above_usd": 0},
        mark_success_pattern="approve",  # stands for the person
    )

    assert set(states(asked).values()) == {"success"}
    assert xcom(asked, "label")["requests"] == 3


def test_a_few_tickets_are_tried_before_the_others(stand: Stand) -> None:
    done = run_example("canary")

    assert xcom(done, "find_teams")["canary"]["requests"] == 10
    assert stand.number("SELECT count(team) FROM support.teams") == stand.number(TICKETS)
    assert stand.charged() == stand.number(TEXTS)


def _routes(stand: Stand, table: str) -> dict[str, int]:
    """Return the number of rows in a target by route."""
    return dict(stand.ask(f"SELECT _llm_route, count(*) FROM {table} GROUP BY 1"))


def _wait_for_the_trigger(stand: Stand) -> None:
    """Wait until the trigger looks at the batches repeatedly, because then no worker holds the database."""
    end, looks = time.monotonic() + 120, 0
    while looks < 3 and time.monotonic() < end:
        time.sleep(0.1)
        calls = stand.simulator.ledger()["anthropic"]["calls"]
        looks = calls.get("retrieve", 0) + calls.get("list", 0)
    assert stand.simulator.ledger()["anthropic"]["running"]


def _let_batches_end(stand: Stand, table: str) -> dict[str, int]:
    """Return the rows of a target by route while the batches run, and let these end then."""
    try:
        _wait_for_the_trigger(stand)
        return _routes(stand, table)
    finally:
        stand.simulator.turn(batch_seconds=0.1)
        stand.simulator.clock(advance_seconds=3600)


def test_urgent_tickets_have_their_reply_while_the_batches_run(stand: Stand) -> None:
    stand.simulator.turn(batch_seconds=3600)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(_let_batches_end, stand, "support.replies")
        run_example("urgent_and_nightly")

    urgent = _routes(stand, "support.replies")["urgent"]
    assert first.result() == {"urgent": urgent}
    assert 0 < urgent < stand.number("SELECT count(reply) FROM support.replies") == stand.number(TICKETS)
    assert stand.charged() == stand.number(TEXTS)


def test_the_strong_model_answers_what_the_cheap_one_is_not_sure_of(stand: Stand) -> None:
    done = run_example("cheap_then_strong")

    routes = xcom(done, "route_tickets")["routes"]
    models = dict(stand.ask("SELECT _llm_route, min(_llm_model) FROM support.ticket_teams GROUP BY 1"))
    assert models == {"default": "claude-haiku-4-5", "strong": "claude-sonnet-4-6"}
    assert stand.number("SELECT count(*) FROM support.ticket_teams") == stand.number(BODIES)
    low = "SELECT count(*) FROM support.ticket_teams WHERE _llm_route = 'default' AND confidence < 0.7"
    assert (stand.number(low), stand.charged()) == (0, sum(one["requests"] for one in routes.values()))


def test_what_is_open_an_hour_before_six_is_asked_in_real_time(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.simulator.turn(cancelled_share=0.5)
    stand.simulator.fault(provider="anthropic", kind="hold")  # until it is cancelled
    monkeypatch.setenv("BATCH_LLM_REAL_TIME_SECONDS", str(8 * 3600 - 3))  # the hour comes after three seconds

    done = run_example("complete_by_six", logical_date=datetime.now(UTC))

    report = xcom(done, "rate_tickets")
    assert report["outcomes"] == {"succeeded": stand.number(BODIES)}
    assert 0 < report["routes"]["urgent"]["succeeded"] < stand.number(BODIES)
    assert stand.number("SELECT count(severity) FROM support.severities") == stand.number(BODIES)
    assert stand.charged() == stand.number(BODY_TEXTS)

    dag = read_dags()["complete_by_six"]
    synchronised(dag)
    (alert,) = dag.deadline
    assert (alert.interval, alert.callback.path.rpartition(".")[2]) == (timedelta(hours=8), "SmtpNotifier")


@pytest.mark.parametrize("path", sorted(DAGS.glob("*.py")), ids=lambda path: path.stem)
def test_a_story_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 80
