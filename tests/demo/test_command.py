"""The refusals of the `demo` command. The end-to-end tests show that it works, in a real Airflow."""

from pathlib import Path

from typer.testing import CliRunner

from airflow_batch_llm.cli import app
from airflow_batch_llm.demo.command import example_dags


def test_a_folder_that_no_demo_has_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")

    done = CliRunner().invoke(app, ["demo", "--folder", str(tmp_path)])

    assert done.exit_code == 2
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_the_example_dags_are_found() -> None:
    assert (example_dags() / "nightly_labels.py").is_file()
