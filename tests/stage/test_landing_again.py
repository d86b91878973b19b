"""Result lines as they come, the raw lines that are kept, and landing from them without a provider."""

from typing import Any

import orjson
import pytest

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.errors import StoreUnavailable, StoreUnreadable
from airflow_batch_llm.stage.run import Pause
from tests.stage.world import Bench, let_go


class _Breaks:
    """A part that does what it did until one of its verbs is called."""

    def __init__(self, part: Any, verb: str, error: Exception) -> None:
        self._part, self._verb, self._error = part, verb, error

    def __getattr__(self, name: str) -> Any:
        if name == self._verb:
            raise self._error
        return getattr(self._part, name)


class _FailsOnce(_Breaks):
    """A part of which the n-th call of one verb fails, before it has done anything."""

    def __init__(self, part: Any, verb: str, number: int, error: Exception) -> None:
        super().__init__(part, verb, error)
        self._left = number

    def __getattr__(self, name: str) -> Any:
        if name == self._verb:
            self._left -= 1
        if name == self._verb and self._left == 0:
            raise self._error
        return getattr(self._part, name)


@pytest.mark.parametrize(
    ("kind", "strange"),
    [
        ("duplicated", {"duplicate_lines": 2}),
        ("bad_line", {"unreadable_lines": 2}),
        ("foreign", {"foreign_lines": 2}),
    ],
)
def test_an_odd_line_costs_its_own_row_at_most(bench: Bench, kind: str, strange: dict[str, int]) -> None:
    bench.world.make_tickets(20)
    bench.fault(kind=kind, rows=[3, 7])

    done = bench.complete(min_round_time=1e9)

    good = 20 if kind == "duplicated" else 18
    assert done.report.strange == strange
    assert len(bench.world.answers()) == good
    assert set(bench.world.failures()) == (set() if good == 20 else {3, 7})


def test_line_separators_inside_an_answer_are_part_of_it(bench: Bench) -> None:
    bench.world.make_tickets(20)
    bench.fault(kind="odd", every=1)

    done = bench.complete(output_type=str, output_column="label")

    assert done.report.final == {Outcome.SUCCEEDED: 20}
    assert all("\u2028" in answer for answer in bench.world.answers().values())


def test_kept_lines_land_without_the_provider(bench: Bench) -> None:
    bench.world.make_tickets(20)
    first = bench.run()
    broken = _Breaks(first.parts.target, "load", RuntimeError("the warehouse is away"))
    with pytest.raises(RuntimeError, match="the warehouse is away"):
        bench.complete(bench.run(parts={"source": first.parts.source, "target": broken}))
    let_go(first)
    bench.world.simulator.reset()

    done = bench.complete()

    assert done.report.final == {Outcome.SUCCEEDED: 20}
    assert len(bench.world.answers()) == 20
    assert bench.batches() == []


def test_what_an_earlier_release_landed_is_published_and_reported(bench: Bench) -> None:
    bench.world.make_tickets(20)
    first = bench.run()
    broken = _Breaks(first.parts.target, "publish", RuntimeError("the warehouse is away"))
    with pytest.raises(RuntimeError, match="the warehouse is away"):
        bench.complete(bench.run(parts={"source": first.parts.source, "target": broken}))
    let_go(first)
    (path,) = bench.world.folder.glob("workspace/dag/task/run/g1/landed/*.json")
    landed = orjson.loads(path.read_bytes())
    del landed["batches"]  # it did not tell
    path.write_bytes(orjson.dumps(landed))

    done = bench.complete()

    assert (done.report.final, done.report.batches) == ({Outcome.SUCCEEDED: 20}, 1)
    assert bench.world.charged() == len(bench.world.answers()) == 20


def test_a_finished_run_keeps_its_answers_when_the_provider_has_lost_its_own(bench: Bench) -> None:
    bench.world.make_tickets(20)
    bench.complete()
    before = bench.world.answers()
    bench.world.simulator.reset()

    assert bench.complete().report.rows == 20
    assert bench.complete(max_tries=1).report.why == {"answered": 20}
    assert bench.world.answers() == before


@pytest.mark.parametrize(
    ("bench", "download"), [("anthropic", "results"), ("openai", "content")], indirect=["bench"]
)
def test_a_download_that_breaks_off_lands_nothing_and_is_begun_again(bench: Bench, download: str) -> None:
    bench.world.make_tickets(200)
    bench.fault(kind="cut", endpoint=download, lines=50, times=5)

    while bench.world.ledger()["running"] or not bench.batches():
        bench.advance()
        bench.world.sleep(60)
    assert isinstance(bench.advance(), Pause)
    assert bench.world.answers() == {}
    done = bench.complete()

    assert done.report.final == {Outcome.SUCCEEDED: 200}
    assert bench.world.charged() == 200


@pytest.mark.parametrize("verb", ["create", "append", "put", "write", "read", "records", "get", "blocks"])
@pytest.mark.parametrize("error", [StoreUnavailable("The disk is full."), StoreUnreadable("No answer.")])
def test_a_workspace_that_fails_stops_a_run_that_goes_on_later(
    bench: Bench, verb: str, error: Exception
) -> None:
    bench.world.make_tickets(20)
    for number in range(1, 12):
        counted = _FailsOnce(bench.world.workspace(), verb, number, error)
        try:
            bench.complete(bench.run(parts={"workspace": counted}))
        except (StoreUnavailable, StoreUnreadable):
            continue

    assert bench.complete().report.final == {Outcome.SUCCEEDED: 20}
    assert bench.world.charged() == 20
    assert bench.world.ledger()["running"] == []


def test_what_was_uploaded_is_deleted_once_its_answers_are_here(openai: Bench) -> None:
    from openai import OpenAI

    openai.world.make_tickets(20)
    openai.fault(endpoint="create", kind="status", status=429)  # the next attempt uploads again
    openai.complete(rows_per_batch=10)

    assert openai.world.ledger()["calls"]["upload"] == 3
    with OpenAI(base_url=f"{openai.world.url}/v1", api_key="any") as client:
        assert {file.purpose for file in client.files.list()} == {"batch_output"}
