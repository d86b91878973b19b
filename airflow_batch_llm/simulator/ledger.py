"""Record what was bought, and add it up."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import orjson

from airflow_batch_llm.simulator.database import LIVE, Charge, Database, Phase, Provider, open_connection

_TOKENS = ("input", "cached", "cache_write", "output", "reasoning")
_SUMS = ", ".join(f"coalesce(sum(c.{name}), 0)" for name in _TOKENS)
_FROM = "FROM charges c JOIN batches b ON b.seq = c.batch WHERE b.provider = ?"


def report(database: Database) -> dict[str, Any]:
    """The ledger of every provider."""
    with closing(open_connection(database.path)) as connection:
        return {provider.value: _provider(connection, provider) for provider in Provider}


def _provider(connection: Any, provider: Provider) -> dict[str, Any]:
    def ask(sql: str) -> list[Any]:
        return connection.execute(sql, (provider,)).fetchall()  # type: ignore[no-any-return]

    batches = ask("SELECT id, phase FROM batches WHERE provider = ? ORDER BY seq")
    outcomes = dict(ask(f"SELECT outcome, count(*) {_FROM} GROUP BY outcome"))
    models = ask(f"SELECT c.model, count(*), {_SUMS} {_FROM} AND charged GROUP BY c.model")
    by_model = {
        model: {"rows": rows, **dict(zip(_TOKENS, sums, strict=True))} for model, rows, *sums in models
    }
    contents, surplus = ask(
        "SELECT count(*), coalesce(sum(n - 1), 0) FROM "
        f"(SELECT count(*) AS n {_FROM} AND charged GROUP BY c.content HAVING n > 1)"
    )[0]
    calls: dict[str, dict[str, int]] = {}
    for endpoint, status, n in ask("SELECT endpoint, status, n FROM calls WHERE provider = ?"):
        calls.setdefault(endpoint, {})[str(status)] = n
    executed = sum(outcomes.get(outcome, 0) for outcome in ("succeeded", "errored"))
    return {
        "batches": [batch_id for batch_id, _ in batches],
        "running": [batch_id for batch_id, phase in batches if Phase(phase) in LIVE],
        "rows": {
            "executed": executed,
            "charged": sum(part["rows"] for part in by_model.values()),
            **outcomes,
        },
        "tokens": {name: sum(part[name] for part in by_model.values()) for name in _TOKENS},
        "by_model": by_model,
        "duplicates": {"contents": contents, "surplus_charges": surplus},
        "calls": {endpoint: sum(statuses.values()) for endpoint, statuses in calls.items()},
        "answers": calls,
    }


def charges(database: Database, filters: Mapping[str, str]) -> Iterator[bytes]:
    """The executed rows as JSON lines: all, or those of a `provider`, `batch`, `custom_id` or repeated `content`."""
    where, values = _condition(filters)
    names = ", ".join(f"c.{name}" for name in Charge._fields)
    sql = f"SELECT b.provider, b.id, {names} FROM charges c JOIN batches b ON b.seq = c.batch {where}"
    with closing(open_connection(database.path)) as connection:
        for provider, batch_id, *fields in connection.execute(sql, values):
            row = dict(zip(Charge._fields, fields, strict=True))
            row["content"] = row["content"].hex()
            yield orjson.dumps({"provider": provider, "batch": batch_id, **row}) + b"\n"


def _condition(filters: Mapping[str, str]) -> tuple[str, Sequence[Any]]:
    columns = {"provider": "b.provider", "batch": "b.id", "custom_id": "c.custom_id", "outcome": "c.outcome"}
    parts = [f"{columns[name]} = ?" for name in filters if name in columns]
    values: list[Any] = [filters[name] for name in filters if name in columns]
    if "content" in filters:
        parts.append("c.content = ?")
        values.append(bytes.fromhex(filters["content"]))
    if filters.get("duplicates") == "true":
        parts.append(
            "c.charged AND c.content IN (SELECT content FROM charges WHERE charged GROUP BY content HAVING count(*) > 1)"
        )
    return ("WHERE " + " AND ".join(parts) if parts else ""), values
