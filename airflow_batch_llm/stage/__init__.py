"""Run a stage: rows become shards, shards become batches, and results become rows.

A warehouse, a provider and the workspace meet only here. This package does not import Airflow. `Run.advance` moves a
run as far as it can go now, and returns what to wait for. Operators, scripts and the command line all call it.
"""
