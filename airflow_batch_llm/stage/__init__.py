"""The stage: rows become shards, shards become batches, results become rows, and a crash costs nothing.

The only place where a warehouse, a provider and the workspace meet. It knows no Airflow: `Run.advance` moves a run as
far as it can go now, and says what to wait for; operators, scripts and the command line all call it.
"""
