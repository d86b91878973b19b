"""CPU seconds that a Dag with all of our operators costs to import, beyond what Airflow itself costs.

python -m tests.benchmarks.parse_dag
"""

import os
import subprocess
import sys
import tempfile

AIRFLOW = """
import airflow.sdk, airflow.triggers.base, airflow.providers.common.compat.sdk
from airflow.sdk import DAG, BaseOperator, BaseSensorOperator
from airflow.providers.common.compat.sdk import AirflowException, Stats, conf
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
"""
_OURS = """
from tests.edge.test_serialization import dag_of_all
dag_of_all()
"""
_PROGRAM = """
import time
{}
began = time.process_time()
{}
print(time.process_time() - began)
"""


def seconds(before: str, measured: str) -> float:
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _PROGRAM.format(before, measured)],
            env={**os.environ, "AIRFLOW_HOME": home},
            capture_output=True,
            text=True,
            check=True,
        )
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    names = (
        "sensors.llm_batch",
        "sensors.pending_rows",
        "operators.llm_transform",
        "operators.llm_batch",
    )
    imports = "\n".join(f"import airflow_batch_llm.{name}" for name in names)
    print(f"Airflow alone        {min(seconds('', AIRFLOW) for _ in range(3)):.2f} s")
    print(f"our operators on top {min(seconds(AIRFLOW, imports) for _ in range(3)):.2f} s")
    print(f"a Dag of them all    {min(seconds(AIRFLOW + imports, _OURS) for _ in range(3)):.2f} s")
