"""Land: from an ended batch to rows in the target, a next round, and the report."""
