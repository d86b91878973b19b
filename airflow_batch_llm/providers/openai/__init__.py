"""OpenAI's Batch API and compatible servers: `lines` encodes and decodes, `flows` looks at batches, `provider` is the adapter."""

from airflow_batch_llm.providers.openai.provider import OpenAIProvider

__all__ = ["OpenAIProvider"]
