"""A golden file that is out of date fails with the command that writes it."""

from pathlib import Path

import pytest

from tests.golden import WRITE, check_golden

ROOT = Path(__file__).resolve().parents[1]


def test_a_file_out_of_date_names_the_command_that_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WRITE, raising=False)
    with pytest.raises(
        AssertionError, match=r"statement\.sql is not what the code writes now\. Run `make golden`"
    ):
        check_golden(tmp_path / "statement.sql", b"SELECT 2\n")

    with monkeypatch.context() as regenerating:
        regenerating.setenv(WRITE, "1")
        check_golden(tmp_path / "statement.sql", b"SELECT 2\n")

    check_golden(tmp_path / "statement.sql", b"SELECT 2\n")
    assert f"{WRITE}=1" in (ROOT / "Makefile").read_text().partition("\ngolden:")[2].partition("\n\n")[0]
