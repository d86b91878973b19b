"""Gemini batches on Vertex AI."""

from airflow_batch_llm.providers.vertex.provider import VertexProvider

__all__ = ["VertexProvider"]
