"""Fixtures of the command line: a folder with a table, a spec next to it, and a simulator."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import pytest
import yaml

from airflow_batch_llm.simulator.handle import Simulator
from tests.stage.processes import processes

COMMAND = Path(sys.executable).parent / "airflow-batch-llm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """One spec, and the console script that is run on it."""

    folder: Path
    simulator: Simulator

    @property
    def spec_file(self) -> Path:
        return self.folder / "tickets.yaml"

    def fields(self, **changes: Any) -> dict[str, Any]:
        """The fields of a spec that works."""
        fields = {
            "model_id": "anthropic:claude-haiku-4-5",
            "provider": {"base_url": self.simulator.url, "api_key_env": "DESK_KEY"},
            "warehouse": {"duckdb": "warehouse.duckdb"},
            "source": {"table": "tickets"},
            "key": "id",
            "prompt": "Subject: {{ subject }}",
            "output_type": ["billing", "bug", "other"],
            "target": "labels",
            "pace": {"rows_per_batch": 10, "poll_interval": 0.1},
            "workspace": "workspace",
        }
        return {**fields, **changes}

    def write(self, **changes: Any) -> None:
        self.spec_file.write_text(yaml.safe_dump(self.fields(**changes), sort_keys=False))

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        """Start the console script."""
        return subprocess.Popen(
            [COMMAND, *arguments],
            env={**os.environ, "DESK_KEY": "any", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def command(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end, in a process with all imports done."""
        files = [self.folder / f"{uuid4().hex}.{name}" for name in ("out", "err")]
        environment = {**os.environ, "DESK_KEY": "any", **environment}
        process = processes().Process(target=_command, args=(arguments, environment, files))
        process.start()
        process.join(timeout=120)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{arguments[0]} did not end")
        out, err = (file.read_text() for file in files)
        for file in files:
            file.unlink()
        return subprocess.CompletedProcess(arguments, process.exitcode, out, err)

    def run(self, *options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return self.command("run", str(self.spec_file), *options, **environment)

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        with duckdb.connect(str(self.folder / "warehouse.duckdb")) as connection:
            return connection.execute(sql).fetchall()

    @property
    def run_folder(self) -> Path:
        """The folder of the only run."""
        (folder,) = (self.folder / "workspace" / "runs").iterdir()
        return folder

    def charged(self) -> int:
        """The rows that the provider has executed."""
        return sum(1 for _ in self.simulator.charges())


def _command(arguments: Sequence[str], environment: Mapping[str, str], files: Sequence[Path]) -> None:
    """Do what the console script does, in the new process."""
    os.environ.clear()
    os.environ.update(environment)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, file in enumerate(files, start=1):
        with file.open("wb") as output:
            os.dup2(output.fileno(), number)
    sys.argv = [str(COMMAND), *arguments]
    from airflow_batch_llm.cli import app

    sys.exit(app())


@pytest.fixture(scope="session")
def simulator() -> Iterator[Simulator]:
    with Simulator(batch_seconds=0) as running:
        yield running


@pytest.fixture
def desk(tmp_path: Path, simulator: Simulator) -> Iterator[Desk]:
    simulator.reset()
    desk = Desk(folder=tmp_path, simulator=simulator)
    desk.write()
    desk.ask("CREATE TABLE tickets AS SELECT i AS id, 'subject ' || i AS subject FROM range(25) t(i)")
    yield desk
    simulator.reset()
