"""Rows that are sent, rows that are not, and the bill."""

from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from genai_prices import Usage, calc_price

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.output_type import Embedding
from airflow_batch_llm.core.settings import Only, OverBudget, Source, WriteMode
from airflow_batch_llm.errors import BudgetExceeded, InputError, QualityGateFailed
from airflow_batch_llm.stage.run import Pause
from tests.stage.world import Bench
from tests.vendors import VENDORS

OTHER_PROMPT = "Label this ticket: {{ subject }}: {{ body }}"


def test_a_changed_row_of_a_hundred_thousand_is_one_request(openai: Bench) -> None:
    openai.world.make_tickets(100_000, 500)
    openai.complete("first")
    openai.world.ask("UPDATE tickets SET body = 'another' WHERE id = 77")

    done = openai.complete("second")

    assert done.report.why == {"answered": 99_999, "changed": 1}
    assert openai.world.charged() == 501
    assert len(openai.world.answers()) == 100_000


def test_the_same_rows_in_another_order_are_not_sent_again(openai: Bench) -> None:
    openai.world.make_tickets(50)
    openai.complete("first")

    done = openai.complete("second", source=Source(sql="SELECT * FROM tickets ORDER BY hash(id)"))

    assert (done.report.requests, openai.world.charged()) == (0, 50)


@pytest.mark.parametrize(
    ("only", "why"),
    [
        (Only.CHANGED, {"older_spec": 20}),
        (Only.NEW, {"answered": 20}),
        (Only.OUTDATED, {"outdated": 20}),
        (Only.ALL, {"again": 20}),
    ],
)
def test_a_changed_prompt_sends_what_only_says(openai: Bench, only: Only, why: dict[str, int]) -> None:
    openai.world.make_tickets(20)
    openai.complete("first")

    done = openai.complete("second", prompt=OTHER_PROMPT, only=only)

    assert done.report.why == why
    assert done.report.requests == (20 if only in (Only.OUTDATED, Only.ALL) else 0)


def test_rows_with_the_same_request_share_it_across_shards(bench: Bench) -> None:
    bench.world.make_tickets(50, 35)

    done = bench.complete(rows_per_batch=10)

    assert (done.report.requests, bench.world.charged()) == (35, 35)
    assert len(bench.world.answers()) == 50
    paid, shared = bench.world.ask(
        "SELECT sum(_llm_cost_usd), count(*) FROM labels GROUP BY _llm_shared ORDER BY _llm_shared"
    )
    assert (paid[1], shared) == (35, (0.0, 15))
    assert paid[0] == pytest.approx(done.report.spent.cost, abs=1e-12)
    assert (
        bench.world.ask(
            "SELECT count(DISTINCT label) FROM labels GROUP BY subject HAVING count(DISTINCT label) > 1"
        )
        == []
    )


def test_a_row_in_flight_in_another_run_is_not_bought_twice(bench: Bench) -> None:
    bench.world.make_tickets(20)
    bench.world.simulator.turn(batch_seconds=3600)
    bench.advance("monday", source=Source(sql="SELECT * FROM tickets WHERE id < 15"))

    tuesday = bench.complete("tuesday", source=Source(sql="SELECT * FROM tickets WHERE id >= 5"))
    monday = bench.complete("monday")

    assert tuesday.report.why == {"in_flight": 10, "new": 5}
    assert monday.report.rows == 15
    assert bench.world.charged() == 20
    assert len(bench.world.answers()) == 20


def test_estimates_above_the_budget_are_refused_before_anything_is_sent(openai: Bench) -> None:
    openai.world.make_tickets(20)

    with pytest.raises(BudgetExceeded, match="Nothing was sent"):
        openai.complete(max_cost_usd=0.00001)

    assert openai.batches() == []
    assert openai.world.unfinished() == []


def test_an_infinite_budget_is_none_also_where_no_price_is_known(openai: Bench) -> None:
    openai.world.make_tickets(3)

    done = openai.complete(model_id="openai:nobody-knows", max_cost_usd=float("inf"))

    assert done.report.final == {"succeeded": 3}


def test_the_verdict_of_a_run_that_the_provider_turned_away_says_why(openai: Bench) -> None:
    openai.world.make_tickets(3)
    openai.fault(kind="status", endpoint="create", status=401, code="invalid_api_key", times=None)

    done = openai.complete()

    assert not done.report.passed
    assert "did not take 1 of 1 batch: OpenAI answered 401: invalid_api_key" in done.report.verdict
    assert any("Check the connection's key" in said for said in openai.said)


DEAR = {"gpt-5-mini": {"input": 2_000.0, "output": 2_000.0}}  # dollars per million tokens


def test_a_budget_is_spent_in_source_order_if_the_user_wants_that(openai: Bench) -> None:
    openai.world.make_tickets(20)

    done = openai.complete(prices=DEAR, max_cost_usd=0.2, on_over_budget=OverBudget.PARTIAL)

    sent = done.report.why["new"]
    assert 0 < sent < 20
    assert done.report.why == {"new": sent, "postponed": 20 - sent}
    (planned,) = [said for said in openai.said if said.startswith("20 rows:")]
    assert float(planned.partition("about $")[2].split(". ")[0]) <= 0.2
    assert sorted(openai.world.answers()) == list(range(sent))
    assert done.report.spent.cost <= 0.2


def test_what_the_budget_does_not_allow_of_a_round_is_left_out(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.fault(kind="invalid", every=1, times=None)

    done = openai.complete(prices=DEAR, max_cost_usd=0.5)

    assert 0.25 < done.report.spent.cost <= 0.5
    assert 20 < done.report.requests < 40
    assert done.report.rounds == 2
    assert any("not asked again" in said for said in openai.said)


def test_max_rows_postpones_the_rest(openai: Bench) -> None:
    openai.world.make_tickets(20)

    first = openai.complete("first", max_rows=8)
    second = openai.complete("second", max_rows=8)

    assert first.report.why == {"new": 8, "postponed": 12}
    assert second.report.why == {"answered": 8, "new": 8, "postponed": 4}
    assert sorted(openai.world.answers()) == list(range(16))


def test_why_rows_are_sent_and_what_the_waiting_has_cost_is_said(openai: Bench) -> None:
    openai.world.make_tickets(30)
    openai.complete()
    openai.said.clear()
    openai.world.ask("UPDATE tickets SET subject = 'another ' || (id // 2), body = '' WHERE id < 4")
    paused: list[Pause] = []

    openai.complete("dag/task/next", on_pause=paused.append)

    assert openai.said[0].startswith(
        "30 rows: 26 answered, 4 changed. 4 of them make 2 requests in 1 batch, for about $0."
    )
    assert paused[0].waiting.startswith("1 of 1 batch is running; $0.0000 of about $0.")
    assert paused[0].waiting.endswith(" spent")


def test_of_what_has_landed_the_cost_is_said_while_the_rest_is_waited_for(openai: Bench) -> None:
    openai.world.make_tickets(30)
    paused: list[Pause] = []

    done = openai.complete(on_pause=paused.append, rows_per_batch=10, max_active_batches=1)

    assert any("2 have landed" in pause.waiting for pause in paused)
    (two_thirds,) = {pause.waiting for pause in paused if "2 have landed" in pause.waiting}
    spent = float(two_thirds.rpartition("; $")[2].partition(" ")[0])
    assert 0 < spent < done.report.spent.cost


def test_a_look_at_the_plan_sends_nothing_and_leaves_no_run(bench: Bench) -> None:
    bench.world.make_tickets(20)

    seen = bench.complete(plan_only=True)

    assert seen.report.why == {"new": 20}
    assert "20 requests" in seen.report.verdict
    assert bench.batches() == []
    assert bench.world.unfinished() == []
    assert bench.complete().report.rows == 20


def test_reported_dollars_are_those_of_the_ledger(bench: Bench) -> None:
    bench.world.make_tickets(30)
    bench.world.simulator.turn(cached_tokens=3, reasoning_tokens=7)
    bench.fault(kind="errored", every=10)

    done = bench.complete()

    tokens = bench.world.ledger()["tokens"]
    usage = done.report.usage
    assert (usage.input_tokens, usage.cached_tokens) == (tokens["input"], tokens["cached"])
    assert (usage.output_tokens, usage.reasoning_tokens) == (tokens["output"], tokens["reasoning"])
    ours = Decimal(str(done.report.spent.cost))
    assert abs(ours - _bill(bench.world.provider_name, tokens)) < Decimal("0.0000001")
    ((stored,),) = bench.world.ask("SELECT sum(_llm_cost_usd) FROM labels")
    assert stored == pytest.approx(done.report.spent.cost, abs=1e-12)


def _bill(provider: str, tokens: dict[str, int]) -> Decimal:
    """Half the public price; Google takes what its discount on cached tokens has left of them instead."""
    vendor = VENDORS[provider]

    def price(usage: Usage) -> Decimal:
        return calc_price(usage, vendor.model, provider_id=vendor.priced_as).total_price

    cached = price(Usage(input_tokens=tokens["cached"], cache_read_tokens=tokens["cached"]))
    rest = price(Usage(input_tokens=tokens["input"] - tokens["cached"], output_tokens=tokens["output"]))
    return rest / 2 + (cached if vendor.priced_as == "google" else cached / 2)


@pytest.mark.parametrize("changes", [{}, {"only": Only.ALL}, {"write_mode": WriteMode.APPEND}])
def test_a_finished_run_that_is_retried_does_nothing(bench: Bench, changes: dict[str, Any]) -> None:
    bench.world.make_tickets(20)
    first = bench.complete(**changes)
    calls = Counter(bench.world.ledger()["calls"])

    again = bench.complete(**changes)

    assert again == first
    assert Counter(bench.world.ledger()["calls"]) == calls
    assert bench.world.ask("SELECT count(*) FROM labels") == [(20,)]


def test_a_cleared_run_looks_at_the_source_again_and_buys_what_is_new(openai: Bench) -> None:
    openai.world.make_tickets(20)
    first = openai.complete()
    openai.world.make_tickets(25)
    assert not [said for said in openai.said if "Clear the task" in said]
    assert openai.complete() == first  # a retry, or a Dag run that was deleted and made again under its name
    assert [said for said in openai.said if "had ended before" in said and "Clear the task" in said]
    openai.world.make_tickets(20)
    nothing = openai.complete(max_tries=1)
    openai.world.make_tickets(25)
    more = openai.complete(max_tries=2)

    assert nothing.report.why == {"answered": 20}
    assert more.report.why == {"answered": 20, "new": 5}
    assert openai.world.charged() == 25


def test_a_cleared_unfinished_run_is_finished_before_the_source_is_read_again(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.world.simulator.turn(batch_seconds=3600)
    openai.advance()
    openai.world.make_tickets(25)

    done = openai.complete(max_tries=1)

    assert done.report.why == {"answered": 20, "new": 5}
    assert openai.world.charged() == 25


@pytest.mark.parametrize(
    "sql", ["SELECT *, now() AS at FROM tickets", "SELECT * FROM tickets ORDER BY random()"]
)
def test_a_source_that_never_reads_the_same_costs_nothing_on_a_retry(openai: Bench, sql: str) -> None:
    openai.world.make_tickets(20)
    openai.world.simulator.turn(batch_seconds=3600)
    stage: dict[str, Any] = {
        "source": Source(sql=sql),
        "prompt": "{{ subject }}" + ("{{ at }}" if "now" in sql else ""),
    }
    openai.advance(**stage)

    openai.complete(**stage)

    assert openai.world.charged() == 20
    assert len(openai.world.answers()) == 20


def test_a_spec_that_changes_in_the_night_does_not_touch_what_was_bought(bench: Bench) -> None:
    bench.world.make_tickets(20)
    bench.world.simulator.turn(batch_seconds=3600)
    bench.advance()

    bench.world.ask("ALTER TABLE tickets RENAME TO moved")  # the source is not read again
    calls = Counter(bench.world.ledger()["calls"])
    done = bench.complete(prompt=OTHER_PROMPT, output_type=["yes", "no"])

    assert done.report.rows == 20
    assert any("prompt and output_type have changed since" in said for said in bench.said)
    assert not any("Label this ticket" in said for said in bench.said)
    assert not {"create", "count_tokens"} & (Counter(bench.world.ledger()["calls"]) - calls).keys()
    assert bench.world.charged() == 20
    assert set(bench.world.answers().values()) <= {"billing", "bug", "other"}


@pytest.mark.parametrize("changes", [{"output_type": []}, {"extra_body": {"stream": True, "with_": 1}}])
def test_a_spec_that_is_refused_in_the_night_does_not_stop_what_was_bought(
    bench: Bench, changes: dict[str, Any]
) -> None:
    bench.world.make_tickets(20)
    bench.world.simulator.turn(batch_seconds=3600)
    bench.advance()

    assert bench.complete(**changes).report.final == {Outcome.SUCCEEDED: 20}
    with pytest.raises(InputError):
        bench.complete("dag/task/next", **changes)
    assert bench.world.charged() == 20


def test_an_embedding_is_asked_for_in_its_dimensions_and_others_are_another_spec(openai: Bench) -> None:
    openai.world.make_tickets(3)
    wanted = {
        "model_id": "openai:text-embedding-3-small",
        "endpoint": "/v1/embeddings",
        "max_tokens": None,
        "carry": (),
    }

    openai.complete(output_type=Embedding(dimensions=8), **wanted)
    again = openai.complete(
        "dag/task/longer", output_type=Embedding(dimensions=16), only=Only.OUTDATED, **wanted
    )

    assert again.report.why == {"outdated": 3}
    assert openai.world.ask("SELECT DISTINCT len(embedding) FROM labels") == [(16,)]


def test_a_model_that_does_not_exist_is_told_with_the_vendors_code_and_its_words_in_the_log(
    anthropic: Bench,
) -> None:
    anthropic.world.make_tickets(5)

    done = anthropic.complete(model_id="anthropic:claude-no-such", max_cost_usd=None)
    with pytest.raises(QualityGateFailed) as failed:
        done.raise_for_verdict()

    assert "None of 5 rows succeeded: errored 5 (not_found_error 5)" in str(failed.value)
    assert "not_found_error: model: claude-no-such" in failed.value.detail
    assert "claude-no-such" not in str(failed.value)


def test_a_mistyped_model_is_asked_about_where_its_price_is_not_known(anthropic: Bench) -> None:
    anthropic.world.make_tickets(5)

    with pytest.raises(
        BudgetExceeded, match=r"No price of claude-hiaku-4-5 is known\. Is the model claude-haiku-4-5\?"
    ):
        anthropic.complete(model_id="anthropic:claude-hiaku-4-5")
