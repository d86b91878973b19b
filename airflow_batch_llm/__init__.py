"""Batch inference as a transformation stage: warehouse rows in, one typed answer per row out, each paid for once.

Airflow imports this package while it reads its own configuration, so this file imports nothing.
"""

__version__ = "0.1.0"
