"""`evaluate` on a shell: golden rows in DuckDB, and simulated models that err at a known rate."""

import signal
import subprocess
from pathlib import Path

import orjson
import pytest
import yaml

from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.simulator.responder import truth
from tests.cli.conftest import Desk
from tests.cli.test_run import read_until

LABELS = ["billing", "bug", "other"]
ROWS = 300
WEAK, STRONG = "claude-haiku-4-5", "claude-sonnet-4-6"
RIGHT = "SELECT count(*) FROM golden JOIN {} USING (id) WHERE expected_label = label"


@pytest.fixture
def golden(desk: Desk) -> Desk:
    """Golden rows with the labels that a model without errors gives, and a stronger and a weaker model."""
    schema = OutputType.of(LABELS).schema
    rows = [(number, f"subject {number}") for number in range(ROWS)]
    values = ", ".join(f"({key}, '{text}', '{truth(text, schema)['label']}')" for key, text in rows)
    desk.ask("CREATE TABLE golden (id INTEGER, subject VARCHAR, expected_label VARCHAR)")
    desk.ask(f"INSERT INTO golden VALUES {values}")
    desk.simulator.turn(wrong_share={WEAK: 0.2, STRONG: 0.05}, truth_find="subject [0-9]+")
    desk.write(pace={"rows_per_batch": 100, "poll_interval": 0.1})
    return desk


def evaluate(desk: Desk, *options: str) -> "subprocess.CompletedProcess[str]":
    return desk.command("evaluate", str(desk.spec_file), "--golden", "golden", *options)


def write_other(desk: Desk, **changes: object) -> Path:
    other = desk.folder / "other.yaml"
    other.write_text(yaml.safe_dump(desk.fields(**changes)))
    return other


def test_accuracy_is_measured_and_a_gate_ends_with_1_and_pays_nothing_more(golden: Desk) -> None:
    good = evaluate(golden, "--min-accuracy", "0.5", "--json")
    bad = evaluate(golden, "--min-accuracy", "0.95")

    assert (good.returncode, bad.returncode) == (0, 1), bad.stderr
    (column,) = orjson.loads(good.stdout)["columns"]
    assert [(column["right"],)] == golden.ask(RIGHT.format("labels__evaluation"))
    assert (column["rows"], column["no_answer"]) == (ROWS, 0)
    assert column["low"] < 0.8 < column["high"]
    assert "is below min_accuracy=0.95" in bad.stderr
    assert golden.charged() == ROWS
    page = Path(bad.stdout.rpartition("Report: ")[2].strip())
    assert 'class="mark failed">Failed' in page.read_text()

    key = column["worst"][0]
    erased = golden.command("erase", str(golden.folder / "workspace"), "--key", key)
    assert erased.returncode == 0, erased.stderr
    assert f"<code>{column['worst'][1]}</code>" in page.read_text()
    assert f"<code>{key}</code>" not in page.read_text()
    kept = orjson.loads(page.with_name("evaluation.json").read_bytes())["columns"][0]["worst"]
    assert kept == [one for one in column["worst"] if one != key]


def test_an_evaluation_that_was_killed_goes_on_and_each_row_is_paid_once(golden: Desk) -> None:
    golden.simulator.turn(batch_seconds=3600)
    with golden.start("evaluate", str(golden.spec_file), "--golden", "golden") as process:
        read_until(process, "are running")
        process.send_signal(signal.SIGKILL)
        process.communicate()
    golden.simulator.turn(batch_seconds=0)
    for batch in golden.simulator.ledger()["anthropic"]["batches"]:
        golden.simulator.finish(batch)

    done = evaluate(golden, "--json")
    again = evaluate(golden, "--json")

    assert done.returncode == 0, done.stderr
    assert orjson.loads(done.stdout)["columns"][0]["rows"] == ROWS
    assert again.stdout == done.stdout
    assert golden.charged() == ROWS


def test_a_worse_candidate_fails_beside_a_second_one_and_beside_stored_answers(golden: Desk) -> None:
    other = write_other(golden, model_id=f"anthropic:{STRONG}")

    done = evaluate(golden, "--against", str(other), "--max-regression", "0", "--json")

    assert done.returncode == 1, done.stderr
    (column,) = orjson.loads(done.stdout)["columns"]
    compared = column["comparison"]
    (best,) = golden.ask(RIGHT.format("labels__evaluation__against"))
    assert (compared["right"], compared["pairs"]["rows"]) == (best[0], ROWS)
    assert column["right"] == best[0] - compared["pairs"]["lost"] + compared["pairs"]["gained"]
    assert golden.charged() == 2 * ROWS

    golden.ask("CREATE TABLE stored AS SELECT * FROM labels__evaluation__against WHERE id >= 50")
    beside = evaluate(golden, "--against", "stored", "--max-regression", "0", "--json")

    assert beside.returncode == 1, beside.stderr
    compared = orjson.loads(beside.stdout)["columns"][0]["comparison"]
    assert (compared["pairs"]["rows"], compared["left_out"]) == (ROWS - 50, 50)
    assert golden.charged() == 2 * ROWS


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"prompt": "{{ subject }} is {{ expected_label }}"}, (), "shows the model the golden column"),
        ({"evaluation": {"expected": {"label": "topic"}}}, (), "has no column topic"),
        ({}, ("--against", "tickets"), "The baseline has no column label"),
        ({"max_rows": 5}, (), "max_rows leaves golden rows out"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_paid(
    golden: Desk, changes: dict[str, object], options: tuple[str, ...], words: str
) -> None:
    golden.write(**changes)

    done = evaluate(golden, *options)

    assert (done.returncode, golden.charged()) == (2, 0)
    assert words in done.stderr


def test_rows_without_an_answer_count_as_wrong(golden: Desk) -> None:
    golden.simulator.turn(wrong_share={WEAK: 0.0})
    golden.simulator.fault(provider="anthropic", kind="refused", every=3, times=ROWS)

    done = evaluate(golden, "--min-accuracy", "0.9")

    assert done.returncode == 1, done.stderr
    ((good,),) = golden.ask("SELECT count(*) FROM labels__evaluation")
    assert f"{good} of {ROWS} rows right" in done.stdout
    assert f"{ROWS - good} rows have no answer and count as wrong." in done.stdout
    assert 0 < good < 0.8 * ROWS
