"""The DuckDB file that the example Dags read: filled before, changed in between, looked into afterwards."""

from collections.abc import Sequence
from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import Any

from airflow_batch_llm.demo.tickets import SupportTicket, tickets, topic_of

_TABLES = """
CREATE SCHEMA IF NOT EXISTS support;
CREATE SCHEMA IF NOT EXISTS shop;
CREATE OR REPLACE TABLE support.tickets (
    ticket_id INTEGER, day DATE, customer VARCHAR, subject VARCHAR, body VARCHAR
);
CREATE OR REPLACE TABLE support.golden_tickets (
    ticket_id INTEGER, subject VARCHAR, body VARCHAR, expected_topic VARCHAR
);
CREATE OR REPLACE TABLE support.summaries (ticket_id INTEGER, summary VARCHAR);
CREATE OR REPLACE TABLE shop.orders (order_id INTEGER, email VARCHAR);
INSERT INTO shop.orders
SELECT i,
    'Hello, this is ' || ['Ada Abara', 'Bo Brown', 'Chidi Çelik'][1 + i % 3] || ' from ' || ['Oslo', 'Łódź', 'Lyon'][1 + i % 3]
    || '. Please send ' || (1 + i % 7) || ' of article A-' || (1000 + i * 7 % 300) || ' by the ' || (1 + i % 28) || 'th.'
FROM range(1, 41) AS numbers(i);
"""

#: The number of tickets whose topic is known.
_GOLDEN = 200


def seed(path: Path, count: int, today: date) -> None:
    """Make the tables, with `count` tickets."""
    import pyarrow as pa

    rows = list(tickets(count, today))
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(SupportTicket)}
    with _connected(path) as connection:
        connection.execute(_TABLES)
        connection.register("made", pa.table(columns))
        connection.execute("INSERT INTO support.tickets SELECT * FROM made")
        golden = rows[:_GOLDEN]
        connection.register("topics", pa.table({"topic": [topic_of(row) for row in golden]}))
        connection.execute(
            "INSERT INTO support.golden_tickets SELECT ticket_id, subject, body, topic FROM"
            f" (SELECT * FROM made LIMIT {len(golden)}) POSITIONAL JOIN topics"
        )


def change(path: Path, count: int) -> None:
    """Let the customers of a few tickets write once more."""
    with _connected(path) as connection:
        connection.execute(
            "UPDATE support.tickets SET body = coalesce(body, '') || ' PS: ticket ' || ticket_id || ', still waiting!'"
            " WHERE ticket_id IN (SELECT max(ticket_id) - 7 * step FROM support.tickets, range(?) AS steps(step) GROUP BY step)",
            [count],
        )


def ask(path: Path, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """Rows of the warehouse."""
    with _connected(path) as connection:
        return connection.execute(sql, list(parameters)).fetchall()  # type: ignore[no-any-return]


def _connected(path: Path) -> Any:
    import duckdb

    return duckdb.connect(str(path))
