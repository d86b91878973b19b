"""Every row that was read is counted once in the report, whatever becomes of it."""

from dataclasses import replace
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.report import Report, to_xcom
from airflow_batch_llm.core.selection import Reason
from airflow_batch_llm.simulator.controls import RowFault
from airflow_batch_llm.stage.land import finishing
from tests.stage.world import Bench

ROWS = 8
#: `spoiled` and `text` need a text, and do nothing that another fault does not.
FAULTS = st.sampled_from([fault for fault in RowFault if fault not in {RowFault.SPOILED, RowFault.TEXT}])


@given(
    faults=st.dictionaries(st.integers(0, ROWS - 1), st.tuples(FAULTS, st.sampled_from([1, None]))),
    empty=st.sets(st.integers(0, ROWS - 1), max_size=3),
    max_rows=st.sampled_from([None, 5]),
)
@settings(
    max_examples=6,
    phases=[Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_the_counts_of_a_run_are_the_rows_that_it_read(
    openai: Bench, faults: dict[int, tuple[RowFault, int | None]], empty: set[int], max_rows: int | None
) -> None:
    bench = Bench(replace(openai.world, folder=openai.world.folder / uuid4().hex))
    bench.world.folder.mkdir()
    bench.world.begin()
    bench.world.make_tickets(ROWS)
    for row in empty:
        bench.world.ask(f"UPDATE tickets SET body = '' WHERE id = {row}")
    for row, (fault, times) in faults.items():
        bench.fault(kind=fault, rows=[row], times=times)

    done = bench.complete(prompt="{{ body }}", max_rows=max_rows, max_attempts=2)

    told = to_xcom(done.report, done.about)
    planned = told["why"].get(Reason.NEW, 0) + told["why"].get(Reason.UNSENDABLE, 0)
    assert sum(told["why"].values()) == ROWS
    assert sum(told["counts"].values()) == told["request_count"] == planned
    assert (
        sum(told["outcomes"].values()) == len(bench.world.answers()) + len(bench.world.failures()) == planned
    )


def test_a_report_that_does_not_add_up_is_told_and_the_run_is_not_lost(
    openai: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    openai.world.make_tickets(ROWS)
    summed = finishing.summed
    monkeypatch.setattr(
        finishing, "summed", lambda *given: summed(*given) + Report(outcomes={Outcome.ERRORED: 1})
    )

    with pytest.raises(RuntimeWarning, match=f"does not add up: {ROWS} rows were planned"):
        openai.complete()

    assert openai.complete().report.passed
    assert openai.world.charged() == ROWS
