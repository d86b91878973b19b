"""Claude on Vertex AI: what of the contract depends on the words of a row, and the rules that are Claude's alone."""

from collections.abc import Iterator

import orjson
import pytest

from airflow_batch_llm.core.model import Call
from airflow_batch_llm.errors import InputError, OutputTypeError
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.vertex import VertexProvider
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.testing.provider_answers import ReadsAnswers
from airflow_batch_llm.testing.provider_batches import CreatesOnce
from airflow_batch_llm.testing.provider_bench import Bench
from airflow_batch_llm.testing.providers import AnswersInRealTime, OnServer
from tests.providers.vertex.outcomes import OUTCOMES
from tests.store.servers import BUCKET, gcs_server

MODEL = "claude-sonnet-4-6"


class TestClaude(OnServer):
    provider_name, model = "vertex", MODEL
    outcomes = OUTCOMES
    answer_endpoint = "generate"

    test_rows_are_answered = ReadsAnswers.test_every_row_is_answered_in_text
    test_a_schema_is_kept = ReadsAnswers.test_an_answer_to_a_schema_is_json_of_that_schema
    test_the_usage_is_billed = ReadsAnswers.test_the_usage_of_all_rows_is_what_the_bill_says
    test_outcomes = ReadsAnswers.test_each_way_for_a_row_to_end_has_its_outcome
    test_a_lost_batch_is_found = CreatesOnce.test_a_batch_whose_answer_was_lost_is_found
    test_an_answer_now = AnswersInRealTime.test_an_answer_in_real_time_is_what_a_batch_would_answer

    @pytest.fixture(scope="class")
    @classmethod
    def simulator(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
        with (
            gcs_server(tmp_path_factory.mktemp("gcs")) as storage,
            pytest.MonkeyPatch.context() as patch,
            Simulator(batch_seconds=0.0, storage_url=storage) as simulator,
        ):
            patch.setenv("STORAGE_EMULATOR_HOST", storage)
            yield simulator

    def access(self, simulator: Simulator) -> Access:
        return Access(
            base_url=simulator.url,
            options={"project": "test-project", "location": "us-east5", "staging": f"gs://{BUCKET}/claude"},
        )

    def test_tokens_are_not_counted_by_a_method_that_knows_gemini_only(self, bench: Bench) -> None:
        assert bench.provider.count_tokens(Call(model=MODEL, max_tokens=5), ["x"]) is None


def provider(location: str = "us-east5") -> VertexProvider:
    return VertexProvider(Access(options={"project": "p", "location": location, "staging": "gs://b/f"}))


def test_a_row_is_a_message_without_its_model() -> None:
    schema = {"type": "object", "properties": {"label": {"enum": ["a", "b"]}}, "required": ["label"]}
    call = Call(model=MODEL, system_prompt="Be brief.", schema=schema, max_tokens=50)
    line = orjson.loads(provider().encode(call).line("r01-0001-000000", b'"Hi"'))
    assert line == {
        "custom_id": "r01-0001-000000",
        "request": {
            "anthropic_version": "vertex-2023-10-16",
            "max_tokens": 50,
            "system": "Be brief.",
            "messages": [{"role": "user", "content": "Hi"}],
            "output_config": {
                "format": {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}
            },
        },
    }


def test_what_vertex_does_not_do_with_claude_is_refused_with_what_to_do_instead() -> None:
    with pytest.raises(InputError, match="Name a region"):
        provider("global").encode(Call(model=MODEL))
    with pytest.raises(InputError, match="Ask a Gemini model, or Claude at Anthropic"):
        provider().encode(Call(model=MODEL, attachments=True))
    schema = {"type": "object", "properties": {"x": {"enum": ["a", None]}}}
    with pytest.raises(OutputTypeError, match=r"output_config\.format\.schema"):
        provider().encode(Call(model=MODEL, schema=schema))
    assert "no Flex PayGo" in (provider().flex_problem(Call(model=MODEL)) or "")
    assert provider().answer_cap(MODEL) > provider().answer_cap("claude-3-haiku@20240307")
