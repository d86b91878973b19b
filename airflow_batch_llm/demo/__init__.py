"""The whole package at work on one machine: a real Airflow, the simulator and a DuckDB file, without a key or a bill.

It starts Airflow as processes of its own and talks to it by its REST API; nothing here imports Airflow. What is started
is stopped by its process id.
"""
