"""The view of spending: by day, by Dag and by model, from the ledger or from the names of the index."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from airflow_batch_llm.plugins.page.access import Sight
from airflow_batch_llm.plugins.page.charts import days, shares
from airflow_batch_llm.plugins.page.reading import Reader, Spending
from airflow_batch_llm.stage.records.run_index import RunState, index_name

SPANS = (30, 90, 365)
_MOST_LINES = 20
_OTHERS = "others"


def spent(reader: Reader, sight: Sight, dag_id: str, span: int) -> dict[str, Any]:
    """Return what the view of spending shows: of the ledger if one is configured and can be read, else of the index."""
    last = datetime.fromtimestamp(time.time(), UTC).date()
    first = last - timedelta(days=span - 1)
    ledger = reader.ledger()
    is_read = ledger is not None and ledger.is_read
    found = _in_ledger(ledger.rows, sight) if ledger and is_read else _in_index(reader, sight, span)
    seen = [one for one in found if first <= one.day <= last]
    chosen = [one for one in seen if not dag_id or one.dag_id == dag_id]
    by_day: dict[date, float] = defaultdict(float)
    for one in chosen:
        by_day[one.day] += one.usd
    total, rows = sum(one.usd for one in chosen), sum(one.rows for one in chosen)
    return {
        "ledger": ledger,
        "is_read": is_read,
        "span": span,
        "spans": SPANS,
        "dag_id": dag_id,
        "dags": sorted({one.dag_id for one in seen} & sight.dag_ids),
        "runs": len({one.run for one in chosen}),
        "rows": rows,
        "total": total,
        "per_thousand": 1000 * total / rows if rows else None,
        "highest": max(by_day.values(), default=0.0),
        "chart": days(by_day, first, last),
        "by_dag": _lines(chosen, lambda one: one.dag_id or "command line"),
        "by_model": _lines(chosen, lambda one: one.model),
        "budgets": reader.budgets() if sight.commands else [],
        "by_day": sorted(by_day.items(), reverse=True),
    }


def _in_ledger(rows: Iterable[Spending], sight: Sight) -> list[Spending]:
    return [one for one in rows if (one.dag_id in sight.dag_ids if one.dag_id else sight.commands)]


def _in_index(reader: Reader, sight: Sight, span: int) -> list[Spending]:
    """Return the runs that have ended, from the names of the index alone."""
    names = {index_name(one): one for one in sight.dag_ids}
    return [
        Spending(
            run=run.file,
            dag_id=names.get(run.dag, run.dag),
            day=run.day,
            model=run.model,
            usd=run.usd,
            rows=run.rows,
        )
        for run in sight.seen(list(reader.listing(span).runs))
        if run.state is not RunState.BEGUN
    ]


def _lines(found: Iterable[Spending], name: Callable[[Spending], str]) -> list[tuple[str, float, float, int]]:
    """Return dollars, their share of the largest, and runs for each name; the smallest together."""
    dollars: dict[str, float] = defaultdict(float)
    runs: dict[str, set[str]] = defaultdict(set)
    for one in found:
        dollars[name(one)] += one.usd
        runs[name(one)].add(one.run)
    ordered = sorted(dollars, key=lambda one: (-dollars[one], one))
    kept, rest = ordered[:_MOST_LINES], ordered[_MOST_LINES:]
    amounts = [(one, dollars[one]) for one in kept]
    if rest:
        amounts.append((_OTHERS, sum(dollars[one] for one in rest)))
        runs[_OTHERS] = set[str]().union(*(runs[one] for one in rest))
    return [(one, amount, share, len(runs[one])) for one, amount, share in shares(amounts)]
