"""Run the warehouse contract on Snowflake's emulator, ClickHouse's engine and MariaDB, in an environment of their own.

The emulator needs an older connector than the newest, and MariaDB a server on this machine; what is not there is
skipped. Run by `make databases`; arguments go to pytest.
"""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".environments" / "databases"
PYTHON = ENVIRONMENT / "bin" / "python"
UV = Path(sys.executable).parent / "uv"
#: The emulator imports a module that version 5 of the connector no longer has.
DATABASES = ("fakesnow[server]==0.12.1", "snowflake-connector-python<5", "pymysql", "chdb")
TOOLS = ("pytest", "pytest-asyncio", "pytest-xdist")


def main(arguments: list[str]) -> int:
    """Build a new environment, without Airflow, and run the contract in it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = [line for line in project["dependencies"] if not line.startswith("apache-airflow")]
    own += project["optional-dependencies"]["openai"]  # a case of the contract runs a whole stage
    subprocess.run([UV, "venv", "--quiet", "--clear", "--python", sys.executable, ENVIRONMENT], check=True)
    install = [UV, "pip", "install", "--quiet", "--python", PYTHON]
    subprocess.run([*install, *own, *DATABASES, *TOOLS], check=True)
    subprocess.run([*install, "--no-deps", "-e", "."], check=True, cwd=ROOT)
    contracts = map(str, sorted(Path(__file__).parent.glob("*_contract.py")))
    command = [PYTHON, "-m", "pytest", "-q", *contracts, *arguments]
    return subprocess.run(command, check=False, cwd=ROOT, env=os.environ | {"PYTHONPATH": ""}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
