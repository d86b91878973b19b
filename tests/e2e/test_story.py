"""The story of the docs, told as a reader of them tells it: by its command, in a real Airflow of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_batch_llm.demo import warehouse
from airflow_batch_llm.demo.local_airflow import AirflowApi

TICKETS = 300


@pytest.fixture(autouse=True)
def forgotten() -> None:
    """The story has a simulator of its own, and the Airflow of the other tests need not run for it."""


def test_the_story_is_told_to_its_end_and_leaves_nothing_running(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("airflow-batch-llm"), "story", "--tickets", str(TICKETS)]

    told = subprocess.run(
        [*command, "--folder", str(tmp_path / "story")], capture_output=True, text=True, check=False
    )

    assert told.returncode == 0, told.stdout[-4000:] + told.stderr[-4000:]
    assert f"{TICKETS} / {TICKETS}" in told.stdout  # the page of the first night
    assert re.search(rf"rows read +{TICKETS} outdated", told.stdout)
    assert "300 rows read, and 3 requests bought." in told.stdout
    (booked, charged) = re.findall(r"has (\d+) requests for .* charged (\d+)\.", told.stdout)[0]
    assert booked == charged
    url = re.findall(r"A real Airflow: (\S+)", told.stdout)[0]
    assert AirflowApi(url).health() == {}
    labelled = warehouse.ask(
        tmp_path / "story" / "warehouse.duckdb", "SELECT count(*) FROM support.ticket_topics"
    )
    assert labelled == [(TICKETS,)]
