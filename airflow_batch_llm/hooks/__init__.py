"""Turn Airflow's connections into the package's parts: providers, warehouses, files and the workspace.

Nothing here is called while a Dag is parsed. Drivers and SDKs are imported when a connection is first used.
"""
