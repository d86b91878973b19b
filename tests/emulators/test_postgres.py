"""PostgreSQL starts from a bare root shell, too."""

import shutil
from pathlib import Path

import pytest

from tests.emulators.postgres import add_system_folders


@pytest.mark.skipif(not Path("/usr/sbin/useradd").exists(), reason="this system has no useradd in /usr/sbin")
def test_the_program_that_makes_a_user_is_found_without_sbin_in_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")

    add_system_folders()

    assert shutil.which("useradd") == "/usr/sbin/useradd"
