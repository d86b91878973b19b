"""The contract's cases about results: what comes back for each row, and that nothing else does."""

import tracemalloc
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import orjson
import pytest

from airflow_batch_llm.core.attachment import PDF, Attachment, with_attachments, with_names
from airflow_batch_llm.core.model import BatchState, Call, Outcome, Usage
from airflow_batch_llm.core.request import custom_id
from airflow_batch_llm.errors import ResultsGone, Unavailable
from airflow_batch_llm.providers.base import StoresFiles, TakesAttachments
from airflow_batch_llm.testing.provider_bench import Bench

_JSON = "application/json"

LOGIN_PAGE: Mapping[str, str] = {"text": "<html><body>Sign in</body></html>", "content_type": "text/html"}

_WRONG_TYPES = (
    '{"id": 7, "type": "message_batch", "object": "batch", "status": 3, "name": 7, "state": 9, "data": [7],'
    ' "processing_status": "ended", "request_counts": null, "batchPredictionJobs": [7]}'
)
_PAGES: Sequence[Mapping[str, str]] = (
    LOGIN_PAGE,
    *(
        {"text": text, "content_type": _JSON}
        for text in (
            "<html>", "", "{}", "[]", "null", '{"status": {"ok": true}, "data": null, "id": 7}', _WRONG_TYPES
        )
    ),
)  # fmt: skip


def each_page(bench: Bench, endpoint: str, **fault: Any) -> Iterator[str]:
    """Let a gateway answer in the vendor's place, with status 200: each body in turn, for one step of a loop."""
    for page in _PAGES:
        bench.simulator.clear_faults()
        bench.fault(kind="body", endpoint=endpoint, times=None, **page, **fault)
        yield page["text"]
    bench.simulator.clear_faults()


#: The bytes that a bomb unpacks to, and the memory that may be used while it is refused.
BOMB_BYTES, _MOST_MEMORY = 200_000_000, 120_000_000


@contextmanager
def little_memory() -> Iterator[None]:
    """No more memory than a bomb's fraction is taken within this block."""
    tracemalloc.start()
    try:
        yield
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < _MOST_MEMORY, f"{taken:,} bytes"


LABEL: Mapping[str, object] = {
    "type": "object",
    "properties": {
        "label": {"enum": ["bug", "praise"]},
        "score": {"type": "integer", "minimum": 1, "maximum": 5},
        "who": {"$ref": "#/$defs/Person"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["label", "score", "who", "tags", "note"],
    "$defs": {
        "Person": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
}

_BLOCK = 1 << 20


#: The smallest image, and a PDF with one page.
_ATTACHED = (
    Attachment(
        "image/png",
        data="iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==",
    ),
    Attachment(PDF, data="JVBERi0xLjQKMSAwIG9iaiA8PC9UeXBlIC9QYWdlPj4gZW5kb2JqCg=="),
)


class ReadsAnswers:
    """The contract of `results` and `decode` for a batch that has ended."""

    #: The outcome of a row that the server strikes with this fault; None: the provider does not mention it.
    outcomes: ClassVar[Mapping[str, Outcome | None]] = {
        "errored": Outcome.ERRORED,
        "expired": Outcome.EXPIRED,
        "canceled": Outcome.CANCELED,
        "refused": Outcome.REFUSED,
        "filtered": Outcome.REFUSED,
        "truncated": Outcome.TRUNCATED,
        "empty": Outcome.INVALID,
        "odd": Outcome.SUCCEEDED,
        "surrogate": Outcome.SUCCEEDED,
        "missing": None,
    }
    #: The server's name for the call that downloads results.
    download_endpoint: ClassVar[str] = "results"
    #: The server refuses requests that name a file which was deleted.
    judges_files: ClassVar[bool] = True
    #: Seconds after which the provider has deleted the results of a batch.
    retention_seconds: ClassVar[float] = 31 * 86_400

    def test_every_row_is_answered_in_text(self, bench: Bench) -> None:
        shard = bench.shard(5, call=Call(model=bench.model, system_prompt="Be brief."))
        batch_id = bench.submit(shard)
        status = bench.ended(batch_id)
        assert status.state is BatchState.ENDED
        results = bench.results(batch_id)
        assert sorted(results) == [custom_id(shard.token, n) for n in range(5)]
        assert {result.outcome for result in results.values()} == {Outcome.SUCCEEDED}
        assert all(result.text and result.model for result in results.values())

    def test_an_answer_to_a_schema_is_json_of_that_schema(self, bench: Bench) -> None:
        shard = bench.shard(3, call=Call(model=bench.model, schema=LABEL))
        batch_id = bench.submit(shard)
        bench.ended(batch_id)
        for result in bench.results(batch_id).values():
            assert result.outcome is Outcome.SUCCEEDED, result
            answer = orjson.loads(result.text or "")
            assert set(answer) == {"label", "score", "who", "tags", "note"}
            assert answer["label"] in ("bug", "praise")
            assert isinstance(answer["who"]["name"], str)

    def test_what_is_attached_is_answered_and_can_be_read_back_for_another_vendor(self, bench: Bench) -> None:
        if not isinstance(bench.provider, TakesAttachments):
            pytest.skip("the provider takes no attachments")
        call = Call(model=bench.model, attachments=True)
        rules, template = bench.provider.attachment_rules(call), bench.provider.encode(call)
        attached = [one for one in _ATTACHED if one.media_type in rules.inline]
        for scheme, types in rules.by_uri.items():
            attached += [Attachment(kind, uri=f"{scheme}://bucket.example/a") for kind in types]
        assert attached, "the rules allow neither an image nor a PDF"
        prompts = [b'"no attachment"', *(with_attachments(b'"one of them"', [one]) for one in attached)]
        for prompt in prompts:
            line = template.line("b-0001-000000", prompt)
            assert template.line("b-0001-000000", template.prompt(line, "b-0001-000000")) == line
        assert all(rules.tokens(one) > 0 for one in attached)
        shard = bench.shard(prompts, call=call)
        assert bench.outcomes(shard, bench.submit(shard)) == {Outcome.SUCCEEDED: len(prompts)}

    def test_a_file_is_named_by_requests_and_found_again_until_it_is_deleted(self, bench: Bench) -> None:
        if not isinstance(bench.provider, StoresFiles) or not isinstance(bench.provider, TakesAttachments):
            pytest.skip("the provider stores no files")
        (pdf,) = [one for one in _ATTACHED if one.is_pdf]
        local, name = bench.folder / "attachment", f"{bench.run}-attachment.pdf"
        local.write_bytes(b64decode(pdf.data or ""))
        stored = bench.provider.store_file(local, name, pdf.media_type)
        assert bench.provider.find_files(bench.run) == {name: [stored]}

        def asked(number: int) -> Counter[Outcome]:
            uploaded = Attachment(pdf.media_type, sha256="0" * 64)
            call, prompt = Call(model=bench.model, attachments=True), with_attachments(b'"text"', [uploaded])
            shard = bench.shard([prompt], call=call, number=number)
            shard.path.write_bytes(with_names(shard.path.read_bytes(), {"0" * 64: stored}))
            return bench.outcomes(shard, bench.submit(shard))

        assert asked(1) == {Outcome.SUCCEEDED: 1}
        bench.provider.discard(stored)
        bench.provider.discard(stored)
        assert bench.provider.find_files(bench.run) == {}
        if self.judges_files:
            assert asked(2) == {Outcome.ERRORED: 1}

    def test_the_usage_of_all_rows_is_what_the_bill_says(self, bench: Bench) -> None:
        bench.simulator.turn(cached_tokens=3, cache_write_tokens=2, reasoning_tokens=7)
        batch_id = bench.submit(bench.shard(["a prompt that is long enough to be cached" * 3] * 4))
        bench.ended(batch_id)
        total = sum((result.usage for result in bench.results(batch_id).values()), Usage())
        tokens = bench.bill()["tokens"]
        assert (total.input_tokens, total.output_tokens) == (tokens["input"], tokens["output"])
        assert (total.cached_tokens, total.reasoning_tokens) == (tokens["cached"], tokens["reasoning"])

    def test_results_belong_to_rows_by_custom_id_in_whatever_order_they_come(self, bench: Bench) -> None:
        shard = bench.shard([f"say {n}" for n in range(40)])
        batch_id = bench.submit(shard)
        bench.ended(batch_id)
        came = [bench.provider.decode(line).custom_id for line in bench.provider.results(batch_id)]
        planned = [custom_id(shard.token, n) for n in range(40)]
        assert came != planned
        assert sorted(came) == planned

    def test_each_way_for_a_row_to_end_has_its_outcome(self, bench: Bench) -> None:
        for row, kind in enumerate(self.outcomes):
            bench.fault(kind=kind, rows=[row])
        shard = bench.shard(len(self.outcomes) + 1)
        batch_id = bench.submit(shard)
        bench.ended(batch_id)
        results = bench.results(batch_id)
        for row, (kind, outcome) in enumerate(self.outcomes.items()):
            result = results.get(custom_id(shard.token, row))
            assert (result.outcome if result else None) == outcome, kind
            assert result is None or (result.error_code is None) == (outcome is Outcome.SUCCEEDED), kind
        assert results[custom_id(shard.token, len(self.outcomes))].outcome is Outcome.SUCCEEDED

    def test_a_bad_line_costs_one_row_and_a_repeated_line_comes_twice(self, bench: Bench) -> None:
        bench.fault(kind="bad_line", rows=[0])
        bench.fault(kind="duplicated", rows=[1])
        shard = bench.shard(3)
        batch_id = bench.submit(shard)
        bench.ended(batch_id)
        seen: Counter[str] = Counter()
        for line in bench.provider.results(batch_id):
            try:
                seen[bench.provider.decode(line).custom_id] += 1
            except ValueError:
                seen["unreadable"] += 1
        assert seen == {"unreadable": 1, custom_id(shard.token, 1): 2, custom_id(shard.token, 2): 1}

    def test_an_answer_with_odd_line_separators_is_one_line(self, bench: Bench) -> None:
        bench.fault(kind="odd", every=1)
        batch_id = bench.submit(bench.shard(3))
        bench.ended(batch_id)
        results = bench.results(batch_id)
        assert len(results) == 3
        assert all("\u2028" in (result.text or "") for result in results.values())

    def test_a_download_that_breaks_off_in_a_line_says_so_and_can_be_begun_again(self, bench: Bench) -> None:
        batch_id = bench.submit(bench.shard(20))
        bench.ended(batch_id)
        bench.fault(kind="cut", endpoint=self.download_endpoint, lines=3)
        with pytest.raises(Unavailable, match=batch_id.rpartition("/")[2]):
            bench.results(batch_id)
        assert len(bench.results(batch_id)) == 20

    def test_a_download_that_cannot_begin_for_now_is_tried_again(self, bench: Bench) -> None:
        batch_id = bench.submit(bench.shard(2))
        bench.ended(batch_id)
        bench.fault(kind="status", endpoint=self.download_endpoint, status=503)
        assert len(bench.results(batch_id)) == 2

    @pytest.mark.parametrize("endpoint", ["retrieve", "download"])
    def test_results_in_whose_place_a_gateway_answers_are_not_there_yet(
        self, bench: Bench, endpoint: str
    ) -> None:
        batch_id = bench.submit(bench.shard(2))
        bench.ended(batch_id)
        struck = self.download_endpoint if endpoint == "download" else endpoint
        bench.fault(kind="body", endpoint=struck, times=None, **LOGIN_PAGE)
        with pytest.raises(Unavailable):
            bench.results(batch_id)

    def test_results_that_are_a_bomb_stop_at_a_bound(self, bench: Bench) -> None:
        batch_id = bench.submit(bench.shard(2))
        bench.ended(batch_id)
        bench.fault(kind="bomb", endpoint=self.download_endpoint, times=None, bytes=BOMB_BYTES)
        with little_memory(), pytest.raises(Unavailable):
            for _ in bench.provider.results(batch_id):
                pass

    def test_a_batch_that_runs_has_no_results_yet(self, bench: Bench) -> None:
        bench.fault(kind="hold")
        batch_id = bench.submit(bench.shard(1))
        with pytest.raises(Unavailable):
            bench.results(batch_id)

    def test_results_that_the_provider_has_deleted_are_gone(self, bench: Bench) -> None:
        batch_id = bench.submit(bench.shard(1))
        bench.ended(batch_id)
        bench.simulator.clock(advance_seconds=self.retention_seconds)
        with pytest.raises(ResultsGone, match=batch_id.rpartition("/")[2]):
            bench.results(batch_id)

    def test_rows_of_an_expired_batch_that_were_executed_are_answered(self, bench: Bench) -> None:
        bench.fault(kind="expire", share=0.5)
        shard = bench.shard(10)
        batch_id = bench.submit(shard)
        assert bench.ended(batch_id).state is BatchState.ENDED
        assert bench.outcomes(shard, batch_id) == {Outcome.SUCCEEDED: 5, Outcome.EXPIRED: 5}

    def test_a_row_that_a_finished_batch_leaves_out_is_missing(self, bench: Bench) -> None:
        bench.fault(kind="missing", rows=[1])
        shard = bench.shard(3)
        batch_id = bench.submit(shard)
        assert bench.outcomes(shard, batch_id) == {Outcome.SUCCEEDED: 2, Outcome.MISSING: 1}

    def test_a_large_shard_is_sent_and_read_in_little_memory(self, bench: Bench) -> None:
        # 24 MB in 240 lines, and a trace of every allocation of this process.
        shard = bench.shard([f"{n:03d}{'x' * 100_000}" for n in range(240)])
        tracemalloc.start()
        try:
            batch_id = bench.submit(shard)
            sent = tracemalloc.get_traced_memory()[1]
            bench.ended(batch_id)
            tracemalloc.reset_peak()
            answered = sum(1 for _ in bench.provider.results(batch_id))
            read = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert answered == 240
        assert sent < 12 * _BLOCK
        assert read < 12 * _BLOCK
