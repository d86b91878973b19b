"""Compare the ways to spend on a strong model: for all rows, for some by a column, for those that are not sure, or for none.

    python -m tests.benchmarks.cascade [--rows 2000] [--provider anthropic]

The simulated models err in a known share of the rows, and their confidence is lower where they err. Which rows are
wrong depends on the model and the row, and not on the length of the text. Prints the accuracy of the target table and
the dollars of each run. The dollars of a run equal those of the simulator's ledger.
"""

import argparse
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field

from airflow_batch_llm.core.model import Outcome, Way
from airflow_batch_llm.core.settings import Escalation, Route
from airflow_batch_llm.providers import PROVIDERS
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.simulator.responder import truth
from tests.stage.world import Bench, World
from tests.vendors import MODELS, OTHER_MODELS

CHEAP_ERRS, STRONG_ERRS = 0.12, 0.02
LONG_OF = 5  # of so many rows, one is long
SHORT, LONG = 400, 4000  # characters
THRESHOLDS = (0.6, 0.7, 0.8)


class Label(BaseModel):
    label: Literal["account", "billing", "bug", "delivery", "other"]
    confidence: float = Field(ge=0, le=1)


class Measured(NamedTuple):
    accuracy: float
    dollars: float
    strong: int
    """Requests to the strong model."""


def policies(provider: str) -> Mapping[str, dict[str, Any]]:
    """Return the arguments of a stage by what it does with the strong model."""
    strong = f"{provider}:{OTHER_MODELS[provider]}"
    routes = {"routes": {"strong": Route(model_id=strong)}}
    cascades = {
        f"cheap, then strong below {number}": {
            **routes,
            "escalate": [Escalation(to="strong", below={"confidence": number})],
        }
        for number in THRESHOLDS
    }
    return {
        "cheap alone": {},
        "router: long texts to strong": {**routes, "route_column": "how"},
        **cascades,
        "strong alone": {"model_id": strong},
    }


def measure(bench: Bench, rows: int, run: str, policy: Mapping[str, Any]) -> Measured:
    """Run a stage at a vendor that has billed nothing yet."""
    world = bench.world
    world.begin()
    shares = {MODELS[world.provider_name]: CHEAP_ERRS, OTHER_MODELS[world.provider_name]: STRONG_ERRS}
    world.simulator.turn(wrong_share=shares, truth_find="ticket [0-9]+")
    world.ask("DROP TABLE IF EXISTS labels")
    report = bench.complete(run, output_type=Label, max_cost_usd=None, **policy).report
    assert report.final == {Outcome.SUCCEEDED: rows}
    assert math.isclose(report.spent.cost, world.billed(Way.BATCH), abs_tol=1e-6)
    models = world.ledger()["by_model"]
    schema = Label.model_json_schema()
    answers = world.answers()
    right = sum(truth(f"ticket {key}", schema)["label"] == label for key, label in answers.items())
    strong = models.get(OTHER_MODELS[world.provider_name], {"rows": 0})["rows"]
    return Measured(right / rows, report.spent.cost, strong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument(
        "--provider", default="anthropic", choices=[name for name in PROVIDERS if name != "vertex"]
    )
    chosen = parser.parse_args()
    print("| policy | right answers | dollars per 1,000 rows | rows asked of the strong model |")
    print("|---|---|---|---|")
    with Simulator(batch_seconds=0) as simulator, tempfile.TemporaryDirectory() as folder:
        bench = Bench(World(folder=Path(folder), provider_name=chosen.provider, url=simulator.url))
        bench.world.ask(
            f"CREATE TABLE tickets AS SELECT i AS id, 'ticket ' || i AS subject, i % {LONG_OF} = 0 AS is_long, "
            f"CASE WHEN is_long THEN 'strong' END AS how, "
            f"rpad('', CASE WHEN is_long THEN {LONG} ELSE {SHORT} END, 'lorem ipsum ') AS body "
            f"FROM range({chosen.rows}) t(i)"
        )
        for number, (name, policy) in enumerate(policies(chosen.provider).items()):
            seen = measure(bench, chosen.rows, f"dag/task/{number}", policy)
            each, share = seen.dollars / chosen.rows * 1000, seen.strong / chosen.rows
            print(f"| {name} | {seen.accuracy:.1%} | {each:.3f} | {share:.1%} |", flush=True)


if __name__ == "__main__":
    main()
