"""Anthropic's Message Batches on loopback."""
