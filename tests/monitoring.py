"""The files for Prometheus and Grafana, as programs read them: the documented metrics, their names, the expressions."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "assets" / "monitoring"
ALERTS = FOLDER / "prometheus-alerts.yml"

_METRIC = re.compile(r"^\| `(batch_llm\.[^`]+)` \| (\w+) \|", re.MULTILINE)


def documented() -> dict[str, str]:
    """The kind of each metric in the reference, by its name."""
    return dict(_METRIC.findall((ROOT / "docs" / "reference" / "metrics.md").read_text()))


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the mapping. A `*` in it is one part of a name, as statsd_exporter has it."""

    match: str
    name: str
    labels: dict[str, str]

    def applied(self, name: str) -> tuple[str, dict[str, str]] | None:
        """The metric's name and labels in Prometheus. None: the rule is for others."""
        found = re.fullmatch(re.escape(self.match).replace(r"\*", r"([^.]*)"), name)
        if found is None:
            return None
        filled = {
            key: re.sub(r"\$(\d)", lambda place: found[int(place[1])], text)
            for key, text in {"": self.name, **self.labels}.items()
        }
        return filled.pop(""), filled


def mapping() -> list[Rule]:
    """The rules of the mapping that ships. The first that fits counts."""
    rules = yaml.safe_load((FOLDER / "statsd-mapping.yml").read_text())["mappings"]
    return [Rule(one["match"], one["name"], one.get("labels", {})) for one in rules]


def in_prometheus(rules: list[Rule], name: str) -> tuple[str, dict[str, str]]:
    """The metric's name and labels in Prometheus."""
    return next(found for rule in rules if (found := rule.applied(name)) is not None)


@dataclass(frozen=True, slots=True)
class Query:
    """One expression of the dashboard."""

    panel: str
    expression: str


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((FOLDER / "grafana-dashboard.json").read_text())
    return board


def queries() -> Iterator[Query]:
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield Query(panel["title"], target["expr"])


def alerts() -> dict[str, str]:
    """The expression of each alert."""
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}
