"""The view of spending: by day, by Dag and by model, of runs that have ended, from the names of the index alone."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from airflow_batch_llm.plugins.page.access import Sight
from airflow_batch_llm.plugins.page.charts import days, shares
from airflow_batch_llm.plugins.page.reading import Reader
from airflow_batch_llm.stage.records.run_index import IndexedRun, RunState, index_name

SPANS = (30, 90, 365)
_MOST_LINES = 20
_OTHERS = "others"


def spent(reader: Reader, sight: Sight, dag_id: str, span: int) -> dict[str, Any]:
    """Return what the view of spending shows."""
    last = datetime.fromtimestamp(time.time(), UTC).date()
    first = last - timedelta(days=span - 1)
    listed = reader.listing(span).runs
    ended = [
        run
        for run in sight.seen(list(listed))
        if run.state is not RunState.BEGUN and first <= run.day <= last
    ]
    names = {index_name(one): one for one in sight.dag_ids}
    chosen = [run for run in ended if not dag_id or run.dag == index_name(dag_id)]
    by_day: dict[date, float] = defaultdict(float)
    for run in chosen:
        by_day[run.day] += run.usd
    total, rows = sum(run.usd for run in chosen), sum(run.rows for run in chosen)
    return {
        "span": span,
        "spans": SPANS,
        "dag_id": dag_id,
        "dags": sorted({names[run.dag] for run in ended if run.dag in names}),
        "runs": len(chosen),
        "rows": rows,
        "total": total,
        "per_thousand": 1000 * total / rows if rows else None,
        "highest": max(by_day.values(), default=0.0),
        "chart": days(by_day, first, last),
        "by_dag": _lines(chosen, lambda run: names.get(run.dag, run.dag) or "command line"),
        "by_model": _lines(chosen, lambda run: run.model),
        "budgets": reader.budgets() if sight.commands else [],
        "by_day": sorted(by_day.items(), reverse=True),
    }


def _lines(
    runs: Iterable[IndexedRun], name: Callable[[IndexedRun], str]
) -> list[tuple[str, float, float, int]]:
    """Return dollars, their share of the largest, and runs for each name; the smallest together."""
    dollars: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for run in runs:
        dollars[name(run)] += run.usd
        counts[name(run)] += 1
    ordered = sorted(dollars, key=lambda one: (-dollars[one], one))
    kept, rest = ordered[:_MOST_LINES], ordered[_MOST_LINES:]
    amounts = [(one, dollars[one]) for one in kept]
    if rest:
        amounts.append((_OTHERS, sum(dollars[one] for one in rest)))
        counts[_OTHERS] = sum(counts[one] for one in rest)
    return [(one, amount, share, counts[one]) for one, amount, share in shares(amounts)]
