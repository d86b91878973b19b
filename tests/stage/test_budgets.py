"""Runs that share a budget: what each may cost is held before it sends, counted once, and given back."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest
from typer.testing import CliRunner

from airflow_batch_llm.cli import app
from airflow_batch_llm.core.budget import CEILING, HOLD_SECONDS, Per, SharedBudget
from airflow_batch_llm.core.settings import OverBudget
from airflow_batch_llm.errors import BudgetExceeded, CanaryFailed, InputError
from airflow_batch_llm.stage.budgets import BudgetBook, Budgets
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.run import Spread
from tests.stage.test_month import PRICES, _DiesAt, _Killed
from tests.stage.world import Bench

ROWS = 4


class _Shop:
    """Runs on tables of their own, which share one budget."""

    def __init__(self, bench: Bench, **budgets: float) -> None:
        """`budgets`: the dollars of each, in runs as they are estimated."""
        self.bench = bench
        bench.world.make_tickets(ROWS)
        asked = {"target": "planned", "plan_only": True, "max_cost_usd": None, "prices": self._prices}
        self.price = bench.complete("priced", **asked).report.estimate["usd"] or 0.0
        self.budgets = {
            name: SharedBudget(name=name, usd=runs * self.price, per=Per.MONTH)
            for name, runs in budgets.items()
        }

    @property
    def _prices(self) -> dict[str, Any]:
        return {self.bench.world.model: PRICES}

    def run(self, name: str, *, dies_at: str = "", **changes: Any) -> Any:
        parts: dict[str, Any] = {"budgets": self.budgets}
        if dies_at:
            parts["workspace"] = _DiesAt(self.bench.world.workspace(), dies_at)
        asked = {"budget": "support", "max_cost_usd": None, "prices": self._prices, "min_success_ratio": 0}
        return self.bench.run(name, parts=parts, target=f"of_{name}", **{**asked, **changes})

    def complete(self, name: str, **changes: Any) -> Any:
        return self.bench.complete(self.run(name, **changes))

    def killed(self, name: str, at: str) -> None:
        with pytest.raises(_Killed):
            self.complete(name, dies_at=at)

    def book(self, name: str = "support") -> dict[str, Any]:
        """Return what the command shows of the last period."""
        uri = str(self.bench.world.folder / "workspace")
        found = json.loads(CliRunner().invoke(app, ["budget", uri, "--json"]).stdout)
        return next(one for one in found if one["budget"] == name)  # type: ignore[no-any-return]


def test_a_budget_is_shared_by_runs_settled_at_their_cost_and_begins_again(openai: Bench) -> None:
    shop = _Shop(openai, support=1.5)
    first = shop.complete("one").report

    book = shop.book()
    assert (book["spent_usd"], book["holds"]) == (pytest.approx(first.spent.cost), [])
    assert 0 < first.spent.cost < shop.price
    assert [
        text for text in openai.said if text.startswith("Of the budget support ($") and "are left" in text
    ]
    shop.budgets["support"] = replace(shop.budgets["support"], usd=first.spent.cost + 0.6 * shop.price)
    with pytest.raises(
        BudgetExceeded, match=r"above the budget support \(\$.* a month\), of which \$.* are left"
    ):
        shop.complete("two")
    assert openai.world.charged() == ROWS
    partial = shop.complete("two", on_over_budget=OverBudget.PARTIAL).report
    assert partial.rows == 2
    openai.world.sleep(32 * 86_400)
    assert shop.complete("three").report.rows == ROWS
    with pytest.raises(InputError, match=r"There is no budget 'sales'\. .* has: support\."):
        shop.complete("four", budget="sales")


def test_no_run_exceeds_the_ceiling_whatever_its_own_budget_is(openai: Bench) -> None:
    shop = _Shop(openai, support=100.0, **{CEILING: 1.2})
    shop.complete("one", budget=None)
    shop.budgets[CEILING] = replace(shop.budgets[CEILING], usd=shop.price)

    with pytest.raises(BudgetExceeded, match="above the budget ceiling"):
        shop.complete("two")

    assert shop.book(CEILING)["spent_usd"] > 0


def test_a_plan_whose_dollars_are_gone_ends_and_its_rows_are_planned_in_the_next_period(
    openai: Bench,
) -> None:
    shop = _Shop(openai, support=1.2)
    shop.killed("one", ".registers/runs")  # it is planned, and nothing is confirmed
    openai.world.sleep(HOLD_SECONDS + 1)
    shop.complete("two")

    with pytest.raises(BudgetExceeded, match="The run one/g1 would cost"):
        shop.complete("one")
    openai.world.sleep(32 * 86_400)
    report = shop.complete("one", max_tries=1).report

    assert (report.rows, shop.book()["spent_usd"]) == (ROWS, pytest.approx(report.spent.cost))
    assert openai.world.charged() == 2 * ROWS


def test_a_planner_that_is_killed_gives_its_dollars_back_after_an_hour(openai: Bench) -> None:
    shop = _Shop(openai, support=1.2)
    shop.killed("one", "draft.json")  # held, and nothing is planned

    with pytest.raises(BudgetExceeded):
        shop.complete("two")
    openai.world.sleep(HOLD_SECONDS + 1)
    assert shop.complete("two").report.rows == ROWS

    with pytest.raises(BudgetExceeded):
        shop.complete("one")  # which plans again
    assert openai.world.charged() == ROWS


def test_what_a_killed_worker_has_confirmed_is_spent_by_its_retry_alone(openai: Bench) -> None:
    shop = _Shop(openai, support=1.2)
    shop.killed("one", "/deadline/")  # confirmed, and nothing is sent
    openai.world.sleep(HOLD_SECONDS + 1)

    with pytest.raises(BudgetExceeded):
        shop.complete("two")
    report = shop.complete("one").report

    assert (report.rows, openai.world.charged()) == (ROWS, ROWS)
    assert shop.book()["spent_usd"] == pytest.approx(report.spent.cost)


def test_a_group_holds_its_whole_cost_whichever_task_begins_and_sends_nothing_without_it(
    openai: Bench,
) -> None:
    shop = _Shop(openai, support=1.2)
    whole = Spread(generation=shop.run("one", rows_per_batch=1).generation())
    first, second, third = whole.portions(3)
    whole.submit(second)  # the first one is late, or has failed

    assert [hold["usd"] for hold in shop.book()["holds"]] == [pytest.approx(shop.price)]
    with pytest.raises(BudgetExceeded):
        shop.complete("two")
    for portion in (first, third):
        whole.submit(portion)
    shop.complete("one", rows_per_batch=1)
    shop.budgets["support"] = replace(
        shop.budgets["support"], usd=shop.book()["spent_usd"] + 1.2 * shop.price
    )

    late = Spread(generation=shop.run("late", rows_per_batch=1).generation())
    openai.world.sleep(HOLD_SECONDS + 1)
    shop.complete("three", max_rows=2)  # leaves less than the group costs, and enough for one of its parts
    with pytest.raises(BudgetExceeded, match="The run late/g1 would cost"):
        late.submit(first)
    late.submit(second)

    assert openai.world.charged() == ROWS + 2


def test_a_run_that_is_killed_before_it_is_settled_is_settled_by_the_next(openai: Bench) -> None:
    shop = _Shop(openai, support=1.9)
    shop.killed("one", "~passed~")  # the report is stored
    assert len(shop.book()["holds"]) == 1

    shop.complete("two")
    spent = shop.book()["spent_usd"]
    shop.complete("one")

    assert shop.book()["spent_usd"] == spent > 0
    assert shop.book()["holds"] == []


def test_a_further_round_takes_what_is_left_and_no_more(openai: Bench) -> None:
    shop = _Shop(openai, support=1.0)
    openai.fault(kind="errored", every=1, times=None)
    shop.budgets["support"] = replace(shop.budgets["support"], usd=1.05 * shop.price)

    report = shop.complete("one", max_attempts=3).report

    book = shop.book()
    assert book["spent_usd"] == pytest.approx(report.spent.cost)
    assert report.spent.cost <= shop.budgets["support"].usd


def test_the_rest_after_a_canary_takes_what_its_tokens_say_and_no_more_than_is_left(openai: Bench) -> None:
    shop = _Shop(openai, support=20.0)  # enough for the answers that are expected of 300 tokens
    openai.fault(kind="text", every=1, times=None, text="billing " * 1000)
    canary = {"canary": {"rows": 2, "way": "batch", "min_success_ratio": 0}}

    with pytest.raises(CanaryFailed, match=r"above the budget support \(\$.* a month\), of which"):
        shop.complete("one", output_type=str, max_tokens=20_000, **canary).raise_for_verdict()
    openai.world.simulator.clear_faults()
    shop.budgets["support"] = replace(shop.budgets["support"], usd=1000.0)
    report = shop.complete("two", **canary).report

    book = shop.book()
    assert report.rows == ROWS
    assert openai.world.charged() == 2 + ROWS
    assert (book["holds"], book["spent_usd"] < shop.budgets["support"].usd) == ([], True)


def test_twenty_processes_that_race_for_ten_shards_get_ten(openai: Bench) -> None:
    budget = SharedBudget(name="support", usd=1.0, per=Per.ALL)
    parts = openai.world.parts(budgets={"support": budget})
    start = Barrier(20)

    def race(number: int) -> bool:
        folder = RunFolder(workspace=openai.world.workspace(), run=f"dag/task/run/{number}")
        budgets = Budgets(parts=parts, folder=folder)
        periods = budgets.periods("support")
        start.wait()
        return budgets.reserve(periods, 0.1) and budgets.keep(periods, 0.1)

    with ThreadPoolExecutor(20) as pool:
        granted = list(pool.map(race, range(20)))

    assert sum(granted) == 10
    holds = _Shop.book(_at(openai))["holds"]
    assert (len(holds), {hold["until"] for hold in holds}) == (10, {None})


def _at(bench: Bench) -> Any:
    shop = object.__new__(_Shop)
    shop.bench = bench
    return shop


def test_the_states_of_a_budget_go_on_in_the_next_folder(openai: Bench) -> None:
    few = BudgetBook(workspace=openai.world.workspace(), name="support", period="all", per_folder=2)

    for number in range(1, 6):
        assert few.change(1.0, lambda state, run=str(number): state.hold(run, 0.1, 0.0))

    assert few.state(None).held == pytest.approx(0.5)
    assert len(openai.world.workspace().folders(".registers/budgets/support/all")) == 3
