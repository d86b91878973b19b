"""Answer a table of which a few rows are urgent, at a vendor whose batches take an hour.

    python -m tests.benchmarks.urgent [--rows 100000] [--provider openai]

The hour is virtual. Prints when the urgent rows were in the target and how many batches ran then, the dollars of each
way by the report and by the simulator's ledger, the requests per row, and the CPU seconds and the peak memory of the
process that ran the stage.
"""

import argparse
import tempfile
from pathlib import Path

from airflow_batch_llm.core.model import Outcome, Way
from airflow_batch_llm.core.settings import Route
from airflow_batch_llm.providers import PROVIDERS
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.stage.run import Pause
from tests.benchmarks.stage_steps import cpu_seconds, peak_mb
from tests.stage.world import Bench, World

URGENT_OF = 50  # of so many rows, one is urgent
BODY = 400  # characters
HOUR = 3600.0


def measure(bench: Bench, rows: int) -> None:
    world = bench.world
    world.begin()
    world.simulator.turn(batch_seconds=HOUR)
    began, cpu = world.clock(), cpu_seconds()
    seen: list[str] = []

    def look(_: Pause) -> None:
        """Note the rows in the target and the running batches at the first pause."""
        if not seen:
            after, used = world.clock() - began, cpu_seconds() - cpu
            ((urgent, others),) = world.ask(
                "SELECT count(*) FILTER (_llm_route = 'urgent'), count(*) FILTER (_llm_route <> 'urgent') FROM labels"
            )
            seen.append(
                f"{urgent:,} urgent rows and {others:,} others in the target after {after:,.0f} s ({used:,.0f} s of CPU),"
                f" while {len(world.ledger()['running'])} batches ran"
            )

    report = bench.complete(
        on_pause=look, routes={"urgent": Route(way="now")}, route_column="how", max_cost_usd=None
    ).report
    print(seen[0])
    print(
        f"{report.final.get(Outcome.SUCCEEDED, 0):,} of {rows:,} rows in the target after {world.clock() - began:,.0f} s"
    )
    for route, way in (("urgent", Way.NOW), ("default", Way.BATCH)):
        ours, vendors = report.routes[route].cost, world.billed(way)
        assert round(ours, 2) == round(vendors, 2)
        print(f"{way}: ${ours:,.4f} by the report, ${vendors:,.4f} by the ledger")
    charged = world.charged()
    assert charged == report.requests
    print(f"requests per row: {charged / rows:g}")
    print(f"CPU {cpu_seconds() - cpu:,.1f} s, peak {peak_mb():,.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument(
        "--provider", default="openai", choices=[name for name in PROVIDERS if name != "vertex"]
    )
    chosen = parser.parse_args()
    with Simulator() as simulator, tempfile.TemporaryDirectory() as folder:
        bench = Bench(World(folder=Path(folder), provider_name=chosen.provider, url=simulator.url))
        bench.world.ask(
            f"CREATE TABLE tickets AS SELECT i AS id, 'ticket ' || i AS subject, rpad('', {BODY}, 'lorem ipsum ') AS body, "
            f"CASE WHEN i % {URGENT_OF} = 0 THEN 'urgent' END AS how FROM range({chosen.rows}) t(i)"
        )
        measure(bench, chosen.rows)


if __name__ == "__main__":
    main()
