from typing import Any, ClassVar

from airflow_batch_llm.testing.providers import ProviderContract
from tests.providers.parts import ReadsItsListInParts


class TestAnthropic(ReadsItsListInParts, ProviderContract):
    page_sizes = ("airflow_batch_llm.providers.anthropic.flows._LIST_LIMIT",)
    provider_name, model = "anthropic", "claude-haiku-4-5"
    is_recognisable = False
    answer_endpoint = "messages"
    spend_limits = (
        {"status": 429, "code": "enforced_spend_limit_reached"},
        {"status": 400, "message": "Your credit balance is too low to access the Anthropic API."},
        {"status": 400, "message": "You have reached your specified API usage limits."},
    )
    stated_limits = ("requests", "tokens", "input-tokens", "output-tokens")
    spend_limit: ClassVar[dict[str, Any]] = {"status": 429, "code": "enforced_spend_limit_reached"}
