"""Rows a second from columns to encoded prompts, on one core: run `python -m tests.benchmarks.prompt`."""

import json
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter

import jinja2

from airflow_batch_llm.core.prompt import compile_prompt

ROWS = 20_000
SIMPLE = "Subject: {{ subject }}\n\n{{ body }}"
FILTERED = "Subject: {{ subject | upper }}\n\n{{ body | trim }} ({{ score }})"
BRANCHED = "{% if score > 3 %}Urgent. {% endif %}Subject: {{ subject }}\n\n{{ body }}"

Columns = dict[str, Sequence[object]]


def columns(round_number: int) -> Columns:
    """Rows of 350 characters. Each round makes new ones: a text keeps its UTF-8 form once that was asked for."""
    return {
        "subject": [f'Invoice "{round_number}-{row}" is missing' for row in range(ROWS)],
        "body": [f"Löre ipsum dolor sit amet,\nconsectetur {row} ".ljust(64) * 5 for row in range(ROWS)],
        "score": [row % 7 for row in range(ROWS)],
    }


def jinja_and_json(template: str) -> Callable[[Columns], Iterable[object]]:
    compiled = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(template)
    return lambda table: [
        json.dumps(compiled.render(dict(zip(table, row, strict=True))))
        for row in zip(*table.values(), strict=True)
    ]


def rate(render: Callable[[Columns], Iterable[object]], rounds: int = 5) -> float:
    best = float("inf")
    for number in range(rounds):
        table = columns(number)
        start = perf_counter()
        render(table)
        best = min(best, perf_counter() - start)
    return ROWS / best


if __name__ == "__main__":
    for name, template in {"simple": SIMPLE, "filters": FILTERED, "branches": BRANCHED}.items():
        ours = rate(compile_prompt(template).render_batch)
        plain = rate(jinja_and_json(template))
        print(
            f"{name:>9}: {ours:>10,.0f} rows/s, plain Jinja and json {plain:>8,.0f} rows/s, {ours / plain:.1f}x"
        )
