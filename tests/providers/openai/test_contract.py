from typing import Any, ClassVar

from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.testing.providers import ProviderContract


class TestOpenAI(ProviderContract):
    provider_name, model = "openai", "gpt-6-luna"
    spend_limit: ClassVar[dict[str, Any]] = {"status": 429, "code": "insufficient_quota"}
    download_endpoint = "content"

    def access(self, simulator: Simulator) -> Access:
        return Access(api_key="any", base_url=simulator.openai_url)
