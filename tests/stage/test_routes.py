"""Routes: which model, which way, for which rows, in one run on one target."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from airflow_batch_llm.core.model import Outcome, Way
from airflow_batch_llm.core.report import to_xcom
from airflow_batch_llm.core.settings import Route
from airflow_batch_llm.errors import BatchLLMError, BudgetExceeded, InputError, SourceError
from airflow_batch_llm.providers.routed import routed as together
from airflow_batch_llm.stage.land.finishing import Finished
from airflow_batch_llm.stage.run import Pause
from tests.stage.world import Bench
from tests.vendors import MODELS, OTHER_MODELS

#: Every tenth row is urgent, every fifth of the others is hard.
ROWS = 200
HOW = "CASE WHEN id % 10 = 0 THEN 'urgent' WHEN id % 5 = 1 THEN 'strong' END"


def make(bench: Bench, how: str = HOW) -> None:
    bench.world.make_tickets(ROWS)
    bench.world.ask(f"CREATE OR REPLACE TABLE tickets AS SELECT *, {how} AS how FROM tickets")


def routed(bench: Bench) -> dict[str, object]:
    """The arguments of a stage with two routes, chosen by a column."""
    strong = f"{bench.world.provider_name}:{OTHER_MODELS[bench.world.provider_name]}"
    return {"routes": {"urgent": Route(way="now"), "strong": Route(model_id=strong)}, "route_column": "how"}


def landed(bench: Bench) -> Mapping[str, int]:
    return dict(bench.world.ask("SELECT _llm_route, count(*) FROM labels GROUP BY 1 ORDER BY 1"))


def test_each_row_takes_its_route_and_the_bill_is_the_ledgers_by_way(bench: Bench) -> None:
    make(bench)
    report = bench.complete(**routed(bench)).report
    assert report.final == {Outcome.SUCCEEDED: ROWS}
    assert landed(bench) == {"default": 140, "strong": 40, "urgent": 20}
    models = dict(bench.world.ask("SELECT _llm_route, min(_llm_model) FROM labels GROUP BY 1"))
    assert models["default"] == models["urgent"] != models["strong"]
    ways = bench.world.ledger()["ways"]
    assert (ways["now"]["rows"], ways["batch"]["rows"], report.requests) == (20, 180, ROWS)
    totals = report.routes
    assert {name: one.succeeded for name, one in totals.items()} == landed(bench)
    assert totals["urgent"].cost == pytest.approx(bench.world.billed(Way.NOW), abs=1e-9)
    assert totals["default"].cost + totals["strong"].cost == pytest.approx(
        bench.world.billed(Way.BATCH), abs=1e-9
    )
    assert sum(one.cost for one in totals.values()) == pytest.approx(report.spent.cost, abs=1e-9)
    for only in ("changed", "outdated"):
        assert bench.complete(f"dag/task/{only}", only=only, **routed(bench)).report.rows == 0


def test_urgent_rows_are_in_the_target_while_the_batches_run(openai: Bench) -> None:
    bench = openai
    make(bench)
    bench.world.simulator.turn(batch_seconds=3600)
    seen = []

    def look(_: Pause) -> None:
        seen.append(landed(bench))

    try:
        done = bench.complete(on_pause=look, **routed(bench))
    finally:
        bench.world.simulator.turn(batch_seconds=0)
    assert seen[0] == {"urgent": 20}
    assert done.report.final == {Outcome.SUCCEEDED: ROWS}
    assert landed(bench)["default"] == 140


def two_vendors(bench: Bench) -> tuple[dict[str, object], dict[str, object]]:
    """The parts and the arguments of a stage with a route to another vendor in batches, and one in real time."""
    other = replace(bench.world, provider_name="anthropic")
    provider = together(bench.world.provider(), {"anthropic": other.provider()})
    model = f"anthropic:{MODELS['anthropic']}"
    routes = {"urgent": Route(model_id=model, way="now"), "strong": Route(model_id=model)}
    return {"provider": provider}, {"routes": routes, "route_column": "how"}


def test_a_route_may_lead_to_another_vendor(openai: Bench) -> None:
    bench = openai
    make(bench)
    parts, given = two_vendors(bench)
    report = bench.complete(bench.run(parts=parts, **given)).report
    assert (report.final, landed(bench)) == (
        {Outcome.SUCCEEDED: ROWS},
        {"default": 140, "strong": 40, "urgent": 20},
    )
    ledger = bench.world.simulator.ledger()
    ways = {
        name: {way: used["rows"] for way, used in ledger[name]["ways"].items()}
        for name in ("openai", "anthropic")
    }
    assert ways["openai"] | {"flex": 0} == {"batch": 140, "now": 0, "flex": 0}
    assert ways["anthropic"] | {"flex": 0} == {"batch": 40, "now": 20, "flex": 0}
    models = dict(bench.world.ask("SELECT _llm_route, min(_llm_model) FROM labels GROUP BY 1"))
    assert models["strong"].startswith("claude")
    assert models["default"].startswith("gpt")
    with pytest.raises(InputError, match="No connection 'anthropic'"):
        bench.complete("dag/task/next", **given)


@pytest.mark.parametrize("effect", ["before", "after"])
def test_a_creation_of_another_vendor_whose_answer_is_lost_is_found_and_not_repeated(
    openai: Bench, effect: str
) -> None:
    bench = openai
    make(bench)
    parts, given = two_vendors(bench)
    bench.fault(provider="anthropic", kind="drop", endpoint="create", effect=effect)
    report = bench.complete(bench.run(parts=parts, **given)).report
    assert report.final == {Outcome.SUCCEEDED: ROWS}
    ledger = bench.world.simulator.ledger()
    assert sum(ledger[name]["rows"]["charged"] for name in ("openai", "anthropic")) == ROWS
    assert bench.world.unfinished() == []


def test_equal_inputs_of_routes_with_one_spec_are_bought_once_by_the_faster_way(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(40, distinct=10)
    bench.world.ask(
        "CREATE OR REPLACE TABLE tickets AS SELECT *, CASE WHEN id >= 38 THEN 'urgent' END AS how FROM tickets"
    )
    report = bench.complete(**routed(bench)).report
    assert (report.final, report.requests) == ({Outcome.SUCCEEDED: 40}, 10)
    assert bench.world.ledger()["ways"]["now"]["rows"] == 2  # the inputs of rows 38 and 39, for eight rows
    assert landed(bench) == {"default": 32, "urgent": 8}


def test_an_enumeration_may_name_the_routes(openai: Bench) -> None:
    bench = openai
    make(bench)
    bench.world.ask("CREATE TYPE ways AS ENUM ('strong', 'urgent')")
    how = "CASE WHEN id < 3 THEN 'urgent' END"
    bench.world.ask(
        f"CREATE OR REPLACE TABLE tickets AS SELECT * EXCLUDE (how), ({how})::ways AS how FROM tickets"
    )
    assert bench.complete(**routed(bench)).report.final == {Outcome.SUCCEEDED: ROWS}
    assert landed(bench) == {"default": ROWS - 3, "urgent": 3}


def test_a_function_of_the_row_chooses_the_route(openai: Bench) -> None:
    bench = openai
    make(bench)
    given = {**routed(bench), "route_column": None, "route": lambda row: "urgent" if row["id"] < 3 else None}
    assert bench.complete(**given).report.final == {Outcome.SUCCEEDED: ROWS}
    assert landed(bench) == {"default": ROWS - 3, "urgent": 3}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            "CASE WHEN id = 7 THEN 'sekret' END",
            r"names no route in 1 row, for example 7\. The routes are urgent, strong",
        ),
        ("id", "must hold text"),
    ],
)
def test_a_name_that_is_no_route_is_refused_before_the_first_cent(openai: Bench, how: str, said: str) -> None:
    make(openai, how)
    with pytest.raises(InputError, match=said) as error:
        openai.complete(**routed(openai))
    assert "sekret" not in str(error.value)
    assert (openai.world.charged(), openai.world.unfinished()) == (0, [])


def _strong(bench: Bench, **route: object) -> dict[str, object]:
    given = routed(bench)
    strong = f"openai:{OTHER_MODELS['openai']}"
    return {**given, "routes": {**given["routes"], "strong": Route(**{"model_id": strong, **route})}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"route_column": "what"}, SourceError, "no column 'what'"),
        ({"strong": {"model_id": "openai:nobody-knows-it"}}, BudgetExceeded, "cannot be estimated"),
        (
            {"strong": {"max_cost_usd": 0.000001}},
            BudgetExceeded,
            "40 requests of the route strong are estimated at",
        ),
        ({"max_cost_usd": 0.000001}, BudgetExceeded, "200 requests are estimated at"),
    ],
)
def test_what_cannot_be_bought_is_refused_before_the_first_cent(
    openai: Bench, change: dict[str, object], kind: type[BatchLLMError], said: str
) -> None:
    make(openai)
    strong = change.pop("strong", {})
    with pytest.raises(kind, match=said):
        openai.complete(**{**_strong(openai, **strong), **change})  # type: ignore[arg-type]
    assert openai.world.charged() == 0


def test_a_small_budget_serves_the_named_routes_first(openai: Bench) -> None:
    bench = openai
    make(bench)
    planned = bench.complete("dag/task/plan", plan_only=True, **routed(bench))
    costs = to_xcom(planned.report, planned.about)["estimate"]
    report = bench.complete(
        max_cost_usd=costs["usd"] * 0.75, on_over_budget="partial", **routed(bench)
    ).report
    assert report.final[Outcome.SUCCEEDED] == sum(landed(bench).values()) < ROWS
    assert {name: landed(bench)[name] for name in ("urgent", "strong")} == {"urgent": 20, "strong": 40}
    assert report.why["postponed"] == ROWS - report.final[Outcome.SUCCEEDED]
    assert bench.complete("dag/task/next", **routed(bench)).report.final == {
        Outcome.SUCCEEDED: report.why["postponed"]
    }


def test_rows_that_another_run_buys_by_any_route_are_left_to_it(openai: Bench) -> None:
    bench = openai
    make(bench)
    bench.world.simulator.turn(batch_seconds=3600)
    try:
        assert not isinstance(bench.advance("dag/task/one", **routed(bench)), Finished)
        second = bench.complete("dag/task/two", **routed(bench)).report
    finally:
        bench.world.simulator.turn(batch_seconds=0)
    assert second.rows == 0
    assert second.why["in_flight"] + second.why.get("answered", 0) == ROWS
    assert bench.complete("dag/task/one", **routed(bench)).report.final == {Outcome.SUCCEEDED: ROWS}
    assert bench.world.charged() == ROWS


def test_a_follow_up_round_asks_each_row_by_its_own_route(openai: Bench) -> None:
    bench = openai
    make(bench)
    bench.fault(kind="invalid", rows=[0, 3], times=2)
    report = bench.complete(min_success_ratio=0, **routed(bench)).report
    models = dict(bench.world.ask("SELECT _llm_route, count(DISTINCT _llm_model) FROM labels GROUP BY 1"))
    assert report.rounds > 1
    assert set(models.values()) == {1}
