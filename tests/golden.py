"""Compare what the code writes with files that a person has read and approved. `make golden` writes the files."""

import os
from collections.abc import Iterable
from pathlib import Path

#: Set to any text, this variable makes `check_golden` write the files instead.
WRITE = "WRITE_GOLDEN_FILES"


def check_golden(path: Path, written: bytes) -> None:
    """Fail unless the file holds these bytes."""
    if os.environ.get(WRITE):
        path.write_bytes(written)
    approved = path.read_bytes() if path.is_file() else b""
    assert written.splitlines(keepends=True) == approved.splitlines(keepends=True), (
        f"{path} is not what the code writes now. Run `make golden`, and read the difference before you commit it."
    )


def check_no_other(folder: Path, names: Iterable[str]) -> None:
    """Fail if the folder holds a file that no test writes."""
    assert {path.stem for path in folder.iterdir()} == set(names)
