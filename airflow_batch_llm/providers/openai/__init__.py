"""OpenAI's Batch API and what is compatible with it: `encode` and `decode` are pure, `flows` look, `provider` is the adapter."""

from airflow_batch_llm.providers.openai.provider import OpenAIProvider

__all__ = ["OpenAIProvider"]
