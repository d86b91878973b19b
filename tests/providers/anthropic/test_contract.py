from typing import Any, ClassVar

from airflow_batch_llm.testing.providers import ProviderContract


class TestAnthropic(ProviderContract):
    provider_name, model = "anthropic", "claude-haiku-4-5"
    is_recognisable = False
    answer_endpoint = "messages"
    spend_limit: ClassVar[dict[str, Any]] = {"status": 429, "code": "enforced_spend_limit_reached"}
