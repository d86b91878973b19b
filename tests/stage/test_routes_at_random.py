"""Random stages with routes, rules and faults: whatever happens, rows land once and the bill is the ledger's."""

import random
import warnings
from typing import Any

import pytest

from airflow_batch_llm.core.model import Outcome, Way
from airflow_batch_llm.core.settings import Escalation, Route
from tests.stage.test_escalating import Label
from tests.stage.world import Bench
from tests.vendors import MODELS, OTHER_MODELS

ROWS = 80
#: Faults whose tokens the vendor tells, so that the bill can be compared.
FAULTS = ("invalid", "truncated", "refused", "errored", "expired")


def drawn(chance: random.Random, provider: str) -> dict[str, Any]:
    """Return the arguments of a stage with two routes, some rules, and few or many attempts."""
    ways = [Way.BATCH, Way.NOW]
    routes = {
        "one": Route(model_id=f"{provider}:{OTHER_MODELS[provider]}", way=chance.choice(ways)),
        "two": Route(way=chance.choice(ways), max_tokens=chance.choice([None, 64])),
    }
    outcomes = ["invalid", "truncated", "refused", "errored", "missing", "expired"]
    rules = [
        Escalation(to=chance.choice(["one", "two"]), on=chance.sample(outcomes, chance.randint(1, 4))),
        Escalation(to=chance.choice(["one", "two"]), below={"confidence": chance.choice([0.6, 0.9])}),
        Escalation(to="default", of=chance.choice([["one"], ["two"], ["one", "two"]]), on=["invalid"]),
    ]
    return {
        "routes": routes,
        "route_column": "how",
        "escalate": chance.sample(rules, chance.randint(0, 3)),
        "max_attempts": chance.choice([1, 2, 3]),
        "rows_per_batch": chance.choice([20, 1000]),
        "output_type": Label,
        "min_success_ratio": 0,
    }


@pytest.mark.parametrize("seed", range(2))
def test_every_row_has_one_end_and_every_cent_is_told(openai: Bench, seed: int) -> None:
    bench, chance = openai, random.Random(seed)
    bench.world.make_tickets(ROWS, distinct=chance.choice([ROWS, ROWS // 2]))
    how = "CASE id % 3 WHEN 1 THEN 'one' WHEN 2 THEN 'two' END"
    bench.world.ask(f"CREATE OR REPLACE TABLE tickets AS SELECT *, {how} AS how FROM tickets")
    bench.world.simulator.turn(
        wrong_share={MODELS["openai"]: 0.3, OTHER_MODELS["openai"]: 0.05}, truth_find="body of [0-9]+"
    )
    for _ in range(chance.randint(1, 4)):
        rows = chance.sample(range(20), chance.randint(1, 5))
        bench.fault(kind=chance.choice(FAULTS), rows=rows, times=chance.randint(1, 3))

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # a report that does not add up
        report = bench.complete(**drawn(chance, "openai")).report

    landed = {key for (key,) in bench.world.ask("SELECT id FROM labels")}
    failed = set(bench.world.failures())
    assert report.rows == ROWS
    assert report.final.get(Outcome.SUCCEEDED, 0) == len(landed) == len(bench.world.answers())
    assert landed | failed == set(range(ROWS))
    assert not landed & failed
    assert report.maybe_twice == 0
    assert report.requests == sum(one.requests for one in report.routes.values())
    ledger = sum(bench.world.billed(way) for way in (Way.BATCH, Way.NOW))
    assert report.spent.cost == pytest.approx(ledger, abs=1e-9)
    (stored,) = bench.world.ask("SELECT sum(_llm_cost_usd) FROM labels")[0]
    assert stored <= report.spent.cost + 1e-9
