"""Shared budgets: the machine in every order of its steps, periods, and what is said of a wrong configuration."""

from datetime import UTC, datetime

import pytest

from airflow_batch_llm.core.budget import BudgetState, Hold, Per, SharedBudget, read_budgets
from airflow_batch_llm.errors import InputError
from tests.core.budget_model import CONFIRMING, EXCLUSIVELY, LOOKING, Rules, explore


def _is_kept(rules: Rules) -> bool:
    """Return whether the budget is never exceeded, and each ended run is counted once."""
    for world, is_over in explore(rules):
        last = world.state(len(world.states), rules.limit)
        if len(world.sent) > rules.limit or last.spent > rules.limit:
            return False
        if is_over and (last.spent != len(world.reports) or set(last.holds) & world.reports):
            return False
    return True


@pytest.mark.parametrize(
    "rules",
    [
        Rules(runs=("a", "b"), crashes=2, lates=2),
        Rules(runs=("a", "a", "b"), crashes=0, lates=1),
        Rules(runs=("a", "a", "b"), crashes=1, lates=0),
        Rules(runs=("a", "b", "c"), limit=2.0, crashes=0, lates=0),
    ],
    ids=str,
)
def test_runs_never_spend_more_than_there_is_and_each_is_counted_once(rules: Rules) -> None:
    assert _is_kept(rules)


@pytest.mark.parametrize(
    "rules",
    [
        Rules(runs=("a", "b"), without=EXCLUSIVELY),
        Rules(runs=("a", "b"), without=CONFIRMING),
        Rules(runs=("a", "a"), limit=2.0, without=LOOKING),
    ],
    ids=str,
)
def test_each_rule_of_the_machine_is_needed(rules: Rules) -> None:
    assert not _is_kept(rules)


def test_a_planner_that_dies_gives_its_dollars_back_and_a_run_that_has_confirmed_does_not() -> None:
    state = BudgetState(usd=3.0, spent=1.0, holds={"dead": Hold(usd=1.0, until=10.0), "sent": Hold(usd=1.0)})

    assert state.hold("new", 1.0, 10.0) is None
    after = state.hold("new", 1.0, 10.1)
    assert after is not None
    assert set(after.holds) == {"sent", "new"}
    raised = after.hold("sent", 2.0, 10.1)
    assert raised is None
    lowered = BudgetState(usd=0.5, spent=1.0, holds=after.holds).hold("sent", 0.2, 10.1)
    assert lowered is not None
    assert lowered.holds["sent"] == Hold(usd=1.0)  # what it has, it keeps, whatever the limit is now
    assert BudgetState.from_json(after.to_json("nonce")) == after


def test_periods_are_those_of_utc() -> None:
    at = datetime(2027, 1, 1, 0, 30, tzinfo=UTC).timestamp()

    assert [per.period(at) for per in Per] == ["2027-01-01", "2026-W53", "2027-01", "2027", "all"]


def test_a_configuration_is_read_and_what_does_not_fit_is_named() -> None:
    assert read_budgets('{"a": {"usd": 5, "per": "day"}}', '{"usd": 9.5, "per": "all"}') == {
        "a": SharedBudget(name="a", usd=5.0, per=Per.DAY),
        "ceiling": SharedBudget(name="ceiling", usd=9.5, per=Per.ALL),
    }
    for wrong in ("[1]", "{", '{"a": 5}', '{"a": {"usd": -1, "per": "day"}}', '{"a": {"usd": 1, "per": "hour"}}',
                  '{"ceiling": {"usd": 1, "per": "day"}}', '{"a": {"usd": true, "per": "day"}}'):  # fmt: skip
        with pytest.raises(InputError, match="batch_llm"):
            read_budgets(wrong)
