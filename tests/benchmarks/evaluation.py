"""Count how often an evaluation is right about simulated models whose accuracy is known.

    python -m tests.benchmarks.evaluation [--seeds 100] [--rows 500]
    python -m tests.benchmarks.evaluation --drawn 10000

Each seed has golden rows of its own. A model with 85 % right answers and one with 92 % are evaluated beside another one
with 92 %, by whole runs through the simulator. Prints in how many seeds Wilson's intervals hold the true accuracy, in how
many the gate `max_regression=0` fails the worse model, and in how many it fails the equal one. With `--drawn` the answers
are drawn without a simulator, for more seeds and several numbers of rows.
"""

import argparse
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from airflow_batch_llm.core.evaluation import Evaluation, Expected, Pairs
from airflow_batch_llm.core.evaluation_result import EvaluationResult
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.simulator.responder import truth
from airflow_batch_llm.stage.evaluating import Candidate, Evaluator, evaluated_stage
from airflow_batch_llm.stage.run import Run
from tests.stage.world import LABELS, Bench, World, let_go, stage

PROVIDER = "anthropic"
GOOD, WORSE = 0.92, 0.85
#: Names that no vendor has. A simulated model's errors depend on its name, and a real model may be retired.
BASELINE, EQUAL, WEAKER = "claude-base", "claude-equal", "claude-worse"
RIGHT = {BASELINE: GOOD, EQUAL: GOOD, WEAKER: WORSE}
GATE = Evaluation(expected={"label": Expected(column="right_label")}, max_regression=0.0)
CONFIDENCE = 0.95


def make_golden(world: World, seed: int, rows: int) -> None:
    """Make golden rows whose texts no other seed has."""
    schema = OutputType.of(list(LABELS)).schema
    texts = [f"golden {seed * rows + number}" for number in range(rows)]
    values = ", ".join(
        f"({key}, '{text}', '{truth(text, schema)['label']}')" for key, text in enumerate(texts)
    )
    world.ask("CREATE OR REPLACE TABLE golden (id INTEGER, subject VARCHAR, right_label VARCHAR)")
    world.ask(f"INSERT INTO golden VALUES {values}")


def open_run(bench: Bench, seed: int, model: str) -> Run:
    """Return the run of one model over the golden rows."""
    changes: dict[str, Any] = {
        "source": Source(table="golden"),
        "carry": (),
        "prompt": "{{ subject }}",
        "model_id": f"{PROVIDER}:{model}",
        "target": f"answers_{list(RIGHT).index(model)}",
        "max_cost_usd": None,
    }
    return Run(
        stage=evaluated_stage(stage(bench.world, **changes)),
        parts=bench.world.parts(),
        name=f"dag/{model}/{seed}",
    )


def asked(bench: Bench, seed: int, model: str) -> Candidate:
    """Ask one model about the golden rows."""
    run = open_run(bench, seed, model)
    return Candidate(run=run, finished=bench.complete(run))


def evaluate_seed(bench: Bench, seed: int, rows: int) -> dict[str, EvaluationResult]:
    """Evaluate the equal and the worse model beside the baseline."""
    make_golden(bench.world, seed, rows)
    baseline = asked(bench, seed, BASELINE)
    results = {}
    for model in (EQUAL, WEAKER):
        candidate = asked(bench, seed, model)
        results[model] = Evaluator(evaluation=GATE).result(candidate, baseline)
        let_go(candidate.run)
    let_go(baseline.run)
    return results


def count(bench: Bench, seeds: int, rows: int) -> Counter[str]:
    """Count the right and wrong verdicts of these seeds' evaluations."""
    bench.world.begin()
    shares = {model: 1 - share for model, share in RIGHT.items()}
    bench.world.simulator.turn(wrong_share=shares, truth_find="golden [0-9]+")
    found: Counter[str] = Counter()
    for seed in range(seeds):
        for model, result in evaluate_seed(bench, seed, rows).items():
            (column,) = result.columns
            assert (column.rows, column.no_answer) == (rows, 0)
            found[f"{model} covered"] += column.low <= RIGHT[model] <= column.high
            found[f"{model} failed"] += not result.passed
    return found


def drawn(seeds: int, rows: int) -> tuple[float, float]:
    """Return the shares of seeds in which the worse and the equal model fail, without a simulator."""
    shares = []
    for accuracy in (WORSE, GOOD):
        failed = 0
        for seed in range(seeds):
            chance = random.Random(f"{seed} {rows} {accuracy}")
            pairs = Counter((chance.random() < GOOD, chance.random() < accuracy) for _ in range(rows))
            lost, gained = pairs[True, False], pairs[False, True]
            failed += Pairs(rows=rows, lost=lost, gained=gained).p_worse() <= 1 - CONFIDENCE
        shares.append(failed / seeds)
    return shares[0], shares[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--drawn", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.drawn:
        print("| golden rows | worse model failed | equal model failed |\n|---|---|---|")
        for rows in (100, 200, 500, 1000):
            worse, equal = drawn(chosen.drawn, rows)
            print(f"| {rows:,} | {worse:.1%} | {equal:.1%} |", flush=True)
        return
    with Simulator(batch_seconds=0) as simulator, tempfile.TemporaryDirectory() as folder:
        bench = Bench(World(folder=Path(folder), provider_name=PROVIDER, url=simulator.url))
        found = count(bench, chosen.seeds, chosen.rows)
    for model in (EQUAL, WEAKER):
        print(
            f"{RIGHT[model]:.0%} right: the interval holds it in {found[f'{model} covered']} of {chosen.seeds} seeds"
        )
    print(f"no difference: the gate fails {found[f'{EQUAL} failed']} of {chosen.seeds} seeds")
    print(
        f"a drop of 7 points, {chosen.rows} rows: the gate fails {found[f'{WEAKER} failed']} of {chosen.seeds} seeds"
    )


if __name__ == "__main__":
    main()
