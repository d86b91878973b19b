"""Airflow is told codes and statuses; a vendor's own words stay in the task's log, and keys nowhere."""

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG, Asset

from airflow_batch_llm.errors import InputError, Refused
from airflow_batch_llm.hooks.llm import llm_provider
from airflow_batch_llm.hooks.monitoring import translated_errors
from airflow_batch_llm.testing.leaks import text_of
from tests.edge.conftest import World
from tests.edge.dag_runs import asset_extras, failures, xcom
from tests.edge.logs import told
from tests.edge.tasks import transform

Run = Callable[..., Any]


def test_a_vendors_words_are_in_the_log_and_not_in_xcom_assets_or_exceptions(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, words = f"canary-{uuid4().hex}", f"words-{uuid4().hex}"
    fields = {"conn_type": "anthropic", "host": world.simulator.url, "password": key}
    monkeypatch.setenv("AIRFLOW_CONN_ANTHROPIC_DEFAULT", json.dumps(fields))
    world.simulator.fault(
        kind="status",
        endpoint="create",
        status=400,
        code="billing_error",
        message=f"{words} {key}",
        times=None,
    )
    with DAG("words", schedule=None) as dag:
        transform(
            outlets=[Asset("x://labels")],
        )

    with told() as log, failures() as failed:
        done = run(dag)

    report = xcom(done, "label", "report")
    assert "Anthropic answered 400: billing_error" in report["verdict"]
    assert log.tells(words)
    assert len(failed) == 1
    exposed = json.dumps([report, asset_extras(done)]) + str(failed[0])
    assert words not in exposed
    assert key not in exposed + "".join(log.messages) + text_of(failed[0])
    (message,) = {message for (message,) in world.query("SELECT _llm_error_message FROM labels__failures")}
    assert words in message
    assert key not in message


def test_an_error_that_airflow_sees_holds_no_vendors_words(caplog: pytest.LogCaptureFixture) -> None:
    hidden = f"canary-{uuid4().hex}"
    error = Refused("Anthropic answered 400: bad.")
    error.detail = "the words"

    def fail() -> None:
        try:
            raise KeyError(hidden)
        except KeyError:
            raise error from None

    with pytest.raises(AirflowFailException, match="answered 400: bad") as seen, translated_errors():
        fail()

    assert "the words" not in str(seen.value)
    assert hidden not in text_of(seen.value)
    assert caplog.messages == ["The provider said: the words"]


@pytest.mark.parametrize(
    ("conn_type", "fields", "field"),
    [
        ("anthropic", {"password": "{}\n"}, "password"),
        ("generic", {"password": " {}"}, "password"),
        (
            "openai",
            {"extra": {"openai_client_kwargs": {"api_key": "{}\r\n"}}},
            "extra.openai_client_kwargs.api_key",
        ),
        (
            "anthropic",
            {"extra": {"anthropic_client_kwargs": {"default_headers": {"x-key": "{}\x00"}}}},
            "extra.anthropic_client_kwargs.default_headers.x-key",
        ),
    ],
)
def test_a_key_that_no_header_can_carry_is_refused_by_its_fields_name(
    monkeypatch: pytest.MonkeyPatch, conn_type: str, fields: dict[str, Any], field: str
) -> None:
    key = f"canary-{uuid4().hex}"
    connection = json.loads(json.dumps({"conn_type": conn_type, **fields}).replace("{}", key))
    monkeypatch.setenv("AIRFLOW_CONN_LLM", json.dumps(connection))

    provider = "openai" if conn_type == "openai" else "anthropic"
    with pytest.raises(
        InputError, match=f"'llm' holds a control character.* in its field {field}"
    ) as refused:
        llm_provider("llm", f"{provider}:m")

    assert key not in text_of(refused.value)


def test_a_gateway_without_encryption_is_reached_where_its_connection_allows_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"conn_type": "openai", "host": "http://gateway.internal/v1", "password": "any"}
    monkeypatch.setenv("AIRFLOW_CONN_LLM", json.dumps(fields))
    with pytest.raises(InputError, match=r"gateway\.internal over http://.*allow_insecure_base_url"):
        llm_provider("llm", "openai:m")

    allowed = {**fields, "extra": {"allow_insecure_base_url": True}}
    monkeypatch.setenv("AIRFLOW_CONN_LLM", json.dumps(allowed))
    assert llm_provider("llm", "openai:m").host == "gateway.internal"

    monkeypatch.setenv("AIRFLOW_CONN_LLM", json.dumps(fields))
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__ALLOW_INSECURE_BASE_URL", "True")
    assert llm_provider("llm", "openai:m").host == "gateway.internal"
