"""Send the metrics that worker and triggerer share, and say that a task waits while no triggerer is alive.

A metric must not fail a run whose rows are paid for, so tags hold only what every backend takes. Workers have no access
to Airflow's database; its health page is public and asks for no key.
"""

import re
from typing import Any

from airflow.providers.common.compat.sdk import Stats, conf

_CHECK = "airflow jobs check --job-type TriggererJob"

#: The page is asked for before a task defers, so it may not hold the task up for long.
_TIMEOUT_SECONDS = 2.0


def tell_of_triggerer(log: Any, *, first: bool) -> None:
    """Log that the task defers now. At its `first` deferral warn if no triggerer is alive, as far as can be known."""
    log.info(
        "The task now waits in the triggerer, which logs each look, and holds no worker slot. If no look follows, check"
        " on the Airflow side that a triggerer is running: %s",
        _CHECK,
    )
    if first and (page := _page_without_triggerer()) is not None:
        log.warning(
            "No triggerer is alive, says %s. Batches go on at the provider, but the task resumes only once a triggerer"
            " runs: start one with `airflow triggerer`, or set deferrable=False.",
            page,
        )


def _page_without_triggerer() -> str | None:
    """Return the URL of the health page if it reports no live triggerer. Returns None if one lives, or if it is not known."""
    base = str(conf.get("api", "base_url", fallback="") or "").rstrip("/")
    if not base.startswith(("http://", "https://")):
        return None
    page = f"{base}/api/v2/monitor/health"
    try:
        import httpx

        told = httpx.get(page, timeout=_TIMEOUT_SECONDS).raise_for_status().json()
        return page if told["triggerer"]["status"] != "healthy" else None
    except Exception:  # noqa: BLE001 - whatever keeps the page from being read says nothing about a triggerer
        return None


#: Plain StatsD ends a name at a colon, and its client sends ASCII only.
_UNSAFE = re.compile(r"[^\w./@+-]", re.ASCII)


def metric_tags(**given: object) -> dict[str, str]:
    """Return these tags, with an underscore for each character that some backend does not take."""
    return {name: _UNSAFE.sub("_", str(value)) for name, value in given.items()}


def gauge_open_since(since: float, *, dag_id: str, task_id: str, map_index: int = -1) -> None:
    """Send the time since which a task has an open run, in seconds since the epoch. 0: it has none."""
    tags = metric_tags(dag_id=dag_id, task_id=task_id)
    if map_index >= 0:
        tags["map_index"] = str(map_index)
    Stats.gauge("batch_llm.open_since", since, tags=tags)
