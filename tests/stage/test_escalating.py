"""Rows that are asked again by another route: after failures, after unsure answers, and before the time is over."""

from collections.abc import Mapping
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from airflow_batch_llm.core.model import Outcome, Way
from airflow_batch_llm.core.settings import Escalation, Route
from airflow_batch_llm.errors import BatchLLMError, BudgetExceeded, InputError
from airflow_batch_llm.simulator.responder import truth
from tests.stage.test_routes import landed
from tests.stage.world import LABELS, Bench
from tests.vendors import MODELS, OTHER_MODELS

ROWS = 60
HOUR = 3600.0


class Label(BaseModel):
    label: Literal["billing", "bug", "other"]
    confidence: float = Field(ge=0, le=1)


def strong(bench: Bench, **route: Any) -> dict[str, Any]:
    name = bench.world.provider_name
    return {"routes": {"strong": Route(**{"model_id": f"{name}:{OTHER_MODELS[name]}", **route})}}


def test_a_row_that_stays_invalid_goes_to_the_stronger_model(bench: Bench) -> None:
    bench.world.make_tickets(ROWS)
    bench.fault(kind="invalid", rows=[3, 7])
    given = {**strong(bench), "escalate": [Escalation(to="strong", on={"invalid"})], "max_attempts": 1}
    report = bench.complete(**given).report
    assert (report.final, report.rounds, report.requests) == ({Outcome.SUCCEEDED: ROWS}, 2, ROWS + 2)
    assert landed(bench) == {"default": ROWS - 2, "strong": 2}
    assert bench.world.failures() == {}
    models = dict(bench.world.ask("SELECT _llm_route, min(_llm_model) FROM labels GROUP BY 1"))
    assert models["strong"] == OTHER_MODELS[bench.world.provider_name]
    for only in ("changed", "outdated"):  # the stronger model's answer is an answer of this stage
        assert bench.complete(f"dag/task/{only}", **{**given, "only": only}).report.rows == 0


def unsure(bench: Bench, **changes: Any) -> dict[str, Any]:
    """The arguments of a cascade by confidence, with a cheap model that errs in a third of the rows."""
    name = bench.world.provider_name
    bench.world.simulator.turn(
        wrong_share={MODELS[name]: 0.33, OTHER_MODELS[name]: 0.0}, truth_find="body of [0-9]+"
    )
    rule = Escalation(to="strong", below={"confidence": 0.8})
    return {**strong(bench), "output_type": Label, "escalate": [rule], **changes}


def accuracy(bench: Bench) -> float:
    """Return the share of right labels in the target."""
    schema = Label.model_json_schema()
    rows = bench.world.ask("SELECT id, label FROM labels")
    return sum(truth(f"body of {key}", schema)["label"] == label for key, label in rows) / len(rows)


def test_an_unsure_answer_is_asked_of_the_stronger_model_and_the_row_lands_once(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(ROWS, distinct=ROWS - 10)
    given = unsure(bench)
    report = bench.complete(**given).report
    unsure_rows = landed(bench)["strong"]
    assert 0 < unsure_rows < ROWS
    assert report.final == {Outcome.SUCCEEDED: ROWS}
    assert len(bench.world.answers()) == ROWS
    assert sum(one.cost for one in report.routes.values()) == pytest.approx(report.spent.cost)
    assert report.spent.cost == pytest.approx(bench.world.billed(Way.BATCH))
    low = bench.world.ask("SELECT count(*) FROM labels WHERE _llm_route = 'default' AND confidence < 0.8")
    assert low == [(0,)]
    cascade = accuracy(bench)
    bench.complete("dag/task/cheap", **{**given, "escalate": [], "only": "all"})
    assert accuracy(bench) < cascade


def test_the_first_answer_stays_where_the_stronger_model_has_none(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(ROWS)
    bench.fault(kind="invalid", times=None, rows=list(range(ROWS)), nth=2)
    report = bench.complete(**unsure(bench, max_attempts=1)).report
    assert report.routes["strong"].requests > 0
    assert (report.final, landed(bench)) == ({Outcome.SUCCEEDED: ROWS}, {"default": ROWS})
    assert (bench.world.failures(), report.codes) == ({}, {})


def test_the_budget_of_a_route_bounds_what_goes_there(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(ROWS)
    free = bench.complete("dag/task/free", **unsure(bench)).report
    price = free.routes["strong"].cost / free.routes["strong"].requests
    given = unsure(bench, only="all", **strong(bench, max_cost_usd=price * 3.5))
    report = bench.complete("dag/task/bounded", **given).report
    assert report.final == {Outcome.SUCCEEDED: ROWS}
    assert 0 < report.routes["strong"].requests <= 4
    assert report.routes["strong"].cost <= price * 3.5
    assert any("not asked again: $" in said and "of the route strong" in said for said in bench.said)


def test_what_is_open_when_the_time_is_nearly_over_is_asked_in_real_time(bench: Bench) -> None:
    """A batch that hangs is cancelled an hour before the end. What it has answered is kept, and not asked again."""
    bench.world.make_tickets(ROWS)
    bench.world.simulator.turn(batch_seconds=600, cancelled_share=0.5)
    bench.fault(kind="hold")
    given: dict[str, Any] = {
        "routes": {"urgent": Route(way="now")},
        "escalate": [Escalation(to="urgent", left=HOUR)],
        "timeout": 8 * HOUR,
    }
    began = bench.world.clock()
    try:
        report = bench.complete(**given).report
    finally:
        bench.world.simulator.turn(batch_seconds=0, cancelled_share=0.0)
    assert report.final == {Outcome.SUCCEEDED: ROWS}
    assert (landed(bench)["urgent"], report.requests) == (ROWS // 2, ROWS + ROWS // 2)
    assert bench.world.charged() == ROWS
    assert 7 * HOUR <= bench.world.clock() - began < 8 * HOUR


def test_a_batch_whose_cancellation_is_refused_is_cancelled_at_the_next_look(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(ROWS)
    bench.world.simulator.turn(batch_seconds=600, cancelled_share=0.5)
    bench.fault(kind="hold")
    bench.fault(kind="status", endpoint="cancel", status=409, times=2)
    began, looks = bench.world.clock(), []
    try:
        report = bench.complete(
            routes={"urgent": Route(way="now")},
            escalate=[Escalation(to="urgent", left=HOUR)],
            timeout=8 * HOUR,
            on_pause=lambda _: looks.append(bench.world.clock() - began),
        ).report
    finally:
        bench.world.simulator.turn(batch_seconds=0, cancelled_share=0.0)
    refused = [said for said in bench.said if "could not be cancelled" in said]
    assert (len(refused), report.final) == (2, {Outcome.SUCCEEDED: ROWS})
    assert (landed(bench), len(bench.world.answers())) == ({"default": ROWS // 2, "urgent": ROWS // 2}, ROWS)
    assert bench.world.charged() == ROWS
    paid = bench.world.billed(Way.BATCH) + bench.world.billed(Way.NOW)
    assert report.spent.cost == pytest.approx(paid)
    assert 7 * HOUR <= looks[-1] < 7.2 * HOUR


def test_a_row_never_goes_back_to_a_route_also_when_the_time_is_nearly_over(openai: Bench) -> None:
    """An unsure answer in real time would go to the strong route, whose batches are given up for real time."""
    bench = openai
    bench.world.make_tickets(ROWS)
    given = unsure(bench, timeout=8 * HOUR, max_cost_usd=0.02)
    given["routes"] |= {"urgent": Route(way="now")}
    given["escalate"] += [Escalation(to="urgent", left=HOUR)]
    bench.world.simulator.turn(batch_seconds=600)
    bench.fault(kind="hold")
    try:
        report = bench.complete(**given).report
    finally:
        bench.world.simulator.turn(batch_seconds=0)
    assert (report.final, report.rounds) == ({Outcome.SUCCEEDED: ROWS}, 2)
    assert (landed(bench), bench.world.charged()) == ({"urgent": ROWS}, ROWS)
    assert bench.world.ask("SELECT count(*) > 0 FROM labels WHERE confidence < 0.8") == [(True,)]


REFUSED: Mapping[str, tuple[dict[str, Any], type[BatchLLMError], str]] = {
    "no route": ({"escalate": [{"to": "stronk", "on": ["invalid"]}]}, InputError, "'stronk', which is not a route"),
    "nothing": ({"escalate": [{"to": "strong"}]}, InputError, "never happens"),
    "itself": ({"escalate": [{"to": "strong", "of": "strong", "on": "invalid"}]}, InputError, "one of its own rows"),
    "a good answer": ({"escalate": [{"to": "strong", "on": "succeeded"}]}, InputError, "holds succeeded"),
    "no column": ({"escalate": [{"to": "strong", "below": {"sure": 1}}]}, InputError, "'sure', which is not a number"),
    "no number": ({"escalate": [{"to": "strong", "below": {"label": 1}}]}, InputError, "Its numbers are confidence"),
    "append": (
        {"escalate": [{"to": "strong", "below": {"confidence": 1}}], "write_mode": "append"},
        InputError,
        "keeps the first answer",
    ),
    "no price": (
        {"escalate": [{"to": "new", "on": ["invalid"]}], "routes": {"new": {"model_id": "openai:nobody-knows-it"}}},
        BudgetExceeded,
        "no price of nobody-knows-it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_rule_that_cannot_be_followed_is_refused_before_the_first_cent(openai: Bench, case: str) -> None:
    change, kind, said = REFUSED[case]
    openai.world.make_tickets(3)
    with pytest.raises(kind, match=said):
        openai.complete(**{**strong(openai), "output_type": Label, **change})
    assert (openai.world.charged(), LABELS[0]) == (0, "billing")
