"""Plan: from the source's rows to shards in the run folder and one frozen plan."""
