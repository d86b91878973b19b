"""Count the rows that wait in a table or a query, and decide if they are enough to start a run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.hooks.arguments import check_params, one_of
from airflow_batch_llm.hooks.warehouse import warehouse


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingRows:
    """The rows to count, and the number or age that is enough."""

    conn_id: str
    query: str  # what stands after FROM: a SELECT in brackets, or a table's name
    min_rows: int
    since: str | None = None  # the column, or expression, that says since when a row waits
    max_age: float | None = None  # seconds
    hook_params: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def query_of(sql: str | None, table: str | None) -> str:
        """Return what stands after FROM."""
        return table or f"({(sql or '').rstrip().rstrip(';')}\n)"  # a comment may end the query

    def to_json(self) -> dict[str, Any]:
        """For the triggerer."""
        return asdict(self)

    def count(self) -> "Waiting":
        """Ask the database. It blocks."""
        from airflow_batch_llm.core.settings import Source

        oldest = self.since or "NULL"
        database = warehouse(self.conn_id, self.hook_params, argument="conn_id")
        try:
            counted = database.read(
                Source(sql=f"SELECT count(*) AS n, min({oldest}) AS oldest FROM {self.query} waiting")
            ).read_all()
        finally:
            database.close()
        (row,) = counted.to_pylist()
        return Waiting(rows=int(row["n"]), oldest=_moment(row["oldest"]))

    def is_enough(self, waiting: "Waiting", now: float) -> bool:
        """Return whether there are enough rows, or one has waited long enough."""
        if waiting.rows >= self.min_rows:
            return True
        if self.max_age is None or waiting.oldest is None:
            return False
        return waiting.rows > 0 and now - waiting.oldest >= self.max_age

    def is_due(self, waiting: "Waiting", now: float, last: "LastEvent | None", repeat_after: float) -> bool:
        """Return whether there are enough rows for an event after the last one, which may not have been dealt with yet."""
        if not self.is_enough(waiting, now):
            return False
        return last is None or waiting.rows >= last.least + self.min_rows or now - last.at >= repeat_after

    def after(self, waiting: "Waiting", now: float, last: "LastEvent | None") -> "LastEvent | None":
        """Return the last event, as far as it still counts after a look that led to no event."""
        if last is None or not self.is_enough(waiting, now):
            return None
        return replace(last, least=min(last.least, waiting.rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class LastEvent:
    """The last event of a watcher, and the least number of rows that has waited since."""

    at: float
    least: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """The rows that wait, and since when the oldest does, in seconds since the epoch."""

    rows: int
    oldest: float | None


def check_pending(
    *,
    sql: str | None,
    table: str | None,
    since: str | None,
    max_age: object,
    hook_params: Mapping[str, Any] | None,
) -> None:
    """Refuse, while the Dag is read, arguments that do not fit together."""
    one_of(sql=sql, table=table)
    check_params(hook_params=hook_params)
    if max_age is not None and since is None:
        raise InputError("since is missing: max_age needs the column that says since when a row waits.")


def _moment(value: Any) -> float | None:
    """A day counts from its begin, a time without a zone as UTC; SQLite has only text."""
    if value is None:
        return None
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    return float((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
