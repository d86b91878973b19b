"""Record what was bought, and add it up.

The sums are over all ways to ask; `ways` divides what was charged among them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import orjson

from airflow_batch_llm.simulator.database import (
    LIVE,
    BatchPhase,
    BilledUsage,
    BilledWay,
    Charge,
    Database,
    open_connection,
)

_SUMS = ", ".join(f"coalesce(sum({name}), 0)" for name in BilledUsage._fields)
_FROM = "FROM answers WHERE provider = ?"


def report(database: Database, providers: Iterable[str]) -> dict[str, Any]:
    """Return the ledger of each provider."""
    with closing(open_connection(database.path)) as connection:
        return {provider: _provider(connection, provider) for provider in providers}


def _provider(connection: Any, provider: str) -> dict[str, Any]:
    def ask(sql: str) -> list[Any]:
        return connection.execute(sql, (provider,)).fetchall()  # type: ignore[no-any-return]

    batches = ask("SELECT id, phase FROM batches WHERE provider = ? ORDER BY seq")
    outcomes = dict(ask(f"SELECT outcome, count(*) {_FROM} GROUP BY outcome"))
    charged = ask(f"SELECT way, model, count(*), {_SUMS} {_FROM} AND charged GROUP BY way, model")
    bill = _bill(charged)
    contents, surplus = ask(
        "SELECT count(*), coalesce(sum(n - 1), 0) FROM "
        f"(SELECT count(*) AS n {_FROM} AND charged GROUP BY content HAVING n > 1)"
    )[0]
    calls: dict[str, dict[str, int]] = {}
    for endpoint, status, n in ask("SELECT endpoint, status, n FROM calls WHERE provider = ?"):
        calls.setdefault(endpoint, {})[str(status)] = n
    executed = sum(outcomes.get(outcome, 0) for outcome in ("succeeded", "errored"))
    return {
        "batches": [batch_id for batch_id, _ in batches],
        "running": [batch_id for batch_id, phase in batches if BatchPhase(phase) in LIVE],
        "rows": {"executed": executed, "charged": bill["rows"], **outcomes},
        "tokens": bill["tokens"],
        "by_model": bill["by_model"],
        "ways": {way.value: _bill(line for line in charged if line[0] == way) for way in BilledWay},
        "duplicates": {"contents": contents, "surplus_charges": surplus},
        "calls": {endpoint: sum(statuses.values()) for endpoint, statuses in calls.items()},
        "answers": calls,
    }


def _bill(charged: Iterable[Sequence[Any]]) -> dict[str, Any]:
    """Rows and tokens, in sum and per model, of lines of way, model, rows and tokens."""
    by_model: dict[str, dict[str, int]] = {}
    for _, model, rows, *tokens in charged:
        part = by_model.setdefault(model, dict.fromkeys(("rows", *BilledUsage._fields), 0))
        for name, count in zip(part, (rows, *tokens), strict=True):
            part[name] += count
    return {
        "rows": sum(part["rows"] for part in by_model.values()),
        "tokens": {name: sum(part[name] for part in by_model.values()) for name in BilledUsage._fields},
        "by_model": by_model,
    }


def charges(database: Database, filters: Mapping[str, str]) -> Iterator[bytes]:
    """The answers as JSON lines: all, or by `provider`, `way`, `batch`, `custom_id`, `outcome` or `content`.

    `duplicates` leaves those whose content was charged more than once.
    """
    where, values = _condition(filters)
    names = ("provider", "batch", "way", *Charge._fields)
    with closing(open_connection(database.path)) as connection:
        for fields in connection.execute(f"SELECT {', '.join(names)} FROM answers {where}", values):
            row = dict(zip(names, fields, strict=True))
            row["content"] = row["content"].hex()
            yield orjson.dumps(row) + b"\n"


def _condition(filters: Mapping[str, str]) -> tuple[str, Sequence[Any]]:
    known = [name for name in filters if name in ("provider", "way", "batch", "custom_id", "outcome")]
    parts = [f"{name} = ?" for name in known]
    values: list[Any] = [filters[name] for name in known]
    if "content" in filters:
        parts.append("content = ?")
        values.append(bytes.fromhex(filters["content"]))
    if filters.get("duplicates") == "true":
        parts.append(
            "charged AND content IN (SELECT content FROM answers WHERE charged GROUP BY content HAVING count(*) > 1)"
        )
    return ("WHERE " + " AND ".join(parts) if parts else ""), values
