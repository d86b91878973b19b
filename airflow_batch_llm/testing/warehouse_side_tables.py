"""The contract's cases about reviews and the ledger. They are skipped for a warehouse that keeps no such tables."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from airflow_batch_llm.core.answer import Answer, HumanAnswerParser
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.settings import Exhausted, Guards, Only, Source
from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.testing.staged_rows import (
    START,
    TARGET,
    BenchDatabase,
    WholeStage,
    at,
    batch,
    labels,
    land,
    part,
    rows_of,
)
from airflow_batch_llm.warehouses.base import (
    KeepsReviews,
    SharesFile,
    Target,
    Warehouse,
    WritesRecords,
    answer_schema,
)
from airflow_batch_llm.warehouses.side_tables import USAGE_COLUMNS, USAGE_KEY

REVIEW = "labels__review"

#: An answer with a column of each type that people fill.
ANSWER = OutputType.of(
    {
        "type": "object",
        "properties": {
            "label": {"type": "string", "enum": ["billing", "bug"]},
            "count": {"type": "integer"},
            "score": {"type": "number"},
            "price": {"type": "number", "format": "decimal", "maxDigits": 9, "decimalPlaces": 2},
            "urgent": {"type": "boolean"},
            "since": {"type": "string", "format": "date-time"},
            "day": {"type": "string", "format": "date"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "note": {"type": ["string", "null"]},
        },
        "required": ["label", "count", "score", "price", "urgent", "since", "day", "tags", "note"],
    }
)


def reviewed_labels(**changes: Any) -> Target:
    """Return a target whose dead rows are reviewed, with one carried column."""
    return labels(**{"review": REVIEW, "carried": pa.schema([("subject", pa.string())]), **changes})


def dead(key: int, **changes: Any) -> dict[str, Any]:
    """Return a failure that is not asked again."""
    return {
        "id": key,
        "subject": f"subject {key}",
        "_llm_dead": True,
        "_llm_error_code": "refusal",
        **changes,
    }


class ReviewsDeadRows:
    """The contract of `prepare_reviews`, `refresh_reviews` and `read_reviews`."""

    @pytest.fixture
    def reviews(self, warehouse: Warehouse) -> Any:
        """Return the warehouse, as one that keeps a review table."""
        if not isinstance(warehouse, KeepsReviews):
            pytest.skip("it keeps no review table")
        return warehouse

    @pytest.fixture
    def reviewing(self, reviews: Any) -> Any:
        """Return the same with its three tables. What is made twice stays as it is."""
        target = reviewed_labels()
        reviews.prepare(target)
        for _ in range(2):
            reviews.prepare_reviews(target)
        return reviews

    def test_dead_rows_come_in_once_and_the_others_do_not(
        self, database: BenchDatabase, reviewing: Any
    ) -> None:
        target = reviewed_labels()
        land(reviewing, target, part(), [{"id": 1, "label": "bug"}], [dead(2), dead(3, _llm_dead=False)])

        for _ in range(2):
            reviewing.refresh_reviews(target)

        (row,) = rows_of(database, REVIEW)
        wanted = {
            "id": 2,
            "subject": "subject 2",
            "label": None,
            "reviewed_by": None,
            "reviewed_at": None,
            "_llm_outcome": "refused",
            "_llm_error_code": "refusal",
            "_llm_run_id": "run-1",
            "_llm_input_hash": "input",
            "_llm_spec_hash": "spec",
        }
        assert {name: row[name] for name in wanted} == wanted
        assert reviewing.read_reviews(target).read_all().num_rows == 0

    def test_a_row_leaves_once_its_key_is_answered_by_the_same_plan_or_a_later_one(
        self, database: BenchDatabase, reviewing: Any
    ) -> None:
        target = reviewed_labels()
        land(reviewing, target, part(), [{"id": 3, "label": "older"}])
        failed = [dead(key, _llm_planned_at=at(10)) for key in (1, 2, 3)]
        land(reviewing, target, part(1), [], failed)
        reviewing.refresh_reviews(target)
        assert [row["id"] for row in rows_of(database, REVIEW)] == [1, 2, 3]

        answers = [
            {"id": 1, "label": "bug", "_llm_planned_at": at(10)},
            {"id": 2, "label": "bug", "_llm_planned_at": at(20)},
        ]
        land(reviewing, target, part(2), answers)
        reviewing.refresh_reviews(target)

        assert [row["id"] for row in rows_of(database, REVIEW)] == [3]

    def test_a_row_without_a_reviewer_follows_its_failure(
        self, database: BenchDatabase, reviewing: Any
    ) -> None:
        target = reviewed_labels()
        land(reviewing, target, part(), [], [dead(1), dead(2), dead(3)])
        reviewing.refresh_reviews(target)

        later = {"_llm_planned_at": at(5), "_llm_input_hash": "another"}
        land(reviewing, target, part(1), [], [dead(1, **later), dead(2, **later, _llm_dead=False)])
        reviewing.refresh_reviews(target)

        found = [(row["id"], row["_llm_input_hash"]) for row in rows_of(database, REVIEW)]
        assert found == [(1, "another"), (3, "input")]

    def test_a_row_with_a_reviewer_stays_as_it_is_until_it_is_answered(
        self, database: BenchDatabase, reviews: Any
    ) -> None:
        target = reviewed_labels()
        fill(database, target, [{"id": 1, "label": "bug", "reviewed_by": "ada"}])
        reviews.prepare(target)
        reviews.prepare_reviews(target)
        land(reviews, target, part(), [], [dead(1, _llm_planned_at=at(5))])

        reviews.refresh_reviews(target)

        (row,) = rows_of(database, REVIEW)
        assert (row["label"], row["reviewed_by"], row["_llm_input_hash"]) == ("bug", "ada", "input")
        (read,) = reviews.read_reviews(target).read_all().to_pylist()
        if isinstance(reviews, SharesFile):
            reviews.release()
        assert (read["id"], read["label"], read["_llm_planned_at"]) == (1, "bug", START)

        land(reviews, target, part(1), [{"id": 1, "label": "bug"}])
        reviews.refresh_reviews(target)

        (row,) = rows_of(database, REVIEW)  # the failure of the later plan waits now
        assert (row["label"], row["reviewed_by"], row["_llm_planned_at"]) == (None, None, at(5))

    def test_what_people_fill_in_is_read_as_an_answer(self, database: BenchDatabase, reviews: Any) -> None:
        target = reviewed_labels(answer=answer_schema(ANSWER.columns))
        parser = HumanAnswerParser.of(ANSWER)
        typed = parser.parse(
            ("bug", 2**53 + 1, 0.5, 12.5, True, "2026-03-01T12:30:00Z", "2026-03-01", '["a","b"]', None)
        )
        assert isinstance(typed, Answer)
        values = dict(zip(target.answer.names, typed.values, strict=True))
        fill(database, target, [{"id": 1, "reviewed_by": "ada", "reviewed_at": at(7), **values}, {"id": 2}])
        reviews.prepare(target)
        reviews.prepare_reviews(target)

        (row,) = reviews.read_reviews(target).read_all().to_pylist()

        assert parser.parse([row[name] for name in target.answer.names]) == typed
        reviewed_at = row["reviewed_at"]  # text where a column holds anything
        reviewed_at = datetime.fromisoformat(reviewed_at) if isinstance(reviewed_at, str) else reviewed_at
        assert (row["id"], row["reviewed_by"], reviewed_at) == (1, "ada", at(7))

    def test_a_run_merges_what_people_have_answered(
        self, database: BenchDatabase, reviews: Any, running: Simulator, tmp_path: Path
    ) -> None:
        tickets = pa.table(
            {"id": pa.array([1, 2, 3], pa.int64()), "subject": ["a", "b", "c"], "body": ["x", "y", "refused"]}
        )
        database.seed("tickets", tickets)
        rows = [
            {"id": 1, "label": "bug", "reviewed_by": "ada"},
            {"id": 9, "label": "?", "reviewed_by": "ada"},
        ]
        fill(database, reviewed_labels(review=f"{TARGET}__review"), rows)
        reviews.close()
        stage = WholeStage(
            simulator=running,
            folder=tmp_path / "reviewed",
            open=database.open,
            source=Source(table="tickets"),
            key=("id",),
            carry=("subject",),
            guards=Guards(min_success_ratio=0, on_exhausted=Exhausted.REVIEW),
            only=Only.NEW,
        )

        report = stage.complete("first").report

        assert (report.reviewed, report.why) == (1, {"new": 2, "answered": 1})
        (merged, asked) = rows_of(database, TARGET)
        wanted = {
            "id": 1,
            "subject": "a subject",
            "label": "bug",
            "_llm_model": "human:ada",
            "_llm_cost_usd": 0,
        }
        assert {name: merged[name] for name in wanted} == wanted
        assert merged["_llm_planned_at"] == START
        assert asked["id"] == 2
        left = [(row["id"], row["reviewed_by"]) for row in rows_of(database, f"{TARGET}__review")]
        assert left == [(3, None), (9, "ada")]

    def test_a_review_table_that_does_not_fit_is_refused(self, database: BenchDatabase, reviews: Any) -> None:
        target = reviewed_labels()
        database.make(REVIEW, pa.schema([("id", pa.int64()), ("reviewed_by", pa.int64())]), {})
        reviews.prepare(target)

        with pytest.raises(TargetError, match=f"{REVIEW} does not fit: reviewed_by"):
            reviews.prepare_reviews(target)


def fill(database: BenchDatabase, target: Target, rows: list[dict[str, Any]]) -> None:
    """Make a review table with these rows, of which those with a reviewer are answered."""
    told = {
        "subject": "a subject",
        "_llm_outcome": "refused",
        "_llm_run_id": "run-1",
        "_llm_input_hash": "input",
        "_llm_spec_hash": "spec",
        "_llm_planned_at": START,
    }
    filled = batch(target.review_columns, [{**told, **row} for row in rows])
    database.seed(target.review or REVIEW, pa.Table.from_batches([filled]))


LEDGER = "llm_usage"


def spent(usage_id: str, usd: float | None, **changes: Any) -> dict[str, Any]:
    """Return one row of a ledger. What is not said is NULL, as for a run of the command line."""
    told = {
        "run_id": "dag/täsk/run/g1",
        "round": 1,
        "requests": 2**53 + 1,
        "rows_succeeded": 7,
        "usd": usd,
        "started_at": START,
        "ended_at": at(60.25),
    }
    return {USAGE_KEY: usage_id, **told, **changes}


class WritesLedgers:
    """The contract of `write_records`."""

    @pytest.fixture
    def ledger(self, warehouse: Warehouse) -> Any:
        """Return the warehouse, as one that keeps a ledger."""
        if not isinstance(warehouse, WritesRecords):
            pytest.skip("it keeps no ledger")
        return warehouse

    def test_a_row_is_written_once_and_replaced_by_itself_alone(
        self, database: BenchDatabase, ledger: Any
    ) -> None:
        first = batch(USAGE_COLUMNS, [spent("a", 0.1), spent("b", 0.25, team="it's", round=2)])
        for _ in range(2):
            ledger.write_records(LEDGER, first)
        ledger.write_records(LEDGER, batch(USAGE_COLUMNS, [spent("a", 1e-6, ended_at=None), spent("A", 3.5)]))
        unended = ledger.read(
            Source(sql=f"SELECT {USAGE_KEY} FROM {LEDGER} WHERE ended_at IS NULL")
        ).read_all()
        ledger.close()

        found = {row[USAGE_KEY]: row for row in rows_of(database, LEDGER)}

        assert unended.to_pylist() == [{USAGE_KEY: "a"}]
        assert {key: row["usd"] for key, row in found.items()} == {"a": 1e-6, "b": 0.25, "A": 3.5}
        assert set(next(iter(found.values()))) == set(USAGE_COLUMNS.names)
        row = found["b"]
        wanted = {"run_id": "dag/täsk/run/g1", "round": 2, "team": "it's", "requests": 2**53 + 1}
        assert {name: row[name] for name in wanted} == wanted
        assert [row["dag_id"], row["map_index"], row["saved_usd"]] == [None, None, None]
        assert [_utc(row[name]) for name in ("started_at", "ended_at")] == [START, at(60.25)]

    def test_a_ledger_of_an_earlier_release_gets_the_columns_that_it_lacks(
        self, database: BenchDatabase, ledger: Any
    ) -> None:
        few = pa.schema([USAGE_COLUMNS.field(name) for name in (USAGE_KEY, "run_id", "usd")])
        old = pa.table({USAGE_KEY: ["old"], "run_id": ["r"], "usd": [2.0], "note": ["by hand"]})
        database.seed(LEDGER, old.cast(pa.schema([*few, ("note", pa.string())])))

        ledger.write_records(LEDGER, batch(USAGE_COLUMNS, [spent("new", 0.5)]))
        ledger.close()

        found = {row[USAGE_KEY]: row for row in rows_of(database, LEDGER)}
        assert {key: row["usd"] for key, row in found.items()} == {"old": 2.0, "new": 0.5}
        assert (found["old"]["note"], found["new"]["rows_succeeded"]) == ("by hand", 7)


def _utc(moment: Any) -> Any:
    """Return a time as an instant; some databases give UTC's wall clock."""
    return moment if moment.tzinfo else moment.replace(tzinfo=START.tzinfo)
