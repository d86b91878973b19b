"""Say that a task waits in the triggerer, and that none is alive where Airflow's health page tells so.

Workers have no access to Airflow's database. The health page is public and asks for no key.
"""

from typing import Any

from airflow.providers.common.compat.sdk import conf

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
    """Return the URL of the health page if it reports no triggerer that is alive. None: one is, or nobody knows."""
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
