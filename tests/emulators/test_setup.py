"""A machine without Python 3.13: one is fetched where that works, and what is left out is said, at the end as well."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulators import setup

#: An installer that notes what it is asked for, and can fetch nothing.
UV = """#!/bin/sh
echo "$*" >> "$(dirname "$0")/asked"
exit 1
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A checkout in which nothing has been built, with a Python that has such an installer beside it."""
    script = tmp_path / "tests/emulators/setup.py"
    script.parent.mkdir(parents=True)
    shutil.copy(setup.__file__, script)
    uv = tmp_path / "bin/uv"
    uv.parent.mkdir()
    uv.write_text(UV)
    uv.chmod(0o755)
    (tmp_path / "bin/python").symlink_to(Path(sys.executable).resolve())
    return tmp_path


def run(machine: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    given = {"PATH": os.defpath, "PYENV_ROOT": str(machine / "no-pyenv"), **environ}
    command = [str(machine / "bin/python"), str(machine / "tests/emulators/setup.py"), *arguments]
    return subprocess.run(command, env=given, capture_output=True, text=True, check=False, timeout=60)


def test_a_python_that_cannot_be_fetched_is_said_before_the_tests_and_after_them(machine: Path) -> None:
    built, reminded = run(machine), run(machine, "--remind")

    asked = (machine / "bin/asked").read_text().splitlines()
    assert "python install --quiet 3.13" in asked
    assert (built.returncode, reminded.returncode) == (0, 0), built.stderr + reminded.stderr
    assert "NOT BUILT" in built.stdout
    assert "NOT RUN: the tests of BigQuery and Cloud Storage" in reminded.stdout
    assert run(machine, CI="1").returncode == 1, (
        "where the emulators are required, their absence is a failure"
    )


def test_the_end_of_make_test_says_what_was_left_out() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory", "-n", "test"],
        cwd=setup.ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert "tests.emulators.setup --remind; exit $status" in shown.stdout.splitlines()[-1]
