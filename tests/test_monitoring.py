"""The documentation of metrics is complete, and what ships for Prometheus and Grafana uses no other metric."""

import ast
import re
from collections.abc import Iterator

from tests import monitoring

_SERIES = re.compile(r"airflow_batch_llm_\w+")


def _emitted() -> Iterator[tuple[str, str]]:
    """The name and the kind of each metric that the package sends. A value in a name is in the page as `<value>`."""
    for path in sorted((monitoring.ROOT / "airflow_batch_llm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="Stats"), attr=kind),
                    args=[ast.Constant(value=str(name)), *_],
                ):
                    yield name, kind
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="Stats"), attr=kind),
                    args=[ast.JoinedStr(values=[ast.Constant(value=str(name)), *_]), *_],
                ):
                    yield f"{name}<", kind
                case ast.Attribute(value=ast.Name(id="Stats"), attr=kind):
                    assert kind in ("incr", "gauge"), f"{path}: {kind}"


def test_the_reference_has_every_metric_that_is_sent_and_no_other() -> None:
    kinds = {"incr": "counter", "gauge": "gauge"}
    sent = {name: kinds[kind] for name, kind in _emitted()}
    open_ends = {name.removesuffix("<"): kind for name, kind in sent.items() if name.endswith("<")}
    written = monitoring.documented()

    for start, kind in open_ends.items():
        assert kind in {written[name] for name in written if name.startswith(start)}, start
    others = {
        name: kind for name, kind in written.items() if not any(name.startswith(start) for start in open_ends)
    }
    assert others == {name: kind for name, kind in sent.items() if not name.endswith("<")}


def test_dashboard_and_alerts_use_documented_metrics_alone_and_the_dashboard_shows_them_all() -> None:
    rules = monitoring.mapping()
    known = {monitoring.in_prometheus(rules, f"airflow.{name}")[0] for name in monitoring.documented()}

    shown = {name for one in monitoring.queries() for name in _SERIES.findall(one.expression)}
    assert shown == known
    assert {name for text in monitoring.alerts().values() for name in _SERIES.findall(text)} < known


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = monitoring.dashboard()["panels"]
    places = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(places)) == len(places)
    assert max(x for x, _ in places) < 24
