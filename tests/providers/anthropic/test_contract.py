from typing import Any, ClassVar

from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.testing.providers import ProviderContract


class TestAnthropic(ProviderContract):
    provider_name, model = "anthropic", "claude-haiku-4-5"
    spend_limit: ClassVar[dict[str, Any]] = {"status": 429, "code": "enforced_spend_limit_reached"}

    def access(self, simulator: Simulator) -> Access:
        return Access(api_key="any", base_url=simulator.url)
