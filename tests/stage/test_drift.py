"""The labels of a night beside those of the nights before."""

from collections import Counter
from typing import Any

from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.simulator.responder import truth
from tests.stage.world import LABELS, Bench


def make_nights(bench: Bench) -> None:
    """Two usual nights, and one on which hardly anything but bugs is asked about."""
    schema = OutputType.of(list(LABELS)).schema
    rows = [(1 + number % 3, number, f"text {number}") for number in range(600)]
    kept = [row for row in rows if row[0] < 3 or not row[1] % 10 or truth(row[2], schema)["label"] == "bug"]
    values = ", ".join(f"({night}, {key}, '{text}')" for night, key, text in kept)
    bench.world.ask("CREATE TABLE nights (night INTEGER, id INTEGER, subject VARCHAR)")
    bench.world.ask(f"INSERT INTO nights VALUES {values}")


def test_a_night_with_other_labels_warns_and_every_report_counts_them(anthropic: Bench) -> None:
    make_nights(anthropic)
    anthropic.world.simulator.turn(wrong_share={"nobody": 0.5}, truth_find="text [0-9]+")

    reports: dict[int, Any] = {}
    for night in (1, 2, 3):
        anthropic.said.clear()
        source = Source(sql=f"SELECT id, subject FROM nights WHERE night = {night}")
        reports[night] = anthropic.complete(
            f"dag/task/{night}", source=source, prompt="{{ subject }}", rows_per_batch=70, warn_on_drift=0.2
        ).report
        assert any("have drifted" in said for said in anthropic.said) is (night == 3)

    assert "label have drifted from those of the last 2 runs" in " ".join(anthropic.said)
    assert "'bug' was" in " ".join(anthropic.said)
    counts = anthropic.world.ask(
        "SELECT night, label, count(*) FROM labels JOIN nights USING (id) GROUP BY ALL"
    )
    for night, report in reports.items():
        assert report.labels == {
            "label": dict(Counter({label: rows for one, label, rows in counts if one == night}))
        }
    assert reports[1].drift == {}
    assert reports[2].drift["label"] < 0.1 < 0.2 < reports[3].drift["label"]
