"""Send: from a shard to a batch at the provider, created once, swept and cancelled."""
