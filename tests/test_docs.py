"""The documentation is true: snippets compile, names and arguments exist, specs validate, some are run.

A snippet below the comment `<!-- executed -->` is run, in a folder of its own; the others are checked as far as that
goes without the service that they name.
"""

import ast
import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import typer.main
import yaml

import airflow_batch_llm
from airflow_batch_llm import errors
from airflow_batch_llm.cli import app
from airflow_batch_llm.commands.spec import StageFile, read_spec
from airflow_batch_llm.core import settings
from airflow_batch_llm.core.checked import field_names
from airflow_batch_llm.core.model import Outcome, Usage
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.core.report import Provenance, Report, to_xcom
from airflow_batch_llm.core.selection import after_failure
from airflow_batch_llm.core.settings import Stage
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.stage.evaluating import RESULT_COLUMNS
from airflow_batch_llm.warehouses.base import (
    ANSWER_BOOKKEEPING,
    FAILURE_COLUMNS,
    PACKED_COLUMN,
    REUSED_COLUMN,
    REVIEW_COLUMNS,
    ROUTE_COLUMN,
)
from airflow_batch_llm.warehouses.side_tables import USAGE_COLUMNS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(
    r"(?P<executed><!-- executed -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
_OURS = airflow_batch_llm.__name__


@dataclass(frozen=True, slots=True)
class Snippet:
    """A fenced block. Its name tells where to look."""

    page: Path
    line: int
    language: str
    text: str
    executed: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def _snippets() -> Iterator[Snippet]:
    for page in PAGES:
        text = page.read_text()
        for found in _FENCE.finditer(text):
            line = text.count("\n", 0, found.start("text")) + 1
            yield Snippet(page, line, found["language"], found["text"], found["executed"] is not None)


SNIPPETS = list(_snippets())


def _in(*languages: str) -> Any:
    return pytest.mark.parametrize("snippet", [one for one in SNIPPETS if one.language in languages], ids=str)


_OLD_WORDS = re.compile(
    r"\b(anew|bears?|mends?|whoever|somebody|dear|besides|mishap|it is told)\b", re.IGNORECASE
)


def test_pages_use_plain_words() -> None:
    found = {
        f"{page.relative_to(ROOT)}:{number}: {line.strip()}"
        for page in PAGES
        if page.parent.name != "decisions"
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if _OLD_WORDS.search(line)
    }

    assert found == set()


def test_pages_have_snippets_of_each_kind() -> None:
    assert {"python", "yaml", "console"} <= {one.language for one in SNIPPETS}
    assert any(one.executed for one in SNIPPETS)


@_in("python")
def test_what_python_imports_from_us_is_there_and_takes_what_it_is_given(snippet: Snippet) -> None:
    tree = ast.parse(snippet.text)
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == _OURS:
            module = import_module(node.module or "")
            names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
    ]

    for call in calls:
        assert isinstance(call.func, ast.Name)
        arguments = {word.arg: word.value for word in call.keywords if word.arg is not None}
        inspect.signature(names[call.func.id]).bind(*call.args, **arguments)


@pytest.mark.parametrize("snippet", [one for one in SNIPPETS if one.executed], ids=str)
def test_what_is_marked_as_executed_runs(snippet: Snippet, tmp_path: Path) -> None:
    program = tmp_path / "snippet.py"
    program.write_text(snippet.text)

    done = subprocess.run(
        [sys.executable, "-W", "error", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def _dags() -> list[Snippet]:
    return [one for one in SNIPPETS if one.language == "python" and "Operator(" in one.text]


@pytest.mark.parametrize("snippet", _dags(), ids=str)
def test_an_operator_that_is_shown_can_be_made(snippet: Snippet) -> None:
    exec(compile(snippet.text, str(snippet), "exec"), {"__name__": "shown"})


@_in("yaml")
def test_yaml_is_a_spec_that_is_taken(snippet: Snippet, tmp_path: Path) -> None:
    fields = yaml.safe_load(snippet.text)

    if "model_id" in fields:
        spec = tmp_path / "spec.yaml"
        spec.write_text(snippet.text)
        read_spec(spec)


@_in("json")
def test_json_is_json(snippet: Snippet) -> None:
    json.loads(snippet.text)


@_in("console")
def test_commands_and_their_options_exist(snippet: Snippet) -> None:
    commands: Any = typer.main.get_command(app)
    targets = {line.partition(":")[0] for line in (ROOT / "Makefile").read_text().splitlines()}
    for line in snippet.text.splitlines():
        words = line.removeprefix("$ ").partition("#")[0].split()
        if words[:1] == ["make"]:
            assert set(words[1:]) <= targets, line
        if words[:1] == ["airflow-batch-llm"]:
            command = commands.commands[words[1]]
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, line


def test_the_fields_of_a_spec_are_all_described_and_no_others() -> None:
    page = (ROOT / "docs/how-to/cli.md").read_text()

    assert set(_first_column(page[page.index("## The file") :])) == (
        set(StageFile.model_fields) - {"stage"} | set(field_names(Stage, [])) - {"labels", "route"}
    )


def test_every_setting_has_its_meaning_below_it_and_stands_in_the_reference() -> None:
    groups = {"Stage", "Source", "Request", "Route", "Escalation", "Canary", "Shape", "Guards", "Pace"}
    enums = {"StageWay", "Only", "OverBudget", "BadRow", "WriteMode", "SchemaChange"}
    page = (ROOT / "docs/reference/settings.md").read_text()
    options = yaml.safe_load(page.partition("::: airflow_batch_llm.core.settings\n")[2].partition(":::")[0])[
        "options"
    ]
    hidden = [re.compile(pattern.removeprefix("!")) for pattern in options["filters"]]
    tree = ast.parse(inspect.getsource(settings))
    classes = {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}

    assert set(options["members"]) == groups | enums
    for name in sorted(groups | enums):
        described = {_assigned(field) for field, below in pairwise(classes[name]) if _is_text(below)}
        kind = getattr(settings, name)
        fields = {field.name for field in dataclasses.fields(kind)} if name in groups else {*kind.__members__}
        assert fields <= described, name
        assert not [field for field in fields if any(pattern.search(field) for pattern in hidden)]


def _assigned(node: ast.stmt) -> str:
    target = node.target if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [None])[0]
    return target.id if isinstance(target, ast.Name) else ""


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def test_the_tree_of_errors_is_the_one_that_is_drawn() -> None:
    drawn: dict[str, str] = {}
    above: list[str] = []
    for branch, name in re.findall(r"^    ([ │├└─]*)(\w+)", errors.__doc__ or "", re.MULTILINE):
        above = [*above[: len(branch) // 4], name]
        drawn[name] = above[-2] if branch else "Exception"

    assert drawn == {
        name: kind.__bases__[0].__name__
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.BatchLLMError)
    }


def test_the_layers_that_are_drawn_are_those_that_are_checked() -> None:
    page = (ROOT / "docs/explanation/layers.md").read_text()
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    checked = {contract["id"]: contract for contract in contracts}
    lines = [re.findall(r"\w+", line) for line in checked["layers"]["layers"]]
    there = [[name for name in line if _is_module(name)] for line in lines]
    free = {module.rpartition(".")[2] for module in checked["airflow"]["source_modules"]}
    edge = next(line for line in page.splitlines() if line.endswith(" import Airflow."))

    assert [line.split(" · ") for line in _text_block(page)] == [line for line in there if line]
    assert set(re.findall(r"`(\w+)`", edge)) == {name for line in there for name in line} - free


def _is_module(name: str) -> bool:
    package = Path(airflow_batch_llm.__file__).parent
    return (package / name).is_dir() or (package / f"{name}.py").is_file()


def _text_block(page: str) -> list[str]:
    return page.partition("```text\n")[2].partition("\n```")[0].splitlines()


@pytest.mark.parametrize(
    ("heading", "columns"),
    [
        ("## The target", [*ANSWER_BOOKKEEPING, ROUTE_COLUMN, PACKED_COLUMN, REUSED_COLUMN]),
        ("## The review", list(REVIEW_COLUMNS)),
        ("## The ledger", list(USAGE_COLUMNS)),
        ("## The results of evaluations", list(RESULT_COLUMNS)),
        ("## The failures", list(FAILURE_COLUMNS)[: len(FAILURE_COLUMNS) - len(ANSWER_BOOKKEEPING)]),
    ],
)
def test_the_columns_of_a_table_are_all_described_in_their_order(
    heading: str, columns: list[pa.Field]
) -> None:
    page = (ROOT / "docs/reference/tables.md").read_text()
    part = page[page.index(heading) :].partition("\n## ")[0]

    shown = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", part, re.MULTILINE)

    assert shown == [(column.name, str(column.type)) for column in columns]


def test_the_names_that_contributing_sends_to_are_there() -> None:
    page = (ROOT / "docs/contributing.md").read_text()
    package = Path(airflow_batch_llm.__file__).parent

    named = re.findall(r"`(\w+)` (?:of|in) `([\w/]+\.py)`", page)

    assert len(named) > 20
    for name, path in named:
        text = (ROOT / path if path.startswith("tests/") else package / path).read_text()
        assert re.search(rf"^\s*(?:(?:class|def) )?{name}\b", text, re.MULTILINE), (name, path)
    [(room, rows)] = re.findall(
        r"^\| module of `airflow_batch_llm\.(\w+)` .*\n\|-.*\n((?:\|.*\n)+)", page, re.MULTILINE
    )
    modules = re.findall(r"^\| `(\w+)` ", rows, re.MULTILINE)
    assert len(modules) == rows.count("\n")
    assert [name for name in modules if not (package / room / f"{name}.py").exists()] == []


def test_the_outcomes_are_all_described_in_their_order_with_what_follows() -> None:
    page = (ROOT / "docs/reference/tables.md").read_text()
    shown = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)

    def follows(outcome: Outcome, *, retryable: bool) -> tuple[bool, bool, bool]:
        verdict = after_failure(outcome, retryable=retryable, attempts=0, tries=1, most=3)
        return verdict.attempts == 1, verdict.again, verdict.dead

    words = {(True, True): "yes", (False, False): "no", (False, True): "if the error may pass"}
    assert shown == [
        (
            str(outcome),
            *(
                words[pair]
                for pair in zip(
                    follows(outcome, retryable=False), follows(outcome, retryable=True), strict=True
                )
            ),
        )
        for outcome in Outcome
    ]


@pytest.mark.parametrize("key", ["outcomes", "counts"])
def test_the_words_of_the_counts_are_all_described(key: str) -> None:
    page = (ROOT / "docs/reference/report.md").read_text()
    about = Provenance(run_id="r", run_token="t", provider="p", model="m", key=("id",), target="labels")
    told = to_xcom(Report(outcomes=dict.fromkeys(Outcome, 1)), about)[key]

    (row,) = re.findall(rf"^\| `{key}` \|([^;|]+)", page, re.MULTILINE)

    assert re.findall(r"`(\w+)`", row) == list(told)


def test_the_keys_of_the_report_are_all_described_in_their_order() -> None:
    page = (ROOT / "docs/reference/report.md").read_text()
    about = Provenance(run_id="r", run_token="t", provider="p", model="m", key=("id",), target="labels")

    shown = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)

    assert shown == list(to_xcom(Report(), about))


def test_a_recipe_begins_with_its_example_and_all_are_listed() -> None:
    recipes = [page for page in PAGES if page.parent.name == "cookbook" and page.name != "index.md"]
    listed = re.findall(r"\((\S+\.md)\)", (ROOT / "docs/cookbook/index.md").read_text())

    assert sorted(listed) == [page.name for page in recipes]
    assert len(recipes) == 12
    assert all(page.read_text().split("\n\n")[1].startswith("```python\n") for page in recipes)
    assert {one.page for one in _dags()} >= set(recipes)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_dollars_on_the_first_page_follow_from_the_price_list(page: str) -> None:
    shown = re.findall(r"^\| `(\w+):(\S+)` \| (.+) \|$", (ROOT / page).read_text(), re.MULTILINE)

    assert shown
    for provider, model, dollars in shown:
        prices = PriceList.of(provider, model, at=datetime(2026, 11, 27, tzinfo=UTC).timestamp())
        price = prices.priced(Usage(input_tokens=400, output_tokens=20))
        assert price is not None
        assert prices.assumed is None
        night, changed = 10_000 * price.cost, 100 * price.cost
        assert dollars == f"${10_000 * price.realtime:.2f} | ${night:.2f} | ${changed:.4f}"


def test_the_names_of_the_package_are_all_described() -> None:
    page = (ROOT / "docs/reference/python.md").read_text()
    table = page[page.index("| name |") : page.index(":::")]

    assert set(re.findall(r"`(\w+)`", table)) == set(airflow_batch_llm.__all__)


@pytest.mark.parametrize(
    "where",
    [
        "operators.llm_transform:LLMTransformOperator",
        "operators.llm_batch:SubmitLLMBatchOperator",
        "operators.llm_batch:CollectLLMBatchOperator",
        "sensors.llm_batch:LLMBatchSensor",
        "sensors.pending_rows:PendingRowsSensor",
    ],
)
def test_the_arguments_of_an_operator_are_all_described_and_no_others(where: str) -> None:
    module, _, name = where.partition(":")
    ours = [
        kind
        for kind in getattr(import_module(f"{_OURS}.{module}"), name).__mro__
        if kind.__module__.startswith(f"{_OURS}.")
    ]

    taken = {argument for kind in ours for argument in inspect.signature(kind.__init__).parameters}
    described = {found for kind in ours for found in re.findall(r":param (\w+):", kind.__doc__ or "")}

    assert described == taken - {"self", "args", "kwargs"}


def _first_column(text: str) -> list[str]:
    return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)


def test_the_tutorial_leads_to_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs/tutorial/first-table.md"
    shown = [one for one in SNIPPETS if one.page == page]
    for file in (one for one in shown if one.language == "python"):
        path = tmp_path / file.text.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(file.text)
    exports = "\n".join(
        line.removeprefix("$ ")
        for one in shown
        if one.language == "console"
        for line in one.text.splitlines()
        if line.startswith("$ export ")
    )
    steps = (
        "python seed.py",
        "airflow db migrate",
        "python dags/label_tickets.py",
        "python dags/label_tickets.py",
    )

    monkeypatch.chdir(tmp_path)
    with Simulator(batch_seconds=0, responder="answers:respond") as simulator:
        script = "\n".join(("set -e", exports.replace("http://127.0.0.1:8765", simulator.url), *steps))
        done = subprocess.run(
            ["sh", "-c", script],
            cwd=tmp_path,
            env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        ledger = simulator.ledger()["anthropic"]

    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 rows succeeded" in done.stdout + done.stderr
    assert ledger["rows"]["charged"] == 2
    with duckdb.connect(str(tmp_path / "support.duckdb")) as database:
        found = database.execute(
            "SELECT ticket_id, label, _llm_shared, _llm_cost_usd FROM ticket_labels ORDER BY 1"
        ).fetchall()
    assert found == [
        (int(key), label, shared == "true", float(usd))
        for key, label, shared, usd in re.findall(
            r"^│ +(\d+) │ (\w+) +│ (\w+) +│ +(\S+) │$", page.read_text(), re.MULTILINE
        )
    ]
    assert len(found) == 3
