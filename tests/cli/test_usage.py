"""`usage`: the ledger of a stage, added up and rebuilt."""

import json
from datetime import UTC, datetime
from typing import Any

from typer.testing import CliRunner

from airflow_batch_llm.cli import app
from tests.cli.conftest import Desk


def _usage(desk: Desk, *arguments: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["usage", str(desk.spec_file), "--json", *arguments])
    assert done.exit_code == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_the_ledger_is_added_up_and_rebuilt_from_the_run_folders(desk: Desk) -> None:
    desk.run()  # before there was a ledger
    desk.write(usage_table="spent", team="support")
    desk.ask("INSERT INTO tickets VALUES (25, 'one more')")
    desk.run("--again")
    today = datetime.now(UTC).date().isoformat()

    (one,) = _usage(desk, "--by", "team")
    (both,) = _usage(desk, "--rebuild")
    teams = _usage(desk, "--by", "team")
    shown = CliRunner().invoke(app, ["usage", str(desk.spec_file), "--by", "model"])

    assert (one["name"], one["runs"], one["rows"], one["requests"]) == ("support", 1, 1, 1)
    assert (both["name"], both["runs"], both["rows"]) == (today, 2, 26)
    assert [(team["name"], team["rows"]) for team in teams] == [("(no team)", 25), ("support", 1)]
    assert sum(team["usd"] for team in teams) == both["usd"] > one["usd"] > 0
    assert desk.ask("SELECT count(*), count(DISTINCT usage_id) FROM spent") == [(2, 2)]
    assert _usage(desk, "--since", "2999-01-01") == []
    assert "anthropic:claude-haiku-4-5" in shown.stdout
    assert f"${both['usd']:.4f}" in shown.stdout

    desk.write(usage_table="spent", prompt="Please judge: {{ subject }}", max_rows=2, only="outdated")
    desk.run()
    first, second = _usage(desk, "--by", "prompt")

    assert (first["rows"], second["rows"]) == (26, 2)
    assert len({first["name"], second["name"]}) == 2


def test_a_file_without_a_ledger_says_what_is_missing(desk: Desk) -> None:
    done = CliRunner().invoke(app, ["usage", str(desk.spec_file)])

    assert done.exit_code == 2
    assert "usage_table" in done.stderr
