"""Build the environment of `make scale`, with Celery and Redis's client, and run the cluster in it.

python -m tests.scale --rows 10000
"""

import os
import shutil
import subprocess
import sys

from tests.sdks import ENVIRONMENTS, ROOT, UV

ENVIRONMENT = ENVIRONMENTS / "scale"
#: Version 5.7 of Celery lacks a module that Airflow's executor imports.
PARTS = ("apache-airflow-providers-celery", "celery[redis]<5.7", "pgserver", "psycopg2-binary", "asyncpg")


def main(arguments: list[str]) -> int:
    if shutil.which("redis-server") is None:
        print("scale: there is no redis-server on this machine: apt-get install redis-server")
        return 2
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, ENVIRONMENT], check=True)
    install = [UV, "pip", "install", "--quiet", "--python", python, "-c", "constraints.txt"]
    subprocess.run([*install, "-e", ".[openai,postgres]", *PARTS], check=True, cwd=ROOT)
    command = [python, "-W", "ignore", "-m", "tests.airflow.scale", *arguments]
    return subprocess.run(command, check=False, cwd=ROOT, env=os.environ | {"PYTHONPATH": ""}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
