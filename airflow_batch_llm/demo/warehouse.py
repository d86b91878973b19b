"""The example Dags' tickets, the DuckDB file that holds them, and the simulator's answers to them.

The tickets look like those of a real inbox: repeated, empty, in several languages, with odd characters. They are the same
in every run. Only the days move, since the newest tickets are always of today.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

from airflow_batch_llm.simulator.answers import Draw, conforming, phrase
from airflow_batch_llm.simulator.request import AskedRequest

_TOPICS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "bug": ("crash", "hangs", "bug"),
        "account": ("log in", "2fa", "iniciar sesión", "ログイン"),
        "billing": ("charged", "invoice", "vat number", "rechnung"),
        "delivery": ("my order", "parcel", "colis", "the box"),
        "cancellation": ("cancel", "kündigen"),
        "wish": ("feature", "dark mode"),
    }
)
_URGENT = ("urgent", "as soon as possible", "至急", "hurry")
_LANGUAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"de": ("bitte", "guten tag"), "fr": ("bonjour",), "es": ("hola",), "ja": ("ください",)}
)


def respond(request: AskedRequest) -> Any:
    """Return an answer that fits the schema, and the ticket where it is one."""
    if request.schema is None:
        return f"{phrase(Draw(request.seed), 6).capitalize()}."
    answer = conforming(request.schema, request.seed)
    if isinstance(answer, dict):
        answer |= {
            name: value for name, value in _read(request.prompt).items() if _fits(request.schema, name, value)
        }
    return answer


def _read(prompt: str) -> dict[str, str]:
    text = prompt.lower()
    return {
        "topic": _first(_TOPICS, text, "other"),
        "urgency": "high" if any(word in text for word in _URGENT) else "normal",
        "language": _first(_LANGUAGES, text, "en"),
    }


def topic_of(ticket: "SupportTicket") -> str:
    """Return the topic that a person would give the ticket."""
    return _first(_TOPICS, f"{ticket.subject} {ticket.body}".lower(), "other")


def _first(words: Mapping[str, tuple[str, ...]], text: str, otherwise: str) -> str:
    return next((name for name, some in words.items() if any(word in text for word in some)), otherwise)


def _fits(schema: Mapping[str, Any], name: str, value: str) -> bool:
    wanted = schema.get("properties", {}).get(name)
    return wanted is not None and value in wanted.get("enum", ())


DAYS = 3  # the number of days on which the tickets arrived
_SEED = 20260117
_REPEATED = 0.08  # the share of tickets that say what another has said already
_EMPTY = 0.02  # without a text
_UNTITLED = 0.03  # without a subject


@dataclass(frozen=True, slots=True)
class SupportTicket:
    """A row of `support.tickets`."""

    ticket_id: int
    day: date
    customer: str
    subject: str | None
    body: str | None


_PROBLEMS = (
    (
        "Charged twice for {month}",
        "My card was charged twice for {month}, {amount} each. Please refund one of the charges.",
    ),
    (
        "Invoice {number} is wrong",
        "The invoice {number} shows {amount}, but we agreed on less. Who can correct this?",
    ),
    (
        "VAT number missing",
        "Our accountant needs the VAT number on invoice {number}. Could you send it again?",
    ),
    (
        "{product} crashes on start",
        "Since the update, {product} crashes right after the splash screen. Error code {number}.",
    ),
    (
        "Export hangs",
        "The CSV export in {product} hangs at 99 %. I have tried three times, also in another browser.",
    ),
    (
        "Wrong totals in the report",
        "The report in {product} counts {number} twice. It looks like a bug in the filter.",
    ),
    ("Cannot log in", "I cannot log in since this morning. The reset mail for {customer} never arrives."),
    ("2FA code rejected", "The app says my code is invalid. I have a demo in an hour, this is URGENT!!!"),
    (
        "Locked out",
        "Our admin left the company and now nobody can log in to {product}. Please help as soon as possible.",
    ),
    (
        "Where is my order {number}?",
        "The parcel {number} should have been here in {month}. The tracking page shows nothing.",
    ),
    (
        "Parcel damaged",
        "The box arrived crushed, and the {product} inside has a dent. I would like a replacement.",
    ),
    ("Dark mode, please", "It would be great if {product} had a dark mode. My eyes would thank you."),
    ("Feature request: API for tags", "Could {product} offer an API for tags? We would pay for it."),
    (
        "Please cancel my subscription",
        "I want to cancel {product} by the end of {month}. Please confirm in writing.",
    ),
    ("Abonnement kündigen", "Bitte kündigen Sie mein Abo für {product} zum nächsten Termin. Grüße aus Köln"),
    (
        "Rechnung {number}",
        "Guten Tag, auf der Rechnung {number} fehlt unsere Bestellnummer. Können Sie das ändern?",
    ),
    ("Colis perdu", "Bonjour, mon colis {number} n'est jamais arrivé… Où est-il passé ?"),
    ("No puedo entrar", "Hola, no puedo iniciar sesión en {product} desde ayer. ¿Me ayudan?"),
    ("ログインできません", "{product}にログインできません。至急ご確認ください。"),
    ("Thank you!", "No question at all, {product} is lovely. Greetings to the whole team 🎉"),
)
_ENDINGS = (
    "",
    "",
    "",
    " Thanks, {customer}",
    "\n\n--\n{customer}\nSent from my phone",
    "\n\n> On Monday you wrote:\n> We are looking into it.\nAny news?",
    " <b>Please hurry</b> &amp; call me back.",
    " (The page says: {{ user.name }} is not defined)",  # braces in the data are text
    "\u2028The second paragraph came by a paste.",  # a line separator that is no line end
    ' "Quoted", \\backslashed\\, tab\tand all.',
    " 🙏🏽👩‍👩‍👧",
)
_PRODUCTS = ("Ledgerly", "Shelfwise", "Notewell", "Timesheet Pro", "Ledgerly für Teams")
_MONTHS = ("January", "February", "March", "April", "May", "June", "October", "November")
_FIRST = (
    "Ada",
    "Bo",
    "Chidi",
    "Dörte",
    "Eşref",
    "Fiona",
    "Guðrún",
    "Håkan",
    "Inés",
    "José",
    "Kwame",
    "Łukasz",
    "Mia",
    "Núria",
)
_LAST = (
    "Abara",
    "Brown",
    "Çelik",
    "D'Angelo",
    "Eriksen",
    "Fischer",
    "García",
    "Huang",
    "Ito",
    "Jansen",
    "Kowalska",
    "O'Neill",
)


def tickets(count: int, today: date) -> Iterator[SupportTicket]:
    """Yield `count` tickets, the newest of today."""
    draw = random.Random(_SEED)  # noqa: S311 - nothing is kept secret by it
    texts: list[tuple[str | None, str | None]] = []
    for number in range(1, count + 1):
        customer = f"{draw.choice(_FIRST)} {draw.choice(_LAST)}"
        if texts and draw.random() < _REPEATED:
            text = draw.choice(texts)
        else:
            text = _text(draw, customer)
            texts.append(text)
        day = today - timedelta(days=(count - number) * DAYS // count)
        yield SupportTicket(number, day, customer, *text)


def _text(draw: random.Random, customer: str) -> tuple[str | None, str | None]:
    subject, body = draw.choice(_PROBLEMS)
    blanks = {
        "product": draw.choice(_PRODUCTS),
        "month": draw.choice(_MONTHS),
        "amount": f"€{draw.randrange(900, 99_900) / 100:.2f}",
        "number": str(draw.randrange(100_000, 999_999)),
        "customer": customer,
    }
    said = _filled(body + draw.choice(_ENDINGS), blanks)
    fate = draw.random()
    if fate < _EMPTY:
        return _filled(subject, blanks), None
    return (None if fate < _EMPTY + _UNTITLED else _filled(subject, blanks)), said


def _filled(text: str, blanks: dict[str, str]) -> str:
    for name, value in blanks.items():
        text = text.replace(f"{{{name}}}", value)
    return text


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
    """Return rows of the warehouse."""
    with _connected(path) as connection:
        return connection.execute(sql, list(parameters)).fetchall()  # type: ignore[no-any-return]


def _connected(path: Path) -> Any:
    import duckdb

    return duckdb.connect(str(path))
