"""Links from a task in Airflow's UI to the vendor's pages."""
