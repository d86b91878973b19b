"""Plan: turn the source's rows into shards in the run folder and one frozen plan."""
