"""`python -m airflow_batch_llm.simulator`: the `simulate` command on its own."""

import typer

from airflow_batch_llm.simulator.command import simulate

typer.run(simulate)
