"""The view of one run."""

import time
from typing import Any

from airflow_batch_llm.plugins.page.charts import timeline
from airflow_batch_llm.plugins.page.reading import Reader
from airflow_batch_llm.plugins.page.runs import progress, run_link, task_link
from airflow_batch_llm.stage.inspection import Inspected
from airflow_batch_llm.stage.records.run_index import RunRecord

_EXPECTED = (
    ("rows", "rows", "count"),
    ("requests", "requests", "count"),
    ("input_tokens", "input tokens", "count"),
    ("output_tokens", "output tokens", "count"),
    ("usd", "dollars", "dollars"),
)


def shown(reader: Reader, record: RunRecord) -> dict[str, Any]:
    """Return what the view of one run shows."""
    now = time.time()
    run = reader.inspected(record)
    total = sum(run.outcomes.values())
    return {
        "record": record,
        "run": run,
        "progress": progress(run, record, now),
        "live": run_link(record, "progress") if run.verdict is None else "",
        "task": task_link(record),
        "evaluation": run_link(record, "evaluation") if reader.evaluation(record) is not None else "",
        "others": reader.others(record),
        "link": run_link,
        "chart": timeline(run, now),
        "outcomes": [(name, count, round(100 * count / total, 1)) for name, count in run.outcomes.items()],
        "compared": _compared(run),
        "now": now,
    }


def _compared(run: Inspected) -> list[tuple[str, str, float | None, float]]:
    """Return what was estimated beside what has become of it, with the form of the numbers."""
    actual = {
        "rows": sum(run.outcomes.values()),
        "requests": run.requests,
        **{name: run.usage.get(name, 0) for name in ("input_tokens", "output_tokens")},
        "usd": run.spent_usd,
    }
    return [(words, form, run.estimate.get(name), actual[name]) for name, words, form in _EXPECTED]
