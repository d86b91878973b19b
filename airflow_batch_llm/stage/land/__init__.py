"""Land: turn ended batches into rows of the target, a next round, and the report."""
