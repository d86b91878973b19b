"""Add a page to Airflow's own UI."""
