"""Run the `airflow-batch-llm` commands: a stage from a file, and a look into a run folder. Needs no Airflow."""
