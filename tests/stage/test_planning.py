"""A plan holds every row once, in shards within their limits. Rows that cannot be sent get an outcome, too."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_batch_llm.core.model import Limits, Outcome
from airflow_batch_llm.core.report import to_xcom
from airflow_batch_llm.core.settings import BadRow, Route, Source
from airflow_batch_llm.errors import InputError, SourceError, WarehouseError
from airflow_batch_llm.stage.plan import shard_files, spool
from tests.stage.world import Bench, let_go

_RUNS = count()


class _Narrow:
    """The provider, with other limits."""

    def __init__(self, provider: Any, **changes: int) -> None:
        self._provider = provider
        self.limits: Limits = replace(provider.limits, **changes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)


def shout(row: dict[str, Any]) -> str:
    """A prompt of one column, which is given the whole row."""
    return str(row["subject"]).upper()


def all_alike(_: dict[str, Any]) -> None:
    """A choice of a route that looks at no column."""


def make_texts(bench: Bench, texts: list[str]) -> None:
    """A ticket for each text, by its place."""
    values = ", ".join(f"({number}, '{text}', '')" for number, text in enumerate(texts))
    bench.world.ask("CREATE OR REPLACE TABLE tickets (id INTEGER, subject VARCHAR, body VARCHAR)")
    bench.world.ask(f"INSERT INTO tickets VALUES {values}")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 400) | st.sampled_from([2_000, 5_000]), min_size=1, max_size=60),
    requests=st.integers(1, 30),
    room=st.integers(3_000, 9_000),
    at_once=st.sampled_from([1, 1_500, 16 << 20]),
    rows_at_once=st.sampled_from([1, 7, 1_000_000]),
)
def test_any_mix_of_sizes_fills_shards_within_their_limits_and_loses_or_doubles_no_row(
    openai: Bench, sizes: list[int], requests: int, room: int, at_once: int, rows_at_once: int
) -> None:
    texts = ["x" * size for size in sizes]
    make_texts(openai, texts)
    run = openai.run()
    narrow = _Narrow(run.parts.provider, max_requests=requests, max_bytes=room, max_request_bytes=2_000)
    let_go(run)
    name = f"run{next(_RUNS)}"

    planning = openai.run(name, parts={"provider": narrow}, prompt="{{ subject }}", target=name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_files, "_BYTES_AT_ONCE", at_once)
        patch.setattr(spool, "_ROWS_AT_ONCE", rows_at_once)
        generation = planning.generation()
    let_go(planning)

    plan, folder = generation.first, generation.folder
    local = openai.world.folder / "local"
    asked: list[str] = []
    keys: list[int] = []
    for shard in plan.shards:
        assert folder.get_requests(plan.nonce, shard.number, local)
        lines = [orjson.loads(line) for line in local.read_bytes().splitlines()]
        assert (len(lines), local.stat().st_size) == (shard.requests, shard.bytes)
        assert len(lines) <= requests
        assert shard.bytes <= room
        asked += [line["custom_id"] for line in lines]
        assert folder.get_keys(plan.nonce, shard.number, local)
        keys += pq.read_table(local)["id"].to_pylist()
    unsendable = [number for number, text in enumerate(texts) if len(text) >= 2_000]
    assert plan.why == Counter(new=len(texts) - len(unsendable), unsendable=len(unsendable)) - Counter()
    assert len(set(asked)) == len(asked) == len({text for text in texts if len(text) < 2_000})
    assert sorted(keys + unsendable) == list(range(len(texts)))


def test_large_rows_that_come_one_by_one_are_written_together(tmp_path: Path) -> None:
    columns = pa.schema([("id", pa.int64()), ("text", pa.string())])
    spooled = spool.Spool(tmp_path, columns, ["id"])
    own = {spool.REASON: "new", spool.PROBLEM: None, spool.INPUT_HASH: "0" * 32, spool.EARLIER_HASH: "1" * 32}
    for number in range(30):
        row = {
            spool.SEQ: number,
            **own,
            spool.ATTEMPTS: 0,
            spool.ROUTE: 0,
            "id": number,
            "text": "x" * (1 << 20),
        }
        spooled.write(pa.RecordBatch.from_pylist([row]))
    spooled.close_files()
    written = pq.ParquetFile(tmp_path / spool.ROWS_FILE)
    assert written.metadata.num_row_groups == 3
    assert written.read(["id"])["id"].to_pylist() == list(range(30))


_UNREADABLE = "SELECT *, error('this column is read')::VARCHAR AS other FROM tickets"


@pytest.mark.parametrize("source", [Source(table="wide"), Source(sql=f"{_UNREADABLE} WHERE id >= 0")])
def test_a_plan_reads_the_columns_that_its_stage_names_and_no_others(openai: Bench, source: Source) -> None:
    openai.world.make_tickets(5)
    openai.world.ask(f"CREATE VIEW wide AS {_UNREADABLE}")
    narrow = planned_keys(openai, "labels", source=Source(table="tickets"))

    assert planned_keys(openai, "labels_of_wide", source=source) == narrow
    assert narrow.column_names[-2:] == ["id", "subject"]


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": shout},
        {"route": all_alike, "routes": {"urgent": Route(way="now")}},
        {"source": Source(sql=f"{_UNREADABLE} ORDER BY id")},
    ],
    ids=["prompt", "route", "order"],
)
def test_a_plan_reads_all_columns_for_a_function_and_for_a_query_that_orders_its_rows(
    openai: Bench, changes: Mapping[str, Any]
) -> None:
    openai.world.make_tickets(5)
    openai.world.ask(f"CREATE VIEW wide AS {_UNREADABLE}")

    with pytest.raises(WarehouseError):
        planned_keys(openai, "labels_of_wide", **{"source": Source(table="wide"), **changes})


def planned_keys(bench: Bench, name: str, **changes: Any) -> pa.Table:
    """Plan, and return the keys of the first shard."""
    planning = bench.run(name, target=name, **changes)
    try:
        generation = planning.generation()
    finally:
        let_go(planning)
    local = bench.world.folder / "local"
    assert generation.folder.get_keys(generation.first.nonce, 1, local)
    return pq.read_table(local)


def test_a_row_that_cannot_be_sent_is_a_failure_and_stops_no_other(bench: Bench) -> None:
    make_texts(bench, ["one", "", "three", "y" * 5_000, "five"])
    run = bench.run()
    narrow = _Narrow(run.parts.provider, max_request_bytes=3_000)
    let_go(run)

    done = bench.complete(bench.run(parts={"provider": narrow}, prompt="{{ subject }}"))

    assert done.report.why == {"new": 3, "unsendable": 2}
    assert done.report.final == {Outcome.SUCCEEDED: 3, Outcome.ERRORED: 2}
    assert sorted(bench.world.answers()) == [0, 2, 4]
    assert bench.world.failures() == {1: ("errored", 0, False), 3: ("errored", 0, False)}
    assert bench.world.charged() == 3
    told = bench.world.ask("SELECT id, _llm_error_code, _llm_error_message FROM labels__failures ORDER BY id")
    assert [(key, code) for key, code, _ in told] == [(1, "prompt_failed"), (3, "too_large")]
    assert all("yyy" not in message for _, _, message in told)


def test_a_request_that_asks_to_cache_is_not_longer_than_the_provider_takes(anthropic: Bench) -> None:
    make_texts(anthropic, ["y" * size for size in range(2_500, 3_000, 10)])
    run = anthropic.run()
    narrow = _Narrow(run.parts.provider, max_request_bytes=3_000)
    let_go(run)
    asked = {"prompt": "{{ subject }}", "system_prompt": "Be brief.", "cache_system_prompt": "on"}

    anthropic.complete(anthropic.run(parts={"provider": narrow}, **asked))

    files = (anthropic.world.folder / "workspace").rglob("*.requests.jsonl")
    longest = max(len(line) for path in files for line in path.read_bytes().splitlines())
    assert 2_900 < longest <= 3_000


def test_a_row_that_cannot_be_sent_fails_the_run_where_the_user_wants_that(openai: Bench) -> None:
    make_texts(openai, ["one", "", "three"])

    with pytest.raises(InputError, match=r"1 row cannot be sent.*: 1 \(prompt_failed\),.*Nothing was sent"):
        openai.complete(prompt="{{ subject }}", on_bad_row=BadRow.FAIL)

    assert openai.batches() == []
    assert openai.world.unfinished() == []


def test_some_of_the_rows_that_cannot_be_sent_are_named_with_the_reason(openai: Bench) -> None:
    make_texts(openai, ["one", "y" * 5_000, "", "four", "", ""])
    openai.world.ask("ALTER TABLE tickets ADD COLUMN region VARCHAR")
    openai.world.ask("UPDATE tickets SET region = repeat('north', 20)")
    run = openai.run()
    narrow = _Narrow(run.parts.provider, max_request_bytes=3_000)
    let_go(run)

    with pytest.raises(InputError) as refused:
        openai.complete(
            openai.run(
                parts={"provider": narrow},
                prompt="{{ subject }}",
                key=("region", "id"),
                on_bad_row=BadRow.FAIL,
            )
        )

    region = "north" * 8
    told = f"{region}/1 (too_large), {region}/2 (prompt_failed), {region}/4 (prompt_failed), for example"
    assert f"4 rows cannot be sent, and on_bad_row='fail': {told}. Of the first one: the prompt has 5" in str(
        refused.value
    )
    assert "yyy" not in str(refused.value)


def subject_of_ticket(row: Mapping[str, Any]) -> str:
    return f"Subject: {row['subjct']} {row['body']}"


def test_a_prompt_function_that_raises_for_every_row_is_named_with_its_line(openai: Bench) -> None:
    openai.world.make_tickets(3)
    told: list[str] = []

    done = openai.complete(openai.run(parts={"log_warning": told.append}, prompt=subject_of_ticket))

    line = subject_of_ticket.__code__.co_firstlineno + 1
    raised = (
        f"The prompt function subject_of_ticket raised KeyError('subjct') in line {line} of test_planning.py"
    )
    assert any(raised in message for message in told)
    assert "None of 3 rows could be sent: errored 3 (prompt_failed 3)" in done.report.verdict
    assert to_xcom(done.report, done.about)["codes"] == {"prompt_failed": 3}
    assert openai.batches() == []


def test_a_value_that_a_prompt_function_raises_is_not_told(openai: Bench) -> None:
    make_texts(openai, ["canary"])
    told: list[str] = []

    openai.complete(openai.run(parts={"log_warning": told.append}, prompt=lambda row: {}[row["subject"]]))

    assert any("raised KeyError in line" in message for message in told)
    assert not any("canary" in message for message in told)


def test_a_plan_that_is_only_looked_at_gives_its_estimate_in_numbers(openai: Bench) -> None:
    openai.world.make_tickets(10, distinct=4)

    planned = openai.complete(plan_only=True)
    told = to_xcom(planned.report, planned.about)["estimate"]

    assert (told["rows"], told["requests"]) == (10, 4)
    assert told["input_tokens"] > 0
    assert told["output_tokens"] > 0
    assert 0 < told["usd_low"] <= told["usd"] <= told["usd_high"]


def payloads(bench: Bench) -> set[str]:
    """The kinds of files of the first run that hold prompts or answers."""
    folder = bench.world.folder / "workspace" / "first" / "g1"
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert Path("report.json") in files
    assert any(path.parts[0] == "journal" for path in files)
    return {path.parts[0] for path in files} & {"plans", "results"}


def test_prompts_and_answers_are_deleted_after_their_time_and_the_journal_stays(openai: Bench) -> None:
    openai.world.make_tickets(20)
    first = openai.complete("first", keep_days=2.0)
    openai.world.sleep(86_400)
    openai.complete("second")
    assert payloads(openai) == {"plans", "results"}

    openai.world.sleep(2 * 86_400)
    openai.complete("third")

    assert payloads(openai) == set()
    assert openai.complete("first") == first
    assert openai.world.charged() == 20


@pytest.mark.parametrize(("days", "left"), [(0.0, set()), (None, {"plans", "results"})])
def test_prompts_and_answers_may_go_at_once_or_stay_for_good(
    openai: Bench, days: float | None, left: set[str]
) -> None:
    openai.world.make_tickets(20)
    openai.complete("first", keep_days=days)
    openai.world.sleep(1e8)
    openai.complete("second")

    assert payloads(openai) == left


def test_null_in_a_carried_column_that_takes_none_is_refused_before_anything_is_sent(openai: Bench) -> None:
    openai.world.make_tickets(5)
    openai.complete(prompt="{{ body }}")
    openai.world.ask("ALTER TABLE labels ALTER subject SET NOT NULL")
    openai.world.ask("INSERT INTO tickets VALUES (5, 'new', 'new'), (6, NULL, 'other')")
    sent = len(openai.batches())

    with pytest.raises(
        SourceError, match=r"column 'subject' is NULL in the source's row 6, .* Nothing was sent"
    ):
        openai.complete("dag/task/next", prompt="{{ body }}")

    assert len(openai.batches()) == sent
    openai.world.ask("UPDATE tickets SET subject = 'filled' WHERE id = 6")
    openai.complete("dag/task/next", prompt="{{ body }}")
    assert len(openai.world.answers()) == 7
