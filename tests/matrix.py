"""Run the tests of the Airflow edge on each Airflow that is supported. Run by `make matrix`; arguments go to pytest.

An old Airflow works only with what there was in its days, so that is what it is installed with; what this package needs
besides is added as it is now, and leaves alone what fits.
"""

import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from tests.sdks import ENVIRONMENTS, ROOT, TOOLS, UV

PROVIDERS = ("common-compat", "common-sql", "google", "openai", "postgres", "sqlite", "standard")

#: What the tests need besides, or in a newer version than the oldest Airflow brings: for the examples, metrics, and spans.
BESIDES = ("apache-airflow-providers-standard>=1.12.2", "opentelemetry-sdk>=1.27", "statsd>=4")


@dataclass(frozen=True, slots=True)
class Release:
    """An Airflow, and the last day whose packages it is installed with."""

    version: str
    until: str | None = None


RELEASES = (
    Release("3.1.8", "2026-03-15"),
    Release("3.2.2", "2026-06-02"),
    Release("3.3.2"),
    Release("3.4.0b2"),
)


def needed() -> list[str]:
    """Return the requirements of the package besides Airflow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = ("anthropic", "openai", "postgres", "duckdb")
    lines = [
        *project["dependencies"],
        *(line for name in wanted for line in project["optional-dependencies"][name]),
    ]
    return [line for line in lines if not Requirement(line).name.startswith("apache-airflow")]


def install(release: Release) -> Path:
    """Make a new environment of this release, and return its interpreter."""
    environment = ENVIRONMENTS / f"airflow-{release.version}"
    subprocess.run(
        [UV, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment)], check=True
    )
    python = environment / "bin" / "python"
    pip = [UV, "pip", "install", "--quiet", "--python", str(python)]
    dated = (
        ["--exclude-newer", release.until] if release.until else ["--prerelease", "if-necessary-or-explicit"]
    )
    airflow = [f"apache-airflow=={release.version}", f"apache-airflow-core=={release.version}"]
    providers = [f"apache-airflow-providers-{name}" for name in PROVIDERS]
    subprocess.run([*pip, *dated, *airflow, *providers], check=True)
    subprocess.run([*pip, *needed(), *BESIDES, *TOOLS], check=True)
    subprocess.run([*pip, "--no-deps", "-e", "."], check=True, cwd=ROOT)
    return python


def run(release: Release, arguments: list[str]) -> int:
    """Run the tests on one release. Its own deprecation warnings are not errors here."""
    python = install(release)
    version = subprocess.check_output(
        [
            python,
            "-W",
            "ignore",
            "-c",
            "from importlib.metadata import version; print(version('apache-airflow-core'))",
        ],
        text=True,
    )
    print(f"matrix: Airflow {version.strip()}", flush=True)
    command = [
        python,
        "-m",
        "pytest",
        "-q",
        "-W",
        "default",
        "tests/edge",
        "tests/test_provider_info.py",
        *arguments,
    ]
    return subprocess.run(command, check=False, cwd=ROOT, env=os.environ | {"PYTHONPATH": ""}).returncode


if __name__ == "__main__":
    asked = [release for release in RELEASES if release.version in sys.argv[1:]] or RELEASES
    rest = [
        argument for argument in sys.argv[1:] if argument not in {release.version for release in RELEASES}
    ]
    sys.exit(max(run(release, rest) for release in asked))
