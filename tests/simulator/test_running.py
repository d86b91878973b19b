"""The process: restarts, keys, responders, an upstream, the clock and the ledger."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import orjson
import pytest

from airflow_batch_llm.simulator.handle import Simulator
from tests.simulator.clients import (
    GPT,
    anthropic_client,
    anthropic_requests,
    message_params,
    openai_batch,
    openai_client,
    openai_line,
    openai_results,
)

RESPONDER = """
def respond(request):
    if request.prompt == "raise":
        raise RuntimeError("secret")
    if request.schema:
        return {"label": request.prompt}
    return f"{request.provider} {request.model} {request.prompt}"
"""


def test_a_batch_in_flight_goes_on_after_a_crash(tmp_path: Path) -> None:
    with Simulator(data_dir=tmp_path, batch_seconds=1000) as simulator:
        client = anthropic_client(simulator)
        batch = client.messages.batches.create(requests=anthropic_requests(3))
        openai_one = openai_batch(openai_client(simulator), [openai_line("a")])
        simulator.clock(advance_seconds=10)
        before = simulator.clock()
        simulator.restart()
        assert simulator.clock() >= before
        assert client.messages.batches.retrieve(batch.id).processing_status == "in_progress"
        simulator.clock(advance_seconds=1000)
        simulator.wait(batch.id)
        simulator.wait(openai_one.id)
        assert len(list(client.messages.batches.results(batch.id))) == 3
        assert simulator.ledger()["anthropic"]["rows"]["charged"] == 3


def test_a_batch_ends_by_itself_after_its_duration() -> None:
    with Simulator(batch_seconds=0.2) as simulator:
        batch = anthropic_client(simulator).messages.batches.create(requests=anthropic_requests(1))
        assert simulator.wait(batch.id)["phase"] == "ended"


def test_no_process_outlives_its_handle_or_its_parent(tmp_path: Path) -> None:
    script = (
        "import os; from airflow_batch_llm.simulator.handle import Simulator;"
        "s = Simulator().start(); print(s.pid, flush=True); os._exit(1)"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    pid = int(answer.stdout)
    while Path(f"/proc/{pid}").exists() and "Z (zombie)" not in Path(f"/proc/{pid}/status").read_text():
        pass
    simulator = Simulator().start()
    pid = simulator.pid or 0
    simulator.stop()
    assert not Path(f"/proc/{pid}").exists()


def test_nothing_is_left_of_a_simulator_that_was_told_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "airflow_batch_llm.simulator", "--port=0"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"simulator ready at ")
        assert list(tmp_path.iterdir())
        process.terminate()
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_with_a_key_every_other_key_is_refused() -> None:
    with Simulator(api_key="right") as simulator:
        with pytest.raises(anthropic.AuthenticationError):
            anthropic_client(simulator, key="wrong").messages.batches.list()
        with pytest.raises(openai.AuthenticationError):
            openai_client(simulator, key="wrong").batches.list()
        assert anthropic_client(simulator, key="right").messages.batches.list().data == []
        old = anthropic_client(
            simulator, key="x", default_headers={"X-API-Key": "right", "Authorization": ""}
        )
        assert old.messages.batches.list().data == []


def test_a_function_of_the_user_s_answers_and_what_it_raises_fails_the_row(tmp_path: Path) -> None:
    (tmp_path / "my_responder.py").write_text(RESPONDER)
    env = {"PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}
    with Simulator(responder="my_responder:respond", env=env) as simulator:
        client = anthropic_client(simulator)
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
        output = {"format": {"type": "json_schema", "schema": schema}}
        requests: Any = [
            {"custom_id": "text", "params": message_params("hi")},
            {"custom_id": "json", "params": message_params("bug", output_config=output)},
            {"custom_id": "bad", "params": message_params("raise")},
        ]
        batch = client.messages.batches.create(requests=requests)
        simulator.finish(batch.id)
        rows: dict[str, Any] = {
            row.custom_id: row.result for row in client.messages.batches.results(batch.id)
        }
        assert rows["text"].message.content[0].text == "anthropic claude-haiku-4-5 hi"
        assert orjson.loads(rows["json"].message.content[0].text) == {"label": "bug"}
        assert rows["bad"].error.error.type == "api_error"
        assert "secret" not in rows["bad"].error.error.message


def test_a_responder_that_cannot_be_loaded_stops_the_start() -> None:
    with pytest.raises(RuntimeError, match="did not start"):
        Simulator(responder="no_such_module:respond").start()


def test_an_upstream_answers_for_every_vendor(tmp_path: Path) -> None:
    with (
        Simulator() as upstream,
        Simulator(upstream=upstream.openai_url, upstream_concurrency=2) as simulator,
    ):
        client = openai_client(simulator)
        chat = {"model": GPT, "messages": [{"role": "user", "content": "hi"}]}
        lines = [openai_line(f"r{n}", chat, url="/v1/chat/completions") for n in range(20)]
        batch = openai_batch(client, lines, endpoint="/v1/chat/completions")
        simulator.finish(batch.id)
        rows = openai_results(client, client.batches.retrieve(batch.id).output_file_id)
        direct = openai_client(upstream).chat.completions.create(model=GPT, messages=chat["messages"])
        assert len(rows) == 20
        assert rows["r0"]["response"]["body"] == direct.model_dump(exclude_unset=True)
        message = anthropic_client(simulator).messages.create(**message_params("hi"))
        assert message.content[0].text.startswith("Answer ")
        assert upstream.ledger()["openai"]["calls"]["chat"] == 22
        upstream.fault(provider="openai", endpoint="chat", kind="status", status=429)
        batch = openai_batch(client, lines[:1], endpoint="/v1/chat/completions")
        simulator.finish(batch.id)
        errors = openai_results(client, client.batches.retrieve(batch.id).error_file_id)
        assert errors["r0"]["response"]["status_code"] == 429


def test_the_ledger_counts_tokens_per_model_and_calls_per_endpoint(simulator: Simulator) -> None:
    client = anthropic_client(simulator)
    requests: Any = [
        {"custom_id": "a", "params": message_params("x" * 40)},
        {"custom_id": "b", "params": message_params("x" * 40, model="claude-sonnet-5")},
    ]
    batch = client.messages.batches.create(requests=requests)
    simulator.finish(batch.id)
    usages = [row.result.message.usage for row in client.messages.batches.results(batch.id)]  # type: ignore[union-attr]
    bill = simulator.ledger()["anthropic"]
    assert bill["by_model"]["claude-sonnet-5"]["input"] == 10
    assert bill["tokens"]["output"] == sum(usage.output_tokens for usage in usages)
    assert bill["calls"] == {"create": 1, "retrieve": 1, "results": 1}
    assert bill["duplicates"] == {"contents": 0, "surplus_charges": 0}
    assert bill["running"] == []
    (charge,) = simulator.charges(custom_id="b")
    assert (charge["model"], charge["batch"]) == ("claude-sonnet-5", batch.id)


def test_the_ledger_tells_the_sums_of_its_rows_also_of_a_directory_that_has_none(tmp_path: Path) -> None:
    with Simulator(data_dir=tmp_path, batch_seconds=0) as simulator:
        simulator.fault(provider="openai", kind="errored", every=10)
        client = openai_client(simulator)
        simulator.finish(openai_batch(client, [openai_line(f"r{n}") for n in range(2500)]).id)
        client.responses.create(model=GPT, input="now")
        ledger = simulator.ledger()["openai"]
        rows = list(simulator.charges(provider="openai"))
        assert len(rows) == 2501
        assert ledger["rows"] == {"executed": 2501, "charged": 2251, "succeeded": 2251, "errored": 250}
        assert ledger["tokens"] == {name: sum(row[name] for row in rows) for name in ledger["tokens"]}
        simulator.kill()
        with closing(sqlite3.connect(tmp_path / "simulator.sqlite")) as connection:
            connection.execute("DROP TABLE sums")
        simulator.start()
        assert simulator.ledger()["openai"] == ledger


def test_the_same_request_under_another_custom_id_is_the_same_purchase(simulator: Simulator) -> None:
    params = message_params("same")
    requests: Any = [
        {"custom_id": "a", "params": {**params, "metadata": {"user_id": "1"}}},
        {"custom_id": "b", "params": params},
    ]
    batch = anthropic_client(simulator).messages.batches.create(requests=requests)
    simulator.finish(batch.id)
    assert simulator.ledger()["anthropic"]["duplicates"] == {"contents": 1, "surplus_charges": 1}


def test_a_hundred_batches_at_once_all_end(simulator: Simulator) -> None:
    client = anthropic_client(simulator)
    ids = [client.messages.batches.create(requests=anthropic_requests(2)).id for _ in range(100)]
    for batch_id in ids:
        simulator.wait(batch_id)
    assert simulator.ledger()["anthropic"]["rows"]["charged"] == 200


def test_a_running_batch_can_be_held_and_expired_from_outside(simulator: Simulator) -> None:
    simulator.turn(batch_seconds=1000)
    client = anthropic_client(simulator)
    batch = client.messages.batches.create(requests=anthropic_requests(4))
    simulator.batch(batch.id, "hold")
    simulator.clock(advance_seconds=5000)
    assert simulator.batch(batch.id)["live"]
    simulator.batch(batch.id, "expire", share=0.25)
    simulator.wait(batch.id)
    counts = client.messages.batches.retrieve(batch.id).request_counts
    assert (counts.succeeded, counts.expired) == (1, 3)
    with pytest.raises(ValueError, match="ended"):
        simulator.batch(batch.id, "hold")


def test_control_says_what_is_wrong_with_a_command(simulator: Simulator) -> None:
    with pytest.raises(ValueError, match="no batch"):
        simulator.batch("msgbatch_none", "end")
    with pytest.raises(ValueError, match="validation error"):
        simulator.turn(no_such_knob=1)
    with pytest.raises(ValueError, match="validation error"):
        simulator.clock(advance_seconds=-1)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "rebound.example.com"}, 403),
        ({"Host": "127.0.0.1.example.com"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "https://example.com"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_a_web_page_cannot_reach_it(simulator: Simulator, headers: dict[str, str], status: int) -> None:
    for path in ("/healthz", "/control/ledger"):
        assert httpx.get(simulator.url + path, headers=headers).status_code == status


def test_the_control_endpoints_want_the_key_too() -> None:
    with Simulator(api_key="right") as simulator:
        assert simulator.ledger()
        assert list(simulator.charges()) == []
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            assert httpx.post(f"{simulator.url}/control/reset", headers=headers).status_code == 401
            assert httpx.get(f"{simulator.url}/control/ledger", headers=headers).status_code == 401


def test_it_binds_loopback_only_unless_told_otherwise(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "airflow_batch_llm.simulator", "--host=0.0.0.0", "--port=0"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode != 0
    assert "--allow-remote" in refused.stderr
