"""What Airflow is told about a run that has ended: a report, metrics, and extra on the events of the task's assets."""

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import Stats
from airflow.sdk import Asset, AssetAlias, Context

from airflow_batch_llm.core.model import Outcome

if TYPE_CHECKING:
    from airflow_batch_llm.core.report import Provenance, Report

_log = logging.getLogger(__name__)


def count_metrics(report: "Report", about: "Provenance", tags: Mapping[str, str]) -> None:
    """Rows by outcome, tokens, dollars, waiting time and completion, tagged by dag, task, provider and model.

    Outcomes and kinds of tokens are parts of the names: plain StatsD knows no tags, and would add them up.
    """
    tags = {**tags, "provider": about.provider, "model": about.model}
    for outcome, count in report.final.items():
        Stats.incr(f"batch_llm.rows.{outcome.value}", count, tags=tags)
    for kind, tokens in (("input", report.usage.input_tokens), ("output", report.usage.output_tokens)):
        Stats.incr(f"batch_llm.tokens.{kind}", tokens, tags=tags)
    Stats.gauge("batch_llm.cost_usd", report.spent.cost, tags=tags)
    Stats.gauge("batch_llm.batch_wait_seconds", report.durations.queued + report.durations.running, tags=tags)
    if report.rows:
        ratio = report.final.get(Outcome.SUCCEEDED, 0) / report.rows
        Stats.gauge("batch_llm.completion_ratio", ratio, tags=tags)


def add_to_assets(
    context: Context, outlets: Iterable[object], uri: str | None, extra: Mapping[str, Any]
) -> None:
    """Put `extra` on the event of each asset that the task declares; an alias gets the asset of this URI."""
    events = context["outlet_events"]
    for outlet in outlets:
        if isinstance(outlet, Asset):
            events[outlet].extra.update(extra)
        elif isinstance(outlet, AssetAlias) and uri is not None:
            try:
                asset = Asset(uri)
            except ValueError as error:  # the rows have landed: that the name is short is no reason to fail
                _log.warning("No asset event for %s: %s. Give the target with its schema.", uri, error)
            else:
                events[outlet].add(asset, extra=dict(extra))


def table_uri(database_uri: str, table: str) -> str:
    """The table as Airflow's assets spell it: below its database, a part of the name at a time."""
    base = database_uri.rstrip("/")
    parts = urlsplit(base)
    names_database = table.count(".") == 2 and parts.scheme != "file"
    if names_database and (parts.path or parts.scheme == "bigquery"):
        base = base.rpartition("/")[0]
    return f"{base}/{table.replace('.', '/')}"


def asset_extra(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a Dag that starts on the asset wants to know."""
    return {
        "rows": report["outcomes"].get(Outcome.SUCCEEDED.value, 0),
        "cost_usd": report["cost"]["usd"],
        "report": dict(report),
    }
