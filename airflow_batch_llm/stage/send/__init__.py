"""Send: turn shards into batches at the provider, each created once, and sweep and cancel batches."""
