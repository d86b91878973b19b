"""The contract of a provider, kept by Vertex: the simulator runs the jobs, a real object store holds their files."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from airflow_batch_llm.core.model import BatchState, Call, Outcome
from airflow_batch_llm.errors import ResultsGone, Unavailable
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.testing.provider_bench import Bench
from airflow_batch_llm.testing.providers import ProviderContract
from tests.hop import Fault, Hop, hop_to
from tests.providers.parts import ReadsItsListInParts
from tests.providers.vertex.outcomes import OUTCOMES
from tests.store.servers import BUCKET, gcs_server

PROJECT = "test-project"


def storage() -> Any:
    from google.cloud.storage import Client

    return Client(project=PROJECT)


def answer_files(bench: Bench) -> list[Any]:
    files = storage().list_blobs(BUCKET, prefix=f"staging/{bench.run}")
    return [file for file in files if "/prediction-model-" in file.name]


class TestVertex(ReadsItsListInParts, ProviderContract):
    page_sizes = (
        "airflow_batch_llm.providers.vertex.jobs.PAGE_SIZE",
        "airflow_batch_llm.providers.vertex.clients.PAGE_SIZE",
    )
    provider_name = "vertex"
    model = "gemini-2.5-flash"
    answer_endpoint, flex_model = "generate", "gemini-3-flash-preview"
    outcomes = OUTCOMES
    # The answers lie in Cloud Storage; what the simulator can spoil on the way there is the look at the job.
    download_endpoint = "retrieve"
    judges_files = False
    # Fields that are empty are left out of Google's JSON, so an empty list looks like this.
    empty_lists = ("{}",)

    @pytest.fixture(scope="class")
    @classmethod
    def hop(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hop]:
        """Between the adapter and Cloud Storage; the simulator has a way of its own."""
        with gcs_server(tmp_path_factory.mktemp("gcs")) as server, hop_to(server) as hop:
            yield hop

    @pytest.fixture(scope="class")
    @classmethod
    def simulator(cls, hop: Hop) -> Iterator[Simulator]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", hop.endpoint)
            with Simulator(batch_seconds=0.0, env=os.environ) as simulator:
                yield simulator

    def access(self, simulator: Simulator) -> Access:
        return Access(
            base_url=simulator.url,
            options={"project": PROJECT, "location": "global", "staging": f"gs://{BUCKET}/staging"},
        )

    @pytest.fixture(autouse=True)
    def straight(self, hop: Hop) -> None:
        hop.rules.clear()

    def test_a_download_that_breaks_off_in_a_line_says_so_and_can_be_begun_again(self, bench: Bench) -> None:
        batch_id = bench.submit(bench.shard([f"{n:02d}{'x' * 300_000}" for n in range(20)]))
        bench.ended(batch_id)
        (file,) = answer_files(bench)
        whole = file.download_as_bytes()
        lines = bench.provider.results(batch_id)
        next(lines)
        file.upload_from_string(whole[: len(whole) // 2])
        with pytest.raises(Unavailable, match=batch_id.rpartition("/")[2]):
            list(lines)
        file.upload_from_string(whole)
        assert len(bench.results(batch_id)) == 20

    def test_results_that_the_provider_has_deleted_are_gone(self, bench: Bench) -> None:
        batch_id = bench.submit(bench.shard(1))
        bench.ended(batch_id)
        for file in answer_files(bench):
            file.delete()
        with pytest.raises(ResultsGone, match=batch_id.rpartition("/")[2]):
            bench.results(batch_id)

    def test_a_connection_to_the_storage_that_breaks_is_taken_up_again(self, bench: Bench, hop: Hop) -> None:
        lost = hop.spoil(Fault.LOSE_ANSWER, r"^(POST|PUT) /upload/")
        cut = hop.spoil(Fault.CUT_ANSWER, r"^GET /download/.*predictions\.jsonl")
        refused = hop.spoil(Fault.REFUSE, r"^GET /storage/v1/b/[^/]+/o\?.*prefix=")
        batch_id = bench.submit(bench.shard(20))
        bench.ended(batch_id)
        assert len(bench.results(batch_id)) == 20
        assert (lost.hits, cut.hits, refused.hits) == (1, 1, 1)

    def test_the_answers_of_a_large_job_come_in_several_files(self, bench: Bench) -> None:
        bench.simulator.turn(shard_rows=7)
        batch_id = bench.submit(bench.shard(20))
        bench.ended(batch_id)
        assert len(answer_files(bench)) == 3
        assert len(bench.results(batch_id)) == 20

    def test_a_job_that_succeeded_in_part_has_ended(self, bench: Bench) -> None:
        bench.fault(kind="partial")
        batch_id = bench.submit(bench.shard(3))
        assert bench.ended(batch_id).state is BatchState.ENDED
        assert len(bench.results(batch_id)) == 3

    def test_a_job_whose_file_is_refused_is_rejected_and_not_for_now_only(self, bench: Bench) -> None:
        shard = bench.shard(2)
        shard.path.write_bytes(b'{"request": {"contents": {}}}\n')
        status = bench.ended(bench.submit(shard))
        assert (status.state, status.later) == (BatchState.REJECTED, False)
        assert status.reason == "code 3. The request file was not accepted; the same file will not be."
        assert "Failed to import data" in status.detail

    def test_the_deepest_schema_that_encode_lets_through_is_imported(self, bench: Bench) -> None:
        schema: dict[str, object] = {"type": "string"}
        for _ in range(5):
            schema = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
        batch_id = bench.submit(bench.shard(2, call=Call(model=self.model, schema=schema)))
        bench.ended(batch_id)
        outcomes = Counter(result.outcome for result in bench.results(batch_id).values())
        assert outcomes == {Outcome.SUCCEEDED: 2}

    def test_unions_optionals_and_enums_are_imported_and_answered(self, bench: Bench) -> None:
        properties: dict[str, object] = {
            "size": {"enum": [1, 2, "big", None]},
            "when": {"type": ["string", "null"], "format": "date"},
            "who": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]},
        }
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        batch_id = bench.submit(bench.shard(8, call=Call(model=self.model, schema=schema)))
        bench.ended(batch_id)
        for result in bench.results(batch_id).values():
            assert set(orjson.loads(result.text or "")) == set(properties)
