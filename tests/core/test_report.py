"""The report of a run, and its quality gate."""

from collections import Counter
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batch_llm.core.model import Outcome, Usage
from airflow_batch_llm.core.report import Durations, Provenance, Report, Spent, gate, miscount, to_xcom
from airflow_batch_llm.core.selection import PLANNED, Reason

FIRST_ROUND = Report(
    outcomes={Outcome.SUCCEEDED: 90, Outcome.ERRORED: 6, Outcome.REFUSED: 4},
    why={"new": 100, "answered": 900},
    attempts={1: 80},
    strange={"duplicate_lines": 2, "foreign_lines": 1},
    batches=1,
    usage=Usage(input_tokens=1000, cached_tokens=100, output_tokens=200, reasoning_tokens=50),
    spent=Spent(cost=0.5, list_cost=1.0),
    durations=Durations(queued=60, running=600, landing=5),
)
SECOND_ROUND = Report(
    outcomes={Outcome.SUCCEEDED: 5, Outcome.EXPIRED: 1},
    replaced={Outcome.ERRORED: 6},
    attempts={2: 6},
    batches=1,
    usage=Usage(input_tokens=60, output_tokens=12),
    spent=Spent(cost=0.25, list_cost=0.5, stray_cost=0.125, unpriced=1),
    durations=Durations(queued=90, running=300, landing=1),
)
RUN = FIRST_ROUND + SECOND_ROUND
ABOUT = Provenance(
    run_id="dag/task/run",
    run_token="r0123456789",
    provider="anthropic",
    model="claude-haiku-4-5",
    key=("ticket_id",),
    target="support.labels",
    batch_ids=("msgbatch_1", "msgbatch_2"),
    llm_conn_id="anthropic_default",
    structured=True,
    submitted_at=1_795_000_000,
)


def rows(**counts: int) -> Report:
    outcomes = {Outcome(name): count for name, count in counts.items()}
    return Report(outcomes=outcomes, attempts={1: sum(counts.values())})


def test_every_row_counts_once_with_its_last_outcome() -> None:
    assert RUN.final == {Outcome.SUCCEEDED: 95, Outcome.REFUSED: 4, Outcome.EXPIRED: 1}
    assert RUN.rows == 100
    assert (RUN.requests, RUN.rounds, RUN.batches) == (86, 2, 2)


def test_money_and_tokens_add_up_and_what_was_saved_is_told() -> None:
    assert RUN.usage.input_tokens == 1060
    assert RUN.spent == Spent(cost=0.75, list_cost=1.5, stray_cost=0.125, unpriced=1)
    assert RUN.spent.saved == 0.75


def test_batches_wait_side_by_side_and_landing_adds_up() -> None:
    assert RUN.durations == Durations(queued=90, running=600, landing=6)


def counters(keys: st.SearchStrategy[object]) -> st.SearchStrategy[dict[object, int]]:
    return st.dictionaries(keys, st.integers(1, 1000), max_size=4)


REPORTS = st.builds(
    Report,
    outcomes=counters(st.sampled_from(Outcome)),
    why=counters(st.sampled_from(["new", "changed"])),
    attempts=counters(st.integers(1, 3)),
    strange=counters(st.sampled_from(["duplicate_lines"])),
    batches=st.integers(0, 9),
    usage=st.builds(Usage, *[st.integers(0, 99)] * len(Usage._fields)),
    spent=st.builds(Spent, cost=st.integers(0, 99), list_cost=st.integers(0, 99), unpriced=st.integers(0, 9)),
    durations=st.builds(Durations, queued=st.integers(0, 9), landing=st.integers(0, 9)),
)


@given(REPORTS, REPORTS, REPORTS)
def test_it_does_not_matter_in_which_order_shards_are_added(one: Report, two: Report, three: Report) -> None:
    assert one + two == two + one
    assert (one + two) + three == one + (two + three)
    assert one + Report() == one


@given(REPORTS)
def test_a_stored_report_is_the_report(report: Report) -> None:
    stored = orjson.loads(orjson.dumps(report.to_json()))
    assert Report.from_json(stored) == report


def test_the_stored_report_keeps_the_verdict() -> None:
    failed = RUN.judged(gate(RUN, 0.96))
    assert not failed.passed
    assert Report.from_json(orjson.loads(orjson.dumps(failed.to_json()))) == failed


def test_enough_good_rows_pass() -> None:
    verdict = gate(RUN, 0.95)
    assert verdict.passed
    assert verdict.reason == "95 of 100 rows succeeded (95.0%): refused 4, expired 1."


def test_too_few_good_rows_fail_with_outcomes_and_a_few_keys() -> None:
    verdict = gate(RUN, 0.96, samples=[str(number) for number in range(9)])
    assert not verdict.passed
    assert verdict.reason == (
        "95 of 100 rows succeeded (95.0%), below min_success_ratio=0.96: refused 4, expired 1; "
        "for example the keys 0, 1, 2, 3, 4."
    )


def test_the_ratio_counts_from_a_hundred_rows_on() -> None:
    assert gate(rows(succeeded=1, errored=98), 0.95).passed
    assert not gate(rows(succeeded=1, errored=99), 0.95).passed
    assert not gate(rows(succeeded=1, errored=9), 0.95, from_rows=10).passed


@pytest.mark.parametrize("count", [1, 5, 10_000])
def test_a_run_that_sent_rows_and_had_no_success_always_fails(count: int) -> None:
    verdict = gate(rows(missing=count), 0.0)
    assert not verdict.passed
    rows_of = "row" if count == 1 else "rows"
    assert verdict.reason == f"None of {count:,} {rows_of} succeeded: missing {count:,}."


def test_nothing_to_send_is_a_success() -> None:
    assert gate(Report(why={"answered": 100}), 1.0).passed


@pytest.mark.parametrize("count", [3, 300])
def test_a_run_of_which_no_row_could_be_sent_fails(count: int) -> None:
    report = Report(
        outcomes={Outcome.ERRORED: count}, why={"unsendable": count}, codes={"prompt_failed": count}
    )
    assert (
        gate(report, 0.95).reason
        == f"None of {count} rows could be sent: errored {count} (prompt_failed {count})."
    )
    assert not gate(report, 0.0).passed


def test_a_few_rows_that_could_not_be_sent_are_only_counted() -> None:
    report = Report(outcomes={Outcome.ERRORED: 3, Outcome.SUCCEEDED: 1}, why={"unsendable": 3, "new": 1})
    assert gate(report, 0.95).passed


@given(st.integers(100, 10_000).flatmap(lambda total: st.tuples(st.just(total), st.integers(1, total))))
def test_a_ratio_that_is_met_exactly_passes(counts: tuple[int, int]) -> None:
    total, good = counts
    for ratio in (0.07, 0.29, 0.57, 0.95, 0.999):
        met = good * 1000 >= round(ratio * 1000) * total
        assert gate(rows(succeeded=good, errored=total - good), ratio).passed is met


MANIFEST_KEYS = [
    "schema_version",
    "batch_id",
    "adapter",
    "llm_conn_id",
    "model_id",
    "output_type_ref",
    "structured",
    "result_uri",
    "request_count",
    "counts",
    "duplicate_result_count",
    "out_of_range_result_count",
    "ordered",
    "rejoin_key",
    "custom_id_prefix",
    "terminal_reason",
    "submitted_at",
    "completed_at",
]


def test_the_xcom_has_every_key_of_the_official_manifest() -> None:
    told = to_xcom(RUN, ABOUT)
    assert set(MANIFEST_KEYS) <= told.keys()
    assert set(told["counts"]) == {
        "succeeded",
        "errored",
        "invalid_output",
        "expired",
        "cancelled",
        "missing",
    }
    assert sum(told["counts"].values()) == told["request_count"] == 100
    assert told["counts"]["invalid_output"] == 4
    assert (told["duplicate_result_count"], told["out_of_range_result_count"]) == (2, 1)
    assert told["model_id"] == "anthropic:claude-haiku-4-5"
    assert told["rejoin_key"] == ["ticket_id"]
    assert told["submitted_at"] == "2026-11-18T11:06:40+00:00"
    assert told["completed_at"] is None


#: The outcomes of each planned row, round after round. Only the last one counts.
ROWS = st.lists(st.lists(st.sampled_from(Outcome), min_size=1, max_size=3), max_size=20)
NOT_PLANNED = st.dictionaries(st.sampled_from(sorted({*Reason} - PLANNED)), st.integers(1, 9))


@given(ROWS, NOT_PLANNED)
def test_the_manifest_counts_every_planned_row_once(
    rows: list[list[Outcome]], others: dict[str, int]
) -> None:
    report = Report(why={**others, "new": len(rows)})
    for number in range(3):
        asked = [row for row in rows if len(row) > number]
        again = Counter(row[number] for row in asked if len(row) > number + 1)
        report += Report(outcomes=Counter(row[number] for row in asked), replaced=again)

    told = to_xcom(report, ABOUT)

    assert sum(told["counts"].values()) == told["request_count"] == len(rows)
    assert miscount(report) is None


@given(st.sampled_from(Outcome))
def test_a_row_that_is_counted_nowhere_or_twice_is_told(outcome: Outcome) -> None:
    for counts in ({}, {outcome: 2}, {Outcome.SUCCEEDED: 2, Outcome.ERRORED: -1}):
        assert "1 row" in (miscount(Report(outcomes=counts, why={"new": 1, "answered": 5})) or "")


def test_the_xcom_is_small_and_plain_json() -> None:
    told = to_xcom(RUN.judged(gate(RUN, 0.95)), ABOUT)
    assert len(orjson.dumps(told)) < 2_000
    assert orjson.loads(orjson.dumps(told)) == told
    assert told["cost"] == {
        "usd": 0.75,
        "list_usd": 1.5,
        "saved_usd": 0.75,
        "stray_usd": 0.125,
        "unpriced": 1,
    }


def test_a_run_is_complete_only_if_every_row_succeeded() -> None:
    assert to_xcom(RUN, ABOUT)["terminal_reason"] == "partial"
    assert to_xcom(rows(succeeded=3), ABOUT)["terminal_reason"] == "completed"
    assert to_xcom(Report(), replace(ABOUT, batch_ids=()))["batch_id"] is None
