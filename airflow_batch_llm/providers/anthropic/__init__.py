"""Anthropic's Message Batches: `lines` encodes and decodes, `flows` looks at batches, `provider` is the adapter."""

from airflow_batch_llm.providers.anthropic.provider import AnthropicProvider

__all__ = ["AnthropicProvider"]
