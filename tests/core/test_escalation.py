"""A table of the route that a row takes next."""

import pytest

from airflow_batch_llm.core.escalation import Course, Rule, reachable
from airflow_batch_llm.core.model import Outcome

RULES = (
    Rule(to="strong", of=("default", "urgent"), on=(Outcome.INVALID, Outcome.REFUSED), below={"sure": 0.7}),
    Rule(to="urgent", of=("default", "strong"), left=3600.0),
    Rule(to="default", of=("strong",), on=(Outcome.INVALID,)),
)


def course(route: str, before: tuple[str, ...] = (), *, is_late: bool = False) -> Course:
    return Course(rules=RULES, route=route, before=before, is_late=is_late)


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.SUCCEEDED])
def test_an_outcome_leads_to_the_first_rule_that_names_it(outcome: Outcome) -> None:
    expected = "strong" if outcome in (Outcome.INVALID, Outcome.REFUSED) else None
    assert course("default").after_failure(outcome) == expected
    assert course("urgent").after_failure(outcome) == expected


def test_no_row_goes_back_to_a_route_that_it_took() -> None:
    assert course("strong").after_failure(Outcome.INVALID) == "default"
    assert course("strong", ("default",)).after_failure(Outcome.INVALID) is None
    assert course("urgent", ("default", "strong")).after_failure(Outcome.INVALID) is None


@pytest.mark.parametrize(("sure", "to"), [(0.69, "strong"), (0.7, None), (1, None), (None, "strong")])
def test_a_number_below_the_limit_leads_on_and_null_is_below_all(sure: float | None, to: str | None) -> None:
    assert course("default").after_answer({"sure": sure}) == to
    assert course("strong").after_answer({"sure": sure}) is None


def test_cancelled_rows_go_on_only_when_the_time_is_nearly_over() -> None:
    assert course("default").after_failure(Outcome.CANCELED) is None
    assert course("default", is_late=True).after_failure(Outcome.CANCELED) == "urgent"
    assert course("urgent", is_late=True).after_failure(Outcome.CANCELED) is None


def test_every_route_that_may_answer_a_row_is_known() -> None:
    assert reachable(RULES, "urgent") == {"urgent", "strong", "default"}
    assert reachable(RULES[:1], "default") == {"default", "strong"}
    assert reachable((), "default") == {"default"}
