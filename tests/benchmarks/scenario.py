"""Label 10,000 tickets in ways that are cheaper step by step, for two nights each, and check every bill.

    python -m tests.benchmarks.scenario [--rows 10000] [--providers anthropic,openai,vertex] [--svg FILE]
    python -m tests.benchmarks.scenario --nights 31 --steps 4,8

Each step keeps what the steps before it have changed. A third of the texts repeat, and the instructions have 1,500
tokens. In the second night one ticket of a hundred has another text. The vendors are the simulator, which counts four
characters for a token, and is called by the vendors' own SDKs. Its models err in a known share of the texts. Prints
Markdown tables, and ends with 1 if a report differs from the simulator's ledger by a cent or more. With `--steps` it runs
these steps only, for as many nights as are wanted, each of which changes other tickets. Then it counts how many of their
estimates were close, how many within their range, and how far the sum of all estimates was off. Each second night that was
not close is listed with what chance can do: the standard deviation that the estimate itself had, before the night.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field

from airflow_batch_llm.core.estimate import LIKELY
from airflow_batch_llm.core.model import Outcome, Way
from airflow_batch_llm.core.report import Report
from airflow_batch_llm.core.settings import Escalation, Route
from airflow_batch_llm.providers import PROVIDERS
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.simulator.responder import truth
from airflow_batch_llm.store import Workspace
from tests.stage.world import Bench, World
from tests.store.servers import gcs_server
from tests.vendors import MODELS, OTHER_MODELS

GOALS = (0.12, 0.01)
"""The most that the last step's nights may cost, as shares of the price of all rows in real time."""
CLOSE = 0.1
"""The most by which an estimate of a second night may be off."""
CENT = 0.01
DAY = 86_400.0
STRONG_ERRS, CHEAP_ERRS = 0.02, 0.12
SURE = 0.7
"""A label whose confidence is lower goes on to the strong model."""
INSTRUCTIONS = (
    "You sort the mail of a support desk. Read the whole ticket before you decide. Choose the label of the team that has"
    " to act first, even if other teams are named. Money is billing; access is account; a parcel is delivery; a fault is"
    " bug; the rest is other. Anger is no reason for another label. "
)
SYSTEM = (INSTRUCTIONS * 20)[:6000]


class Label(BaseModel):
    label: Literal["account", "billing", "bug", "delivery", "other"]
    confidence: float = Field(ge=0, le=1)


class Step(NamedTuple):
    """Name one way to spend, and its settings of a stage."""

    name: str
    change: Mapping[str, Any]
    way: Way = Way.BATCH


class Night(NamedTuple):
    dollars: float
    billed: float
    """Dollars by the simulator's ledger."""
    estimate: float
    likely: Sequence[float] | None
    """The dollars between which nine nights in ten were expected."""
    right: float
    """The share of the target's labels that are right."""
    requests: int
    tokens_off: Sequence[float]
    """The errors of the estimate in input tokens and in output tokens, as shares of the night's tokens."""
    hits: tuple[float, float]
    """The requests that read from the vendor's cache, and how many were expected to."""

    @property
    def off(self) -> float:
        return self.estimate / self.dollars - 1 if self.dollars else 0.0

    @property
    def is_close(self) -> bool:
        return abs(self.off) <= CLOSE

    @property
    def is_likely(self) -> bool:
        return self.likely is not None and self.likely[0] - 1e-6 <= self.dollars <= self.likely[1] + 1e-6

    @property
    def chance(self) -> float:
        """Half of the likely range, as a share of the estimate."""
        return (self.likely[1] - self.likely[0]) / 2 / self.estimate if self.likely else 0.0

    @property
    def deviation(self) -> float:
        """The standard deviation of the dollars by chance, as a share of the estimate."""
        return self.chance / LIKELY

    @property
    def enough(self) -> float:
        """The requests of a night at which two standard deviations are 10 %, so that 19 nights in 20 are within."""
        return self.requests * (2 * self.deviation / CLOSE) ** 2


def steps(provider: str) -> Sequence[Step]:
    """Return the steps in their order, each with the changes of all earlier steps."""
    once = {"prompt": "{{ body }}"}
    cached = {**once, "cache_system_prompt": "auto"}
    strong = f"{provider}:{OTHER_MODELS[provider]}"
    cascade = {
        "model_id": f"{provider}:{MODELS[provider]}",
        "routes": {"strong": Route(model_id=strong)},
        "escalate": [Escalation(to="strong", below={"confidence": SURE})],
    }
    packed = [{**cached, "rows_per_request": rows, "min_agreement": None} for rows in (5, 10, 20)]
    return (
        Step("real time, one by one", {"way": "now"}, Way.NOW),
        Step("in batches", {}),
        Step("equal texts asked once", once),
        Step("instructions cached", cached),
        *(Step(f"{change['rows_per_request']} rows in a request", change) for change in packed),
        Step("cheap model, then strong", {**packed[-1], **cascade}),
    )


def chosen(provider: str, wanted: Sequence[int]) -> Sequence[Step]:
    """Return the steps with these numbers, from 1. Without numbers, all of them."""
    return [step for number, step in enumerate(steps(provider), 1) if not wanted or number in wanted]


def make_tickets(world: World, rows: int) -> None:
    """Make tickets of which three in ten have the text of another one."""
    world.ask(
        "CREATE OR REPLACE MACRO text_of(text) AS 'I write about case ' || text || '. ' || substr("
        "repeat('It came late, the box was open and nobody answered my last letter. ', 9), 1, 160 + (text * 7919) % 320)"
    )
    world.ask(
        f"CREATE OR REPLACE TABLE tickets AS SELECT i AS id, i % {distinct(rows)} AS text, text_of(text) AS body,"
        f" 'Ticket ' || lpad(i::VARCHAR, 8, '0') AS subject FROM range({rows}) t(i)"
    )


def distinct(rows: int) -> int:
    """Return the number of different texts of this many tickets."""
    return max(1, rows * 7 // 10)


def change_tickets(world: World, rows: int, night: int) -> None:
    """Give one ticket of a hundred another text. Three in ten of these texts are answered already."""
    changed = f"id % 100 = {(48 + night) % 100}"
    world.ask(
        f"UPDATE tickets SET text = CASE WHEN id // 100 % 10 IN (1, 4, 7) THEN (text + 1) % {distinct(rows)}"
        f" ELSE {rows * (night - 1)} + id END WHERE {changed}"
    )
    world.ask(f"UPDATE tickets SET body = text_of(text) WHERE {changed}")


def measure(world: World, step: Step, rows: int, nights: int) -> Sequence[Night]:
    """Run the nights of a step, in a workspace that has seen no run, at a vendor that has billed nothing yet."""
    bench = Bench(world, workspace=Workspace.open(str(world.folder / f"workspace of {step.name}")))
    world.begin()
    shares = {MODELS[world.provider_name]: CHEAP_ERRS, OTHER_MODELS[world.provider_name]: STRONG_ERRS}
    world.simulator.turn(wrong_share=shares, truth_find="case [0-9]+")
    world.ask("DROP TABLE IF EXISTS labels; DROP TABLE IF EXISTS labels__failures")
    make_tickets(world, rows)
    given = {
        "model_id": f"{world.provider_name}:{OTHER_MODELS[world.provider_name]}",
        "prompt": "{{ subject }}\n\n{{ body }}",
        "system_prompt": SYSTEM,
        "output_type": Label,
        "cache_system_prompt": "off",
        "max_cost_usd": None,
        **step.change,
    }
    found: list[Night] = []
    for number in range(1, nights + 1):
        if number > 1:
            change_tickets(world, rows, number)
            world.sleep(DAY)
        before = sum(one.billed for one in found)
        report = bench.complete(f"night/label/{number}", **given).report
        found.append(night(bench, report, step, rows, before))
    return found


def night(bench: Bench, report: Report, step: Step, rows: int, before: float) -> Night:
    """Return the numbers of a night, given what the ledger had billed before."""
    assert report.final.keys() <= {Outcome.SUCCEEDED}, report.verdict
    schema = Label.model_json_schema()
    answers = bench.world.ask("SELECT text, label, count(*) FROM labels JOIN tickets USING (id) GROUP BY ALL")
    assert sum(count for *_, count in answers) == rows
    right = sum(count for text, label, count in answers if truth(f"case {text}", schema)["label"] == label)
    return Night(
        dollars=report.spent.cost,
        billed=bench.world.billed(step.way) - before,
        estimate=report.estimate["usd"] or 0.0,
        likely=report.estimate["usd_likely"],
        right=right / rows,
        requests=report.requests,
        tokens_off=[report.estimate_off.get(name) or 0.0 for name in ("input_tokens", "output_tokens")],
        hits=(report.requests * report.cache.hit_rate, report.requests * expected_hits(bench.said)),
    )


def expected_hits(said: list[str]) -> float:
    """Return the share of hits that the last plan expects."""
    plans = (text for text in reversed(said) if " of them make " in text)
    found = re.search(r"([0-9]+)% of the requests are taken to read", next(plans, ""))
    return int(found[1]) / 100 if found else 0.0


@contextmanager
def opened(provider: str, folder: Path) -> Iterator[World]:
    """Start a simulator, and for Vertex AI a bucket."""
    folder.mkdir()
    with ExitStack() as started:
        environ = {}
        if provider == "vertex":
            (folder / "storage").mkdir()
            environ["STORAGE_EMULATOR_HOST"] = started.enter_context(gcs_server(folder / "storage"))
        os.environ.update(environ)
        storage = environ.get("STORAGE_EMULATOR_HOST")
        simulator = started.enter_context(Simulator(batch_seconds=0, storage_url=storage))
        yield World(folder=folder, provider_name=provider, url=simulator.url, environ=environ)


Found = Mapping[str, Sequence[Sequence[Night]]]


def run(rows: int, providers: Sequence[str], nights: int, wanted: Sequence[int] = ()) -> Found:
    """Run all steps, or those with the wanted numbers, at all providers."""
    found: dict[str, list[Sequence[Night]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for provider in providers:
            with opened(provider, Path(folder) / provider) as world:
                found[provider] = []
                for step in chosen(provider, wanted):
                    began = time.monotonic()
                    found[provider].append(measure(world, step, rows, nights))
                    print(f"{provider}: {step.name}: {time.monotonic() - began:,.0f} s", file=sys.stderr)
    return found


def tables(found: Found, rows: int) -> Iterator[str]:
    """Yield the lines of the tables: the cost of each step, and the errors of its estimates."""
    for provider, nights in found.items():
        whole = before = nights[0][0].dollars
        yield f"\n{provider}: {OTHER_MODELS[provider]}, and {MODELS[provider]} as the cheap model\n"
        yield (
            "| step | $ per 1,000 rows | of real time | saved by the step | right labels | estimate off"
            " | night 2: $ per 1,000 rows | of real time | estimate off | by chance |"
        )
        yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
        for step, (first, second, *_) in zip(steps(provider), nights, strict=True):
            each, later = (one.dollars / rows * 1000 for one in (first, second))
            yield (
                f"| {step.name} | {each:.4f} | {first.dollars / whole:.1%} | {1 - first.dollars / before:.0%}"
                f" | {first.right:.1%} | {first.off:+.0%} | {later:.5f} | {second.dollars / whole:.2%} | {second.off:+.1%}"
                f" | ±{second.chance:.0%} |"
            )
            before = first.dollars


def later_nights(found: Found, wanted: Sequence[int]) -> Iterator[str]:
    """Yield the lines of a table: how close the estimates of all nights after the first were."""
    yield (
        "\n| provider | step | nights | off by 10 % at most | within the range | usually off by | range"
        " | all together off by |"
    )
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for provider, nights in found.items():
        for step, (_, *later) in zip(chosen(provider, wanted), nights, strict=True):
            close, likely = sum(one.is_close for one in later), sum(one.is_likely for one in later)
            off, chance = median(abs(one.off) for one in later), median(one.chance for one in later)
            whole = sum(one.estimate for one in later) / sum(one.dollars for one in later) - 1
            yield (
                f"| {provider} | {step.name} | {len(later)} | {close} | {likely} | {off:.1%} | ±{chance:.0%}"
                f" | {whole:+.1%} |"
            )
    later = [one for nights in found.values() for _, *rest in nights for one in rest]
    close, likely = (
        sum(kind) / len(later) for kind in ([one.is_close for one in later], [one.is_likely for one in later])
    )
    yield f"\n{len(later)} nights: {close:.0%} within 10 %, {likely:.0%} within the range"


def misses(found: Found, wanted: Sequence[int]) -> Iterator[str]:
    """Yield the lines of a table: each second night with a bad estimate, and its spread by chance."""
    yield (
        "\n| second night | requests | input tokens off | output tokens off | hits | expected | dollars off"
        " | standard deviation | deviations | requests for 10 % |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for provider, nights in found.items():
        for step, (_, one, *_) in zip(chosen(provider, wanted), nights, strict=True):
            if not one.is_close:
                tokens = " | ".join(f"{off:+.1%}" for off in one.tokens_off)
                off = (one.dollars / one.estimate - 1) / one.deviation if one.deviation else float("inf")
                yield (
                    f"| {provider}: {step.name} | {one.requests} | {tokens} | {one.hits[0]:.0f} | {one.hits[1]:.0f}"
                    f" | {one.off:+.1%} | {one.deviation:.1%} | {off:+.1f} | {one.enough:,.0f} |"
                )


STYLE = """
  .page { fill: #f6f7fb; }
  .name { fill: #1b1f3b; font-size: 13px; }
  .head { fill: #1b1f3b; font-size: 15px; font-weight: 600; }
  .mark { fill: #5f6368; font-size: 11px; }
  .bar0 { fill: #3f51b5; } .bar1 { fill: #00897b; } .bar2 { fill: #b26a00; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #161927; }
    .name, .head { fill: #f1f3f9; }
    .mark { fill: #aab0c4; }
    .bar0 { fill: #8c9eff; } .bar1 { fill: #4db6ac; } .bar2 { fill: #ffb74d; }
  }
"""
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
LEFT, WIDE, BAR = 225, 420, 12


def chart(found: Found, rows: int) -> str:
    """Return an SVG with a bar for each step and provider: the first night's dollars as a share of real time."""
    names = [step.name for step in steps(next(iter(found)))]
    high = BAR * len(found) + 12
    parts = [
        f'<text class="head" x="15" y="28">{rows:,} tickets, first night: dollars by step, real time is 100 %</text>'
    ]
    for place, provider in enumerate(found):
        x = LEFT + 110 * place
        parts.append(f'<rect class="bar{place}" x="{x}" y="42" width="10" height="10" rx="2"/>')
        parts.append(f'<text class="mark" x="{x + 15}" y="51">{provider}</text>')
    for row, name in enumerate(names):
        top = 68 + row * high
        parts.append(f'<text class="name" x="15" y="{top + BAR * len(found) / 2 + 4:g}">{name}</text>')
        for place, nights in enumerate(found.values()):
            share, y = nights[row][0].dollars / nights[0][0].dollars, top + place * BAR
            wide = max(1.0, share * WIDE)
            parts.append(
                f'<rect class="bar{place}" x="{LEFT}" y="{y}" width="{wide:.1f}" height="{BAR - 2}" rx="2"/>'
            )
            parts.append(f'<text class="mark" x="{LEFT + wide + 6:.1f}" y="{y + 9}">{share:.1%}</text>')
    bottom = 68 + len(names) * high + 6
    told = "; ".join(
        f"{name} {nights[-1][0].dollars / nights[0][0].dollars:.1%}" for name, nights in found.items()
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {bottom}" font-family="{FONTS}"',
        'role="img" aria-labelledby="title desc">',
        '<title id="title">What each step saves</title>',
        f'<desc id="desc">After all steps the first night costs, as a share of its price in real time: {told}.</desc>',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="760" height="{bottom}" rx="10"/>',
    )
    return "\n".join((*head, *parts, "</svg>\n"))


def verdicts(found: Found) -> Iterator[tuple[bool, str]]:
    """Yield for each goal at each provider whether it is met, and the numbers."""
    for provider, nights in found.items():
        whole = nights[0][0].dollars
        for number, (goal, reached) in enumerate(zip(GOALS, nights[-1][:2], strict=True), 1):
            share = reached.dollars / whole
            yield (
                share <= goal,
                f"{provider}: night {number} costs {share:.2%} of real time, at most {goal:.0%} wanted",
            )
        worst = max((abs(second.off) for _, second, *_ in nights), default=0.0)
        yield (
            worst <= CLOSE,
            f"{provider}: estimates of second nights are off by {worst:.1%} at most, {CLOSE:.0%} allowed",
        )
        apart = max(abs(one.dollars - one.billed) for both in nights for one in both)
        yield apart < CENT, f"{provider}: reports and ledger differ by ${apart:.6f} at most"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--providers", default=",".join(PROVIDERS))
    parser.add_argument("--nights", type=int, default=2)
    parser.add_argument("--steps", default="", help="numbers from 1, with commas between them")
    parser.add_argument("--svg", type=Path, help="also draw the chart, into this file")
    asked = parser.parse_args()
    wanted = [int(number) for number in asked.steps.split(",") if number]
    found = run(asked.rows, asked.providers.split(","), asked.nights, wanted)
    if wanted:
        print(*misses(found, wanted), *later_nights(found, wanted), sep="\n")
        return
    if asked.svg:
        asked.svg.write_text(chart(found, asked.rows))
    print(*tables(found, asked.rows), *misses(found, ()), sep="\n")
    if asked.nights > 2:
        print(*later_nights(found, ()), sep="\n")
    print()
    ends = list(verdicts(found))
    for is_met, told in ends:
        print(f"{'met' if is_met else 'NOT MET'}: {told}")
    if not all(is_met for is_met, told in ends if "ledger" in told):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
