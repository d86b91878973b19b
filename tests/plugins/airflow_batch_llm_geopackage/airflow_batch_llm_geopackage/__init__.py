"""GeoPackage files as a warehouse: an SQLite file that lists its tables, so that other programs see the answers."""

from airflow_batch_llm_geopackage.registration import WAREHOUSE

__all__ = ["WAREHOUSE"]
