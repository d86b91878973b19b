from typing import Any, ClassVar

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.testing.provider_bench import Bench
from airflow_batch_llm.testing.providers import ProviderContract
from tests.providers.parts import ReadsItsListInParts


class TestOpenAI(ReadsItsListInParts, ProviderContract):
    page_sizes = (
        "airflow_batch_llm.providers.openai.flows._LIST_LIMIT",
        "airflow_batch_llm.providers.openai.flows._FILES_AT_ONCE",
    )
    provider_name, model = "openai", "gpt-6-luna"
    answer_endpoint, flex_model = "chat", "gpt-6-luna"
    spend_limits = ({"status": 429, "code": "insufficient_quota"},)
    stated_limits = ("requests", "tokens")
    spend_limit: ClassVar[dict[str, Any]] = {"status": 429, "code": "insufficient_quota"}
    download_endpoint = "content"

    def access(self, simulator: Simulator) -> Access:
        return Access(api_key="any", base_url=simulator.openai_url)

    def test_a_row_in_neither_file_of_an_expired_batch_has_expired(self, bench: Bench) -> None:
        bench.fault(kind="expire", share=0.5)
        bench.fault(kind="missing", rows=[7])
        shard = bench.shard(10)
        batch_id = bench.submit(shard)
        assert bench.outcomes(shard, batch_id) == {Outcome.SUCCEEDED: 5, Outcome.EXPIRED: 5}
        assert len(bench.results(batch_id)) == 9

    def test_a_row_in_neither_file_of_a_cancelled_batch_is_cancelled(self, bench: Bench) -> None:
        bench.fault(kind="hold")
        bench.fault(kind="missing", rows=[7])
        shard = bench.shard(10)
        batch_id = bench.submit(shard)
        bench.simulator.clock(settle=True)  # a batch that is stopped before it runs has no rows
        bench.provider.cancel(batch_id)
        assert bench.outcomes(shard, batch_id) == {Outcome.CANCELED: 10}
        assert len(bench.results(batch_id)) == 9
