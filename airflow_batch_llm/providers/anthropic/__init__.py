"""Anthropic's Message Batches: `encode` and `decode` are pure, `flows` look, `provider` is the adapter."""

from airflow_batch_llm.providers.anthropic.provider import AnthropicProvider

__all__ = ["AnthropicProvider"]
