"""Tell Airflow about a run: the alarm of a long wait, the report, metrics, asset events and lineage."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import Stats
from airflow.sdk import Asset, AssetAlias, Context

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.selection import Reason
from airflow_batch_llm.hooks.handle import RunHandle
from airflow_batch_llm.hooks.monitoring import metric_tags
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.warehouses import dataset, table_uri

if TYPE_CHECKING:
    from airflow_batch_llm.core.evaluation_result import EvaluationResult
    from airflow_batch_llm.core.report import Provenance, Report
    from airflow_batch_llm.stage.land.finishing import Finished
    from airflow_batch_llm.stage.records.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitWarning:
    """Warns once of a long wait, by two records in the run folder: its begin, and that the warning was sent."""

    workspace: Workspace
    handle: RunHandle
    after: float

    def due_at(self, now: float) -> float:
        """Return the time of the warning. The first call starts the clock."""
        self.workspace.create(self._path("waiting"), json.dumps({"since": now}).encode())
        data = self.workspace.read(self._path("waiting"))
        assert data is not None, "it was created here, or before"
        return float(json.loads(data)["since"]) + self.after

    def take(self) -> bool:
        """Return True to exactly one caller."""
        return self.workspace.create(self._path("warned"), b"{}")

    def _path(self, name: str) -> str:
        return f"{self.handle.run}/{name}/{self.handle.max_tries}.json"


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """The URIs of the tables that a run read and wrote, their column names, and the run in numbers."""

    inputs: tuple[str, ...]  # none: not known
    output: str
    columns_used: tuple[str, ...]
    columns_made: tuple[str, ...]
    written: int = 0
    """Rows that the run has merged into its target."""
    usage: Mapping[str, str | int | float] = field(default_factory=dict)
    """The run's provider, model, rows, requests and dollars, by the names of the facet."""


def is_lineage_wanted() -> bool:
    """Return whether Airflow will ask for lineage."""
    return find_spec("airflow.providers.openlineage") is not None


@contextmanager
def unfailing() -> Iterator[None]:
    """Log an error and go on: a run that is paid for must not fail because its lineage cannot be reported."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a connection, a driver, a parser
        _log.warning("The lineage of this task is incomplete (%s).", type(error).__name__)


def planned_lineage(
    plan: "Plan", inputs: tuple[str, ...], database_uri: str, finished: "Finished"
) -> Lineage:
    """Return the lineage of a run from its frozen plan, which holds everything except the source."""
    from airflow_batch_llm.core.prompt import compile_prompt
    from airflow_batch_llm.core.spec import Spec

    spec = Spec.from_json(plan.spec)
    template = spec.prompt.get("template")  # a function is given all columns
    used = () if template is None else compile_prompt(template, spec.prompt_params).columns
    return Lineage(
        inputs=inputs,
        output=table_uri(database_uri, plan.target.table),
        columns_used=(*(used or ()), *(spec.attachments or ())),
        columns_made=tuple(plan.target.answer.names),
        written=_written(finished.report),
        usage=_usage(finished.report, finished.about),
    )


def _written(report: "Report") -> int:
    """Return the rows that a run has merged: good answers, copies of answers, and answers of people."""
    return report.final.get(Outcome.SUCCEEDED, 0) + report.why.get(Reason.REUSED, 0) + report.reviewed


def _usage(report: "Report", about: "Provenance") -> dict[str, str | int | float]:
    """Return a run in numbers. No name holds `token`: Airflow takes the value of such a name for a secret."""
    return {
        "run": about.run_id,
        "provider": about.provider,
        "model": about.model,
        "rows": report.rows,
        "succeeded": report.final.get(Outcome.SUCCEEDED, 0),
        "requests": report.requests,
        "costUsd": round(report.spent.cost, 6),
        "savedUsd": round(report.spent.saved, 6),
    }


#: The schema is `docs/assets/openlineage/BatchLLMUsageRunFacet-1-0-0.json`.
FACET_SCHEMA = "urn:airflow-batch-llm:openlineage:BatchLLMUsageRunFacet:1-0-0"


def to_openlineage(lineages: Iterable[Lineage]) -> Any:
    """Return the facets of these lineages. Airflow asks for them only if its OpenLineage provider is installed."""
    from airflow.providers.common.compat.openlineage.facet import (
        Dataset,
        OutputDataset,
        OutputStatisticsOutputDatasetFacet,
    )
    from airflow.providers.openlineage.extractors import OperatorLineage

    inputs: dict[tuple[str, str], Any] = {}
    outputs: dict[tuple[str, str], Any] = {}
    written: Counter[tuple[str, str]] = Counter()
    runs = []
    for lineage in lineages:
        for namespace, name in map(dataset, lineage.inputs):
            inputs[namespace, name] = Dataset(namespace=namespace, name=name)
        namespace, name = dataset(lineage.output)
        written[namespace, name] += lineage.written
        rows = OutputStatisticsOutputDatasetFacet(rowCount=written[namespace, name])
        outputs[namespace, name] = OutputDataset(
            namespace=namespace,
            name=name,
            facets=_facets(lineage),
            outputFacets={"outputStatistics": rows},
        )
        runs.append(dict(lineage.usage))
    return OperatorLineage(
        inputs=list(inputs.values()),
        outputs=list(outputs.values()),
        run_facets={"batchLLM_usage": _usage_facet(runs)},
    )


def _usage_facet(runs: list[dict[str, str | int | float]]) -> Any:
    """Return the facet with the usage and dollars of a task's runs."""
    from airflow.providers.common.compat.openlineage.facet import RunFacet

    facet: Any = RunFacet().with_additional_properties(runs=runs)
    facet._schemaURL = FACET_SCHEMA
    return facet


def _facets(lineage: Lineage) -> dict[str, Any]:
    """Return the columns that the answers were made of. With several source tables the table of a column is unknown."""
    from airflow.providers.common.compat.openlineage.facet import (
        ColumnLineageDatasetFacet,
        Fields,
        InputField,
    )

    if len(lineage.inputs) != 1 or not lineage.columns_used:
        return {}
    namespace, name = dataset(lineage.inputs[0])
    used = [InputField(namespace=namespace, name=name, field=column) for column in lineage.columns_used]
    fields = {column: Fields(inputFields=used) for column in lineage.columns_made}
    return {"columnLineage": ColumnLineageDatasetFacet(fields=fields)}


_outcome_log = logging.getLogger(__name__)


def count_metrics(report: "Report", about: "Provenance", limit: float | None, **task: str) -> None:
    """Send the numbers of a run that has ended, tagged by Dag, task, provider and model. `limit` is its `max_cost_usd`.

    Outcomes, reasons and kinds of tokens are parts of the names: plain StatsD knows no tags, and would add them up. Where a
    stage has several routes, the good answers and the dollars of each have names of their own, and the route as a tag.
    """
    for name, one in report.routes.items():
        by_route = metric_tags(**task, route=name)
        Stats.incr("batch_llm.route.succeeded", one.succeeded, tags=by_route)
        Stats.gauge("batch_llm.route.cost_usd", one.cost, tags=by_route)
    tags = metric_tags(**task, provider=about.provider, model=about.model)
    for outcome, count in report.final.items():
        Stats.incr(f"batch_llm.rows.{outcome.value}", count, tags=tags)
    for reason, count in report.why.items():
        Stats.incr(f"batch_llm.reasons.{reason}", count, tags=tags)
    for kind, tokens in _tokens(report).items():
        Stats.incr(f"batch_llm.tokens.{kind}", tokens, tags=tags)
    Stats.incr("batch_llm.requests", report.requests, tags=tags)
    Stats.gauge("batch_llm.batch_wait_seconds", report.durations.queued + report.durations.running, tags=tags)
    if report.rows:
        ratio = report.final.get(Outcome.SUCCEEDED, 0) / report.rows
        Stats.gauge("batch_llm.completion_ratio", ratio, tags=tags)
    for column, index in report.drift.items():
        Stats.gauge("batch_llm.drift", index, tags=metric_tags(**tags, column=column))
    if packed := report.packing.get("requests"):
        Stats.gauge("batch_llm.rows_per_request", report.packing["rows"] / packed, tags=tags)
    _count_dollars(report, limit, tags)


def _tokens(report: "Report") -> dict[str, int]:
    usage = report.usage
    return {"input": usage.input_tokens, "cached": usage.cached_tokens, "output": usage.output_tokens}


def _count_dollars(report: "Report", limit: float | None, tags: dict[str, str]) -> None:
    """Send a run's cost. A counter takes whole numbers, so its dollars are in millionths."""
    spent = report.spent
    Stats.incr("batch_llm.spent_micro_usd", round(spent.cost * 1e6), tags=tags)
    Stats.gauge("batch_llm.cost_usd", spent.cost, tags=tags)
    Stats.gauge("batch_llm.saved_usd", spent.saved, tags=tags)
    Stats.gauge("batch_llm.stray_usd", spent.stray_cost, tags=tags)
    if limit:
        Stats.gauge("batch_llm.run_budget_used", spent.cost / limit, tags=tags)


def gauge_budgets(used: Mapping[str, float]) -> None:
    """Send the share of each shared budget that is spent or held, by the budget's name."""
    for name, share in used.items():
        Stats.gauge("batch_llm.budget_used", share, tags=metric_tags(budget=name))


def gauge_evaluation(result: "EvaluationResult", **task: str) -> None:
    """Send the accuracy of each column of an evaluation, and the ends of its interval."""
    provider, _, model = result.subject.model_id.partition(":")
    for one in result.columns:
        tags = metric_tags(**task, provider=provider, model=model, column=one.name)
        Stats.gauge("batch_llm.evaluation.accuracy", one.accuracy, tags=tags)
        Stats.gauge("batch_llm.evaluation.accuracy_low", one.low, tags=tags)
        Stats.gauge("batch_llm.evaluation.accuracy_high", one.high, tags=tags)


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
                _outcome_log.warning(
                    "No asset event for %s: %s. Give the target with its schema.", uri, error
                )
            else:
                events[outlet].add(asset, extra=dict(extra))


def asset_extra(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that a Dag scheduled on the asset needs."""
    return {
        "rows": report["outcomes"].get(Outcome.SUCCEEDED.value, 0),
        "cost_usd": report["cost"]["usd"],
        "report": dict(report),
    }
