"""What the `airflow-batch-llm` command does: a stage from a file, and a look into a run folder. No Airflow."""
