"""Results that are not the batch's are not kept: no row is asked, and paid, again because a proxy answered."""

from dataclasses import replace
from typing import Any

import pytest

from airflow_batch_llm.core.model import BatchState, BatchStatus, Outcome
from airflow_batch_llm.errors import ResultsGone, WarehouseBusy
from airflow_batch_llm.providers.steps import WORKER
from airflow_batch_llm.stage.land.collecting import RESULTS_PATIENCE_SECONDS, Expected, Incomplete, Lines
from airflow_batch_llm.stage.land.finishing import land_again
from airflow_batch_llm.stage.records.folder import RunFolder
from tests.stage.world import Bench
from tests.vendors import FETCHED, VENDORS

ANSWERS: dict[str, dict[str, Any]] = {
    "a login page": {
        "kind": "body",
        "text": "<html>\n<body>\nSign in</body></html>",
        "content_type": "text/html",
    },
    "a login page that says it is text": {
        "kind": "body",
        "text": "Sign in\n" * 30,
        "content_type": "text/plain",
    },
    "another shape": {"kind": "body", "text": "{}", "content_type": "application/json"},
    "an empty file": {"kind": "body", "text": "", "content_type": "application/octet-stream"},
    "a listing that lags": {"kind": "status", "status": 404},
}


@pytest.fixture(params=FETCHED)
def vendor(request: pytest.FixtureRequest) -> Bench:
    bench: Bench = request.getfixturevalue(request.param)
    return bench


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_is_not_the_results_is_fetched_again_and_nothing_is_paid_again(
    vendor: Bench, answer: str
) -> None:
    vendor.world.make_tickets(20)
    vendor.fault(endpoint=VENDORS[vendor.world.provider_name].results, times=4, **ANSWERS[answer])

    done = vendor.complete()

    assert done.report.final == {Outcome.SUCCEEDED: 20}
    assert (vendor.world.charged(), len(vendor.batches())) == (20, 1)


@pytest.mark.parametrize("answer", ["another shape", "a listing that lags"])
def test_results_that_never_come_fail_the_run_and_a_later_retry_costs_nothing(
    vendor: Bench, answer: str
) -> None:
    vendor.world.make_tickets(20)
    vendor.fault(endpoint=VENDORS[vendor.world.provider_name].results, times=None, **ANSWERS[answer])
    before = vendor.world.clock()

    with pytest.raises(ResultsGone, match="Run the task again later: that costs nothing") as failed:
        vendor.complete()
    assert str(failed.value).count("Clear ") == 1, (
        "to clear pays again: it is advised under its condition alone"
    )
    assert vendor.world.clock() - before > RESULTS_PATIENCE_SECONDS
    vendor.world.simulator.clear_faults()

    assert vendor.complete().report.final == {Outcome.SUCCEEDED: 20}
    assert (vendor.world.charged(), len(vendor.batches())) == (20, 1)


def test_a_row_counts_as_missing_only_after_minutes(bench: Bench) -> None:
    bench.world.make_tickets(20)
    bench.fault(kind="missing", rows=[3, 7])
    before = bench.world.clock()

    bench.complete(max_attempts=1)

    assert bench.world.clock() - before > RESULTS_PATIENCE_SECONDS
    assert bench.world.failures() == {3: ("missing", 0, False), 7: ("missing", 0, False)}
    (said,) = [line for line in bench.said if line.endswith("The other rows count as missing.")]
    minutes = f"{RESULTS_PATIENCE_SECONDS / 60:.0f} minutes"
    assert f"the provider gives 18 of 20 results, and has for {minutes}" in said


@pytest.mark.parametrize(
    "answer",
    [
        {"kind": "status", "status": 405},
        {"kind": "status", "status": 500},
        ANSWERS["a login page"],
        ANSWERS["another shape"],
    ],
    ids=["405", "500", "a login page", "another shape"],
)
def test_a_server_that_keeps_its_files_fails_no_run(openai: Bench, answer: dict[str, Any]) -> None:
    openai.world.make_tickets(40)
    openai.fault(endpoint="delete_file", times=None, **answer)

    done = openai.complete(rows_per_batch=1)

    assert done.report.final == {Outcome.SUCCEEDED: 40}
    assert sum("could not be removed" in line for line in openai.said) == 1
    asked = openai.world.ledger()["calls"]["delete_file"]
    at_once = 16
    assert 40 <= asked <= at_once * WORKER.attempts + 40 - at_once, (
        "it is asked patiently for the first files alone"
    )


class _KeepsWhatIsStaged:
    """A warehouse that does not let anything be removed."""

    def __init__(self, warehouse: Any) -> None:
        self._warehouse = warehouse

    def __getattr__(self, name: str) -> Any:
        return getattr(self._warehouse, name)

    def drop_loaded(self, target: Any, parts: Any) -> None:
        raise WarehouseBusy("the schema is locked")


def test_a_warehouse_that_keeps_what_is_staged_fails_no_run_and_no_landing_again(openai: Bench) -> None:
    openai.world.make_tickets(20)
    whole = openai.world.parts()
    parts = {"target": _KeepsWhatIsStaged(whole.target)}

    done = openai.complete(openai.run(parts=parts))
    folder = RunFolder(workspace=whole.workspace, run="dag/task/run")
    landed = land_again(replace(whole, log=openai.said.append, **parts), folder)
    whole.target.close()
    whole.provider.close()

    assert (done.report.final, landed) == ({Outcome.SUCCEEDED: 20}, 20)
    assert sum("Staged rows could not be removed" in line for line in openai.said) == 2, openai.said


@pytest.mark.parametrize(
    ("finished", "unmentioned", "lines"),
    [
        (10, Outcome.MISSING, 10),
        (None, Outcome.MISSING, 10),  # a server that does not count
        (12, Outcome.MISSING, 10),
        (4, Outcome.EXPIRED, 4),
        (None, Outcome.CANCELED, 0),
    ],
)
def test_as_many_lines_are_expected_as_the_vendor_counts(
    finished: int | None, unmentioned: Outcome, lines: int
) -> None:
    status = BatchStatus(state=BatchState.ENDED, finished=finished, unmentioned=unmentioned)

    assert Expected.of(status, token="r1-0001", requests=10).lines == lines


def test_lines_of_another_batch_are_not_these_results() -> None:
    expected = Expected(lines=1, mark=b"r1-0001-")

    assert list(Lines([b'{"custom_id":"r1-0001-3"}', b""], expected)) == [b'{"custom_id":"r1-0001-3"}', b""]
    with pytest.raises(Incomplete, match="none of 2 lines"):
        list(Lines([b'{"custom_id":"r2-0001-3"}', b"x"], expected))
