"""Files as a source: Parquet, CSV and JSON Lines by URI."""
