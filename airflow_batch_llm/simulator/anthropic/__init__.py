"""Anthropic's Message Batches on loopback."""

PROVIDER = "anthropic"
