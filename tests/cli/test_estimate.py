"""`estimate`: a look at the requests and their price, before there is a key."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from airflow_batch_llm.cli import app
from tests.cli.conftest import Desk


@pytest.mark.parametrize("model", ["anthropic:claude-haiku-4-5", "openai:gpt-5-mini"])
def test_three_requests_and_their_price_are_shown_without_a_key_a_call_or_a_table(
    desk: Desk, model: str
) -> None:
    url = desk.simulator.url if model.startswith("anthropic") else desk.simulator.openai_url
    provider = {"base_url": url, "api_key_env": "A_KEY_THAT_IS_NOT_SET"}
    desk.write(model_id=model, provider=provider, pace={"rows_per_batch": 10})

    done = CliRunner().invoke(app, ["estimate", str(desk.spec_file), "--json"])
    shown = CliRunner().invoke(app, ["estimate", str(desk.spec_file)])

    assert done.exit_code == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["why"] == {"new": 25}
    assert told["estimate"]["requests"] == 25
    assert 0 < told["estimate"]["usd_low"] < told["estimate"]["usd"] < told["estimate"]["usd_high"]
    assert [json.dumps(request).count("Subject: ") for request in told["requests"]] == [1, 1, 1]
    assert "25 requests in 3 batches" in shown.stdout
    assert desk.ask("SELECT table_name FROM information_schema.tables") == [("tickets",)]
    assert desk.simulator.ledger()[model.partition(":")[0]]["calls"] == {}
    assert not (desk.folder / "workspace").exists()
