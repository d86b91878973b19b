"""The demo's inbox, and what the simulated model makes of it."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_batch_llm.demo import warehouse
from airflow_batch_llm.demo.command import last_night
from airflow_batch_llm.demo.warehouse import DAYS, respond, tickets
from airflow_batch_llm.simulator.request import AskedRequest

TODAY = date(2026, 11, 21)
SCHEMA = {
    "type": "object",
    "properties": {
        "topic": {"enum": ["account", "billing", "bug", "cancellation", "delivery", "wish", "other"]},
        "urgency": {"enum": ["low", "normal", "high"]},
        "language": {"enum": ["de", "en", "es", "fr", "ja", "other"]},
    },
    "required": ["topic", "urgency", "language"],
    "additionalProperties": False,
}


def asked(prompt: str, schema: dict[str, Any] | None) -> AskedRequest:
    return AskedRequest("anthropic", "messages", "id", "any", "", prompt, schema, None, 1024, {}, 7)


def test_the_same_tickets_come_every_time() -> None:
    assert list(tickets(500, TODAY)) == list(tickets(500, TODAY))


def test_the_inbox_has_what_real_ones_have() -> None:
    found = list(tickets(3_000, TODAY))
    texts = Counter((ticket.subject, ticket.body) for ticket in found)
    bodies = [ticket.body or "" for ticket in found]

    assert len({ticket.ticket_id for ticket in found}) == 3_000
    assert max(texts.values()) > 1
    assert any(ticket.subject is None for ticket in found)
    assert any(ticket.body is None for ticket in found)
    for odd in ("\u2028", "{{ user.name }}", "🎉", "ください", "\t", '"', "\\", "\n"):
        assert any(odd in body for body in bodies), odd
    assert {ticket.day for ticket in found} == {TODAY - timedelta(days=n) for n in range(DAYS)}


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("My card was charged twice", {"topic": "billing", "urgency": "normal", "language": "en"}),
        ("Bitte kündigen Sie", {"topic": "cancellation", "urgency": "normal", "language": "de"}),
        ("I cannot log in, URGENT!", {"topic": "account", "urgency": "high", "language": "en"}),
    ],
)
def test_a_ticket_is_labelled_by_its_words(prompt: str, label: dict[str, str]) -> None:
    assert respond(asked(prompt, SCHEMA)) == label


def test_other_questions_get_answers_that_fit_their_schema() -> None:
    assert respond(asked("anything", {"enum": ["a", "b"]})) in ("a", "b")
    assert isinstance(respond(asked("anything", None)), str)


def test_a_few_customers_write_once_more(tmp_path: Path) -> None:
    path = tmp_path / "warehouse.duckdb"
    warehouse.seed(path, 60, TODAY)
    before = dict(warehouse.ask(path, "SELECT ticket_id, body FROM support.tickets"))

    warehouse.change(path, 3)

    after = dict(warehouse.ask(path, "SELECT ticket_id, body FROM support.tickets"))
    assert sum(before[number] != after[number] for number in before) == 3


def test_the_night_begins_at_two() -> None:
    assert last_night(datetime(2026, 11, 21, 1, 59, tzinfo=UTC)) == date(2026, 11, 20)
    assert last_night(datetime(2026, 11, 21, 2, 0, tzinfo=UTC)) == date(2026, 11, 21)
