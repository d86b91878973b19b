"""Counting input tokens by the model's own countTokens, which is free."""

from typing import Any

import orjson

from airflow_batch_llm.core.model import Call
from airflow_batch_llm.providers.reach import keep_session
from airflow_batch_llm.providers.steps import WORKER, drive, patiently
from airflow_batch_llm.providers.vertex.encode import generate_content
from airflow_batch_llm.providers.vertex.errors import judge, needing_extra
from airflow_batch_llm.providers.vertex.jobs import model_path
from airflow_batch_llm.providers.vertex.storage import Place

_TIMEOUT_SECONDS = 60.0


class TokenCounter:
    """countTokens through google-cloud-aiplatform."""

    def __init__(self, client: Any, place: Place) -> None:
        self._client = client
        self._place = place

    @classmethod
    def open(cls, place: Place) -> "TokenCounter":
        with needing_extra():
            from google.api_core.client_options import ClientOptions
            from google.cloud.aiplatform_v1 import LlmUtilityServiceClient

        client = LlmUtilityServiceClient(
            credentials=place.credentials,
            transport="rest",
            client_options=ClientOptions(api_endpoint=place.endpoint),
        )
        transport: Any = client.transport  # its session is not public
        keep_session(transport._session)
        return cls(client, place)

    def count(self, call: Call, prompt: str) -> int:
        """The input tokens of one request, system prompt and schema included."""
        from google.cloud.aiplatform_v1.types import CountTokensRequest

        model = model_path(call.model)
        body = {
            **generate_content(call, prompt),
            "endpoint": model if model.startswith("projects/") else f"{self._place.parent}/{model}",
        }
        request = CountTokensRequest.from_json(orjson.dumps(body), ignore_unknown_fields=True)
        return drive(
            patiently(
                lambda client: client.count_tokens(request, retry=None, timeout=_TIMEOUT_SECONDS),
                judge,
                WORKER,
                lambda answer: int(answer.total_tokens),
            ),
            self._client,
        )

    def close(self) -> None:
        self._client.transport.close()
