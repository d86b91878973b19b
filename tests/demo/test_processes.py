"""A process that was started is stopped, with all that it has started itself."""

import os
import sys
from pathlib import Path

import pytest

from airflow_batch_llm.demo.local_airflow import Service, stop_all, until

_PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_child_that_ignores_the_signal_does_not_stay_behind(tmp_path: Path) -> None:
    service = Service([sys.executable, "-c", _PARENT], dict(os.environ), tmp_path / "said" / "output.txt")
    service.start()
    child = int(until(lambda: service.output.read_text().strip(), "the child's id", 20))

    stop_all([service])

    assert not service.is_running
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_the_end_of_what_was_said_can_be_read(tmp_path: Path) -> None:
    service = Service(
        [sys.executable, "-c", "print('one'); print('two')"], dict(os.environ), tmp_path / "output.txt"
    )
    service.start()

    assert service.reap() == 0
    assert service.tail(1) == "two"


def test_waiting_in_vain_says_for_what() -> None:
    with pytest.raises(TimeoutError, match="Godot"):
        until(lambda: None, "Godot", 0.3)
