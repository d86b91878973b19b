"""Mistral's batch API as a provider: `wire` is pure, `http` sends, `flows` look, `provider` is the adapter."""

from airflow_batch_llm_mistral.provider import MistralProvider

__all__ = ["MistralProvider"]
