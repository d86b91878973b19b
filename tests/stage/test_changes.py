"""Messages about a stage that has changed since its unfinished run was planned: they hold the names of arguments, no more."""

from pathlib import Path
from typing import Any

import pytest

from airflow_batch_llm.core.output_type import Embedding
from airflow_batch_llm.core.settings import Source, WriteMode
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.stage.plan.planning import described
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.run import Pause
from tests.stage.world import Bench, let_go, stage


class _Namesake:
    """A provider with only a name. Any other use fails."""

    def __init__(self, provider: Any) -> None:
        self.name, self.host = provider.name, provider.host


@pytest.fixture
def planned(openai: Bench) -> tuple[Plan, Any]:
    """A plan as it is stored, and the provider that it was made for."""
    openai.world.make_tickets(3)
    run = openai.run(**PLANNED)
    plan = Plan.from_json(run.generation().first.to_json())
    provider = _Namesake(run.parts.provider)
    let_go(run)
    return plan, provider


PLANNED: dict[str, Any] = {
    "carry": ("id", "subject"),
    "prompt_params": {"n": 1, "names": ("a", "b")},
    "extra_body": {"temperature": 1},
    "system_prompt": "You label tickets.",
    "prices": {"gpt-5-mini": {"input": 1, "output": 2.0}},
    "keep_days": 7,
    "labels": {"run": "1"},
}


def test_of_a_stage_that_has_not_changed_nothing_is_said(openai: Bench, planned: tuple[Plan, Any]) -> None:
    plan, provider = planned
    same = {**PLANNED, "prompt_params": {"names": ["a", "b"], "n": 1.0}, "max_cost_usd": 25}

    assert described(plan, stage(openai.world, **same), provider) == ""


def test_the_source_is_not_looked_at_and_nobody_is_bound_to_its_pace(
    openai: Bench, planned: tuple[Plan, Any]
) -> None:
    plan, provider = planned
    other = {"source": Source(table="not there"), "max_active_batches": 1, "timeout": 60.0}

    assert described(plan, stage(openai.world, **PLANNED | other), provider) == ""


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"prompt": "Secret {{ subject }}"}, "prompt has"),
        ({"prompt_params": {"n": "Secret"}}, "prompt_params has"),
        ({"system_prompt": "Secret"}, "system_prompt has"),
        ({"examples": [("Secret", "bug")]}, "examples has"),
        ({"model_id": "openai:gpt-5-secret"}, "model has"),
        ({"output_type": ["Secret", "bug"]}, "output_type has"),
        ({"output_type": Embedding(dimensions=8)}, "output_type and extra_body have"),
        ({"output_column": "secret"}, "columns has"),
        ({"extra_body": {"temperature": 2}}, "extra_body has"),
        ({"max_tokens": 77}, "max_tokens has"),
        ({"endpoint": "/v1/responses"}, "endpoint has"),
        ({"key": ("id", "subject")}, "key and carry have"),
        ({"carry": ("body",)}, "carry has"),
        ({"target": "secret"}, "target has"),
        ({"failures_target": "secret"}, "failures_target has"),
        ({"write_mode": WriteMode.APPEND}, "write_mode has"),
        ({"rows_per_batch": 77}, "rows_per_batch has"),
        ({"max_cost_usd": None}, "max_cost_usd has"),
        ({"prices": {}}, "prices has"),
        (
            {"prompt": "Secret {{ id }}", "max_tokens": 77, "target": "secret"},
            "prompt, max_tokens and target have",
        ),
    ],
)
def test_what_has_changed_is_named_and_not_shown(
    openai: Bench, planned: tuple[Plan, Any], change: dict[str, Any], names: str
) -> None:
    plan, provider = planned

    said = described(plan, stage(openai.world, **PLANNED | change), provider)

    assert said.startswith(f"The run goes on as it was planned: {names} changed since, and count")
    assert "secret" not in said.lower()
    assert "77" not in said


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"output_type": []}, "The labels of an output type are texts"),
        ({"prompt": len}, "A prompt is a template's text or a Python function"),
        ({"prompt_file": Path("gone.txt")}, "prompt_file gone.txt cannot be read"),
        ({"prompt_params": {"secret": object()}}, "TypeError"),
    ],
)
def test_a_stage_that_would_be_refused_now_is_no_hindrance(
    openai: Bench, planned: tuple[Plan, Any], change: dict[str, Any], why: str
) -> None:
    plan, provider = planned

    said = described(plan, stage(openai.world, **PLANNED | change), provider)

    assert f"would be refused: {why}" in said
    assert "secret" not in said


def going_on(bench: Bench) -> list[str]:
    return [said for said in bench.said if "as it was planned" in said]


def test_it_is_said_once_per_start_of_an_unfinished_run(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.world.simulator.turn(batch_seconds=3600)
    openai.advance(rows_per_batch=10, max_active_batches=1)
    openai.advance(rows_per_batch=10, max_active_batches=1)
    assert going_on(openai) == []
    changes = {"max_tokens": 77, "rows_per_batch": 5, "max_active_batches": 1}
    pauses: list[Pause] = []

    openai.complete(on_pause=pauses.append, **changes)

    assert len(pauses) > 1
    (said,) = going_on(openai)
    assert "max_tokens and rows_per_batch have changed since" in said
    openai.said.clear()
    openai.complete(**changes)  # it is finished: nothing goes on
    assert going_on(openai) == []


def test_a_run_is_not_taken_to_another_provider(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.world.simulator.turn(batch_seconds=3600)
    openai.advance()
    run = openai.run()
    elsewhere = _Namesake(run.parts.provider)
    elsewhere.name = "anthropic"
    let_go(run)

    with pytest.raises(InputError, match=r"planned for openai .* cannot go on with anthropic"):
        openai.run(parts={"provider": elsewhere}).advance()

    assert openai.complete().report.passed
    assert openai.world.charged() == 20
