"""BigQuery: Arrow out, load jobs and one transaction in."""
