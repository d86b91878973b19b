"""The contract of a provider, for Vertex with requests and answers in BigQuery."""

import datetime as dt
import tracemalloc
from collections.abc import Iterator
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery

from airflow_batch_llm.errors import InputError, Refused, ResultsGone
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.vertex import VertexProvider
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.testing.provider_answers import ReadsAnswers
from airflow_batch_llm.testing.provider_batches import CreatesOnce
from airflow_batch_llm.testing.provider_bench import Bench
from airflow_batch_llm.testing.providers import OnServer
from tests.emulators.servers import PROJECT, Emulators
from tests.hop import Fault, Hop, hop_to
from tests.providers.vertex.outcomes import OUTCOMES


class TestVertexTables(OnServer):
    """The cases of the contract in which it matters where requests and answers lie."""

    provider_name = "vertex"
    model = "gemini-2.5-flash"
    outcomes = OUTCOMES
    dataset: ClassVar[str]

    test_a_schema_is_kept = ReadsAnswers.test_an_answer_to_a_schema_is_json_of_that_schema
    test_the_usage_is_billed = ReadsAnswers.test_the_usage_of_all_rows_is_what_the_bill_says
    test_outcomes = ReadsAnswers.test_each_way_for_a_row_to_end_has_its_outcome
    test_a_bad_line_costs_one_row = ReadsAnswers.test_a_bad_line_costs_one_row_and_a_repeated_line_comes_twice
    test_an_expired_batch = ReadsAnswers.test_rows_of_an_expired_batch_that_were_executed_are_answered
    test_a_missing_row = ReadsAnswers.test_a_row_that_a_finished_batch_leaves_out_is_missing
    test_an_upload_is_deleted = CreatesOnce.test_an_upload_is_deleted_and_deleting_it_again_is_no_error
    test_a_batch_is_deleted = CreatesOnce.test_a_batch_is_deleted_with_its_answers_once_it_has_ended

    @pytest.fixture(scope="class")
    @classmethod
    def hop(cls, emulators: Emulators) -> Iterator[Hop]:
        """Between the adapter and BigQuery; the simulator has a way of its own."""
        with hop_to(emulators.bigquery) as hop, pytest.MonkeyPatch.context() as patch:
            patch.setenv("BIGQUERY_EMULATOR_HOST", hop.endpoint)
            yield hop

    @pytest.fixture(scope="class")
    @classmethod
    def client(cls, emulators: Emulators) -> Iterator[bigquery.Client]:
        """Google's client, with a dataset as its default."""
        name = f"{PROJECT}.vertex_{uuid4().hex[:8]}"
        client = bigquery.Client(
            project=PROJECT,
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": emulators.bigquery},
            default_query_job_config=bigquery.QueryJobConfig(default_dataset=name),
        )
        client.create_dataset(name)
        cls.dataset = name
        yield client
        client.delete_dataset(name, delete_contents=True)
        client.close()

    @pytest.fixture(scope="class")
    @classmethod
    def simulator(
        cls,
        hop: Hop,
        client: bigquery.Client,
        emulators: Emulators,
    ) -> Iterator[Simulator]:
        with Simulator(batch_seconds=0.0, bigquery_url=emulators.bigquery) as simulator:
            yield simulator

    def access(self, simulator: Simulator) -> Access:
        return Access(
            base_url=simulator.url,
            options={"project": PROJECT, "location": "global", "staging": f"bq://{self.dataset}"},
        )

    @pytest.fixture(autouse=True)
    def straight(self, hop: Hop) -> None:
        hop.rules.clear()

    def tables(self, client: bigquery.Client, bench: Bench) -> dict[str, Any]:
        """The tables of this test's run, by what they hold."""
        found = [client.get_table(item) for item in client.list_tables(self.dataset)]
        return {each.table_id.split("_")[1]: each for each in found if bench.run in each.table_id}

    def test_results_that_the_provider_has_deleted_are_gone(
        self, bench: Bench, client: bigquery.Client
    ) -> None:
        batch_id = bench.submit(bench.shard(1))
        bench.ended(batch_id)
        client.delete_table(self.tables(client, bench)["answers"])
        with pytest.raises(ResultsGone, match=batch_id.rpartition("/")[2]):
            bench.results(batch_id)

    def test_a_download_that_breaks_off_in_a_line_says_so_and_can_be_begun_again(
        self, bench: Bench, hop: Hop
    ) -> None:
        batch_id = bench.submit(bench.shard(20))
        bench.ended(batch_id)
        forbidden = hop.spoil(Fault.FORBID, "^GET .*/data")
        with pytest.raises(Refused):
            bench.results(batch_id)
        assert forbidden.hits == 1
        assert len(bench.results(batch_id)) == 20

    def test_connections_to_bigquery_that_break_are_taken_up_again(self, bench: Bench, hop: Hop) -> None:
        made = hop.spoil(Fault.LOSE_ANSWER, "^POST .*/tables")
        sent = hop.spoil(Fault.REFUSE, "^POST /upload/")
        read = hop.spoil(Fault.REFUSE, "^GET .*/data")
        batch_id = bench.submit(bench.shard(20))
        bench.ended(batch_id)
        assert len(bench.results(batch_id)) == 20
        assert (made.hits, sent.hits, read.hits) == (1, 1, 1)

    def test_tables_vanish_by_themselves_and_answers_can_be_read_without_the_right_to_say_so(
        self, bench: Bench, client: bigquery.Client, hop: Hop
    ) -> None:
        batch_id = bench.submit(bench.shard(2))
        bench.ended(batch_id)
        forbidden = hop.spoil(Fault.FORBID, "^PATCH ")
        assert len(bench.results(batch_id)) == 2
        assert (forbidden.hits, self.tables(client, bench)["answers"].expires) == (1, None)
        assert len(bench.results(batch_id)) == 2
        left = {
            name: (table.expires - dt.datetime.now(dt.UTC)).days
            for name, table in self.tables(client, bench).items()
        }
        assert left == {"requests": 6, "answers": 29}

    def test_a_large_shard_is_sent_in_little_memory(self, bench: Bench) -> None:
        shard = bench.shard([f"{n:03d}{'x' * 100_000}" for n in range(240)])
        tracemalloc.start()
        try:
            bench.provider.upload(shard)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert shard.bytes > 24_000_000
        assert peak < 12 << 20

    def test_requests_that_bigquery_does_not_load_are_refused_without_their_words(self, bench: Bench) -> None:
        shard = bench.shard(1)
        shard.path.write_bytes(b'{"request": {"contents": "secret words"\n')
        with pytest.raises(Refused, match="did not load the requests") as refused:
            bench.provider.upload(shard)
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("staging", [None, "bq://project", "bq://p.d.t", "gs://", "s3://bucket/folder"])
def test_a_place_that_vertex_cannot_use_is_refused_with_what_to_write(staging: str | None) -> None:
    provider = VertexProvider(Access(options={"project": "p", "staging": staging}))
    with pytest.raises(InputError, match=r"staging='gs://bucket/folder' or staging='bq://project\.dataset'"):
        provider._place.staging  # noqa: B018
