import json
import signal
import sqlite3
import subprocess

import orjson

from tests.cli.conftest import Desk

EACH_ROW_ONCE = "SELECT count(*), count(DISTINCT id), min(id), max(id) FROM labels"


def test_a_spec_becomes_a_labelled_table(desk: Desk) -> None:
    with desk.start("run", str(desk.spec_file), "--json") as process:
        out, err = process.communicate(timeout=120)

    assert process.returncode == 0, err
    report = orjson.loads(out)
    assert (report["outcomes"], report["requests"]) == ({"succeeded": 25}, 25)
    assert desk.ask(EACH_ROW_ONCE) == [(25, 25, 0, 24)]
    assert set(desk.ask("SELECT DISTINCT label FROM labels")) <= {("billing",), ("bug",), ("other",)}


def test_a_run_that_was_killed_goes_on_and_each_row_is_paid_once(desk: Desk) -> None:
    desk.simulator.turn(batch_seconds=3600)
    with desk.start("run", str(desk.spec_file)) as process:
        read_until(process, "are running")
        process.send_signal(signal.SIGKILL)
        process.communicate()
    seen = orjson.loads(desk.command("inspect", str(desk.run_folder), "--json").stdout)
    batches = [shard["batch_id"] for shard in seen[0]["shards"]]

    assert [shard["state"] for shard in seen[0]["shards"]] == ["submitted"] * 3
    for batch_id in batches:
        desk.simulator.finish(batch_id)
    done = desk.run()

    assert done.returncode == 0, done.stderr
    assert "Going on with the run" in done.stderr
    assert len(desk.simulator.ledger()["anthropic"]["batches"]) == 3
    assert desk.charged() == 25
    assert desk.ask(EACH_ROW_ONCE) == [(25, 25, 0, 24)]


def test_a_finished_run_answers_from_its_report(desk: Desk) -> None:
    first = desk.run()
    second = desk.run()

    assert (first.returncode, second.returncode) == (0, 0)
    assert second.stdout == first.stdout
    assert "is finished" in second.stderr
    assert desk.charged() == 25


def test_again_reads_the_source_again_and_sends_what_has_changed(desk: Desk) -> None:
    desk.run()
    desk.ask("UPDATE tickets SET subject = 'another' WHERE id = 7")

    again = desk.run("--again", "--json")

    assert orjson.loads(again.stdout)["why"] == {"changed": 1, "answered": 24}
    assert desk.charged() == 26


def test_a_run_that_was_begun_with_again_goes_on_without_it(desk: Desk) -> None:
    desk.run()
    desk.ask("UPDATE tickets SET subject = 'another' WHERE id = 7")
    desk.simulator.turn(batch_seconds=3600)
    with desk.start("run", str(desk.spec_file), "--again") as process:
        read_until(process, "running")
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (_, second) = orjson.loads(desk.command("inspect", str(desk.run_folder), "--json").stdout)
    desk.simulator.finish(second["shards"][0]["batch_id"])

    done = desk.run("--json")

    assert orjson.loads(done.stdout)["why"] == {"changed": 1, "answered": 24}
    assert desk.charged() == 26


def test_plan_only_sends_nothing(desk: Desk) -> None:
    done = desk.run("--plan-only")

    assert done.returncode == 0, done.stderr
    assert "25 requests for 25 rows would cost about $" in done.stdout
    assert desk.simulator.ledger()["anthropic"]["batches"] == []


def test_plan_only_after_a_finished_run_looks_at_the_source_of_today(desk: Desk) -> None:
    desk.run()
    desk.ask("INSERT INTO tickets VALUES (25, 'new')")

    done = desk.run("--plan-only", "--json")

    assert orjson.loads(done.stdout)["why"] == {"new": 1, "answered": 25}
    assert desk.charged() == 25


def test_the_name_of_a_run_follows_from_what_is_asked_and_not_from_how_fast(desk: Desk) -> None:
    desk.run()
    desk.write(pace={"rows_per_batch": 5}, max_cost_usd=3)
    desk.run()
    same = desk.run_folder
    desk.write(prompt="Another question: {{ subject }}")
    desk.run()

    assert len(list(same.parent.iterdir())) == 2


def test_progress_is_shown_on_standard_error(desk: Desk) -> None:
    done = desk.run("--progress", "--json")

    assert "25/25" in done.stderr
    assert orjson.loads(done.stdout)["request_count"] == 25


def test_too_few_good_answers_end_with_1_and_the_good_rows_have_landed(desk: Desk) -> None:
    desk.simulator.fault(provider="anthropic", kind="refused", every=1, times=100)

    done = desk.run()

    assert done.returncode == 1
    assert "None of 25 rows succeeded" in done.stderr
    assert desk.ask("SELECT count(*) FROM labels__failures") == [(25,)]
    assert desk.run().returncode == 1, "the verdict is stored"


def test_what_must_be_changed_first_ends_with_2(desk: Desk) -> None:
    desk.write(max_cost_usd=0.0000001)

    done = desk.run()

    assert done.returncode == 2
    assert done.stderr.startswith("BudgetExceeded: ")
    assert desk.simulator.ledger()["anthropic"]["batches"] == []


def test_a_secret_that_the_environment_lacks_is_named(desk: Desk) -> None:
    done = desk.run(DESK_KEY="")

    assert (done.returncode, "DESK_KEY is not set" in done.stderr) == (2, True)


def test_files_are_a_source_and_the_prompt_may_be_a_file(desk: Desk) -> None:
    desk.folder.joinpath("tickets.csv").write_text("id,subject\n1,printer\n2,invoice\n")
    desk.folder.joinpath("prompt.md").write_text("Subject: {{ subject }}")
    fields = desk.fields(source={"uri": "*.csv"}, prompt_file="prompt.md")
    del fields["prompt"]
    desk.spec_file.write_text(orjson.dumps(fields).decode())

    done = desk.run()

    assert done.returncode == 0, done.stderr
    assert desk.ask("SELECT id FROM labels ORDER BY id") == [(1,), (2,)]


def test_an_output_type_may_be_a_class_beside_the_spec(desk: Desk) -> None:
    desk.folder.joinpath("triage.py").write_text(
        "from pydantic import BaseModel\nclass Triage(BaseModel):\n    topic: str\n    urgent: bool\n"
    )
    desk.write(output_type="triage:Triage")

    done = desk.run()

    assert done.returncode == 0, done.stderr
    assert desk.ask("SELECT count(topic), count(urgent) FROM labels") == [(25, 25)]


def test_sqlite_is_a_warehouse(desk: Desk) -> None:
    with sqlite3.connect(desk.folder / "app.sqlite") as connection:
        connection.execute("CREATE TABLE tickets (id INTEGER, subject TEXT)")
        connection.executemany("INSERT INTO tickets VALUES (?, ?)", [(1, "printer"), (2, "invoice")])
    connection.close()
    desk.write(warehouse={"sqlite": "app.sqlite"})

    done = desk.run()

    assert done.returncode == 0, done.stderr


def read_until(process: "subprocess.Popen[str]", words: str) -> None:
    """Read standard error up to a line with these words."""
    assert process.stderr is not None
    while words not in (line := process.stderr.readline()):
        assert line, "the process has ended without saying it"


def test_no_control_character_of_a_row_or_a_vendor_reaches_the_terminal(desk: Desk) -> None:
    desk.ask(
        "CREATE OR REPLACE TABLE tickets AS SELECT chr(27) || '[2J' || chr(155) || i AS id, 's' AS subject FROM range(3) t(i)"
    )
    desk.simulator.fault(
        provider="anthropic",
        kind="status",
        endpoint="create",
        status=400,
        message="no \x1b]0;title\x07\x9b31m\u202e",
        times=None,
    )

    plain, as_json = desk.run(), desk.run("--json")
    looked = desk.command("inspect", str(desk.run_folder))
    erased = desk.command(
        "erase", str(desk.folder / "workspace"), "--key", "\x1b[2J\x9b0", "--key-column", "id", "--dry-run"
    )

    elsewhere = [
        desk.command(name, f"{desk.folder}/\x1b[2J\x9b0", str(desk.spec_file)) for name in ("land", "cancel")
    ]

    assert "\\u001b[2J" in erased.stdout
    for done in elsewhere:
        assert done.returncode == 2
        assert "\\u001b[2J" in done.stderr
    assert plain.returncode == as_json.returncode == 1
    assert "It said: no" in plain.stderr
    assert "\\u001b[2J" in plain.stdout, "the keys of rows are shown, and escaped"
    orjson.loads(as_json.stdout)
    for done in (plain, as_json, looked, erased, *elsewhere):
        assert [char for char in done.stdout + done.stderr if char != "\n" and not char.isprintable()] == []


def test_a_mistyped_provider_is_named_before_its_key_is_asked_for(desk: Desk) -> None:
    desk.write(model_id="antropic:claude-haiku-4-5")

    done = desk.run(DESK_KEY="")

    assert done.returncode == 2
    assert "No provider is called 'antropic'. Is it 'anthropic'?" in done.stderr
    assert "DESK_KEY" not in done.stderr


def test_the_time_of_a_run_ends_while_the_provider_cannot_be_reached(desk: Desk) -> None:
    desk.write(pace={"poll_interval": 0.1, "timeout": 8})
    for endpoint in ("retrieve", "list", "cancel"):
        desk.simulator.fault(provider="anthropic", endpoint=endpoint, kind="drop", times=None)

    done = desk.run()

    assert done.returncode == 1
    assert "DeadlinePassed: The run's time is over and the provider cannot be reached" in done.stderr


def test_dead_rows_are_asked_again_on_request(desk: Desk) -> None:
    desk.simulator.fault(kind="refused", rows=[3], provider="anthropic")
    desk.run()
    assert desk.ask("SELECT count(*) FROM labels__failures WHERE _llm_dead") == [(1,)]

    done = desk.command("run", str(desk.spec_file), "--retry-dead", "--json")

    assert json.loads(done.stdout)["why"] == {"answered": 24, "retried": 1}
    assert desk.ask("SELECT count(*) FROM labels") == [(25,)]
