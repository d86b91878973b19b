"""The layers, the cost of imports, and the sizes of modules and functions. The reasons are in docs/decisions/0002-layers.md."""

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import airflow_batch_llm
from airflow_batch_llm.providers import PROVIDERS
from airflow_batch_llm.warehouses import WAREHOUSES, all_dialects

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "airflow_batch_llm"

# Where Airflow may be imported. Everything else in the package runs without it.
EDGE = ("decorators", "hooks", "links", "notifications", "operators", "plugins", "sensors", "triggers")

# What only the API server imports, at the first look at the page.
PAGE = f"{airflow_batch_llm.__name__}.plugins.page"

ADAPTERS = {
    "providers": tuple(PROVIDERS),
    "warehouses": ("bigquery", "duckdb", "files", "postgres", "sql"),
    "warehouses.sql": tuple(
        module.rpartition(".")[2] for module in WAREHOUSES.values() if ".warehouses.sql." in module
    ),
}

SDKS = (
    "aiohttp",
    "anthropic",
    "duckdb",
    "gcsfs",
    "google.cloud",
    "google.genai",
    "grpc",
    "httpx",
    "httpx2",
    "openai",
    "pandas",
    "psycopg",
    "snowflake",
    "sqlglot",
)

# A tenth of a second of CPU in every process that reads a Dag.
HEAVY = ("numpy", "pyarrow")

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 45  # without the docstring
MAX_PARAMETERS = 8  # without self or cls


def test_the_contracts_are_kept() -> None:
    done = _lint_imports(ROOT)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("core/intruder.py", "from airflow_batch_llm.providers import base", "layers"),
        ("providers/intruder.py", "import airflow_batch_llm.warehouses.base", "layers"),
        ("providers/intruder.py", "def f():\n    import airflow.sdk", "airflow"),
        ("stage/intruder.py", "def f():\n    import openai", "vendors"),
        ("providers/anthropic/intruder.py", "import airflow_batch_llm.providers.openai", "providers"),
        ("core/intruder.py", "import time", "core"),
        ("core/intruder.py", "def f():\n    import openai", "core"),
        ("core/intruder.py", "import airflow_batch_llm.testing", "testing"),
        ("intruder.py", "import json", "layers"),
        ("warehouses/intruder.py", "import json", "warehouses"),
        ("warehouses/sql/intruder.py", "import json", "databases"),
        ("warehouses/sql/mysql_intruder.py", "import airflow_batch_llm.warehouses.sql.mssql", "databases"),
    ],
)
def test_a_broken_rule_is_noticed(tmp_path: Path, module: str, line: str, contract: str) -> None:
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / PACKAGE.name / module).write_text(line + "\n")

    done = _lint_imports(tmp_path, "--contract", contract)

    assert done.returncode == 1, done.stdout + done.stderr
    assert "intruder" in done.stdout


#: Claude on Vertex takes Anthropic's messages (decision 0023).
_SPEAKS_ANOTHERS_WORDS = {
    "airflow_batch_llm.providers.vertex.lines -> airflow_batch_llm.providers.anthropic.lines"
}


@pytest.mark.parametrize("room", ADAPTERS)
def test_an_adapter_knows_only_its_own_modules_and_the_shared_ones(room: str) -> None:
    # A module belongs to the adapter whose name it begins with (vertex, vertex_jobs); the others are shared.
    container = f"{airflow_batch_llm.__name__}.{room}"
    graph = grimp.build_graph(airflow_batch_llm.__name__, cache_dir=None)

    strangers = [
        f"{importer} -> {imported}"
        for importer in graph.find_descendants(container)
        for imported in graph.find_modules_directly_imported_by(importer)
        if imported.startswith(f"{container}.")
        and _family(imported, room)
        and _family(imported, room) != _family(importer, room)
    ]

    assert set(strangers) <= _SPEAKS_ANOTHERS_WORDS


def test_importing_the_package_loads_nothing_but_itself() -> None:
    loaded = _loaded_by("airflow_batch_llm", "airflow_batch_llm.get_provider_info")

    assert set().union(*loaded.values()) - sys.stdlib_module_names == {"airflow_batch_llm"}


def test_importing_a_module_below_the_edge_loads_neither_airflow_nor_an_sdk() -> None:
    loaded = _loaded_by(*(module for module in _modules() if not _is_edge(module)))

    unwanted = {module: names & {"airflow", "sqlalchemy", *SDKS} for module, names in loaded.items()}
    assert {module: names for module, names in unwanted.items() if names} == {}


def test_importing_the_edge_loads_no_sdk_and_no_pyarrow_that_airflow_has_not_loaded_itself() -> None:
    airflow = ("airflow.sdk", "airflow.triggers.base", "airflow.providers.common.sql.hooks.sql")
    edge = [module for module in _modules() if _is_edge(module) and not module.startswith(PAGE)]
    loaded = _loaded_by(*airflow, *edge)

    unwanted = {module: names & {*SDKS, *HEAVY} for module, names in loaded.items() if module not in airflow}
    assert {module: names for module, names in unwanted.items() if names} == {}


def test_loading_the_plugin_loads_neither_the_page_nor_a_web_framework() -> None:
    plugin = "airflow_batch_llm.plugins.llm_batches"
    loaded = _loaded_by("airflow.providers.common.compat.sdk", "airflow.sdk.plugins_manager", plugin)

    assert loaded[plugin] - sys.stdlib_module_names == {"airflow", "airflow_batch_llm"}


def test_what_is_imported_is_declared() -> None:
    declared = {
        canonicalize_name(Requirement(line).name) for line in metadata.requires("airflow-batch-llm") or []
    }
    distributions = metadata.packages_distributions()

    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in _files()
        for name in _imported(path) - sys.stdlib_module_names - {PACKAGE.name}
        if not declared & {canonicalize_name(each) for each in distributions.get(name, [])}
    }
    assert undeclared == set()


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in _files()}

    assert {path: lines for path, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    # An operator's constructor lists its arguments, each named twice, and a command its options: they are exempt.
    lengths = {
        f"{path}:{function.name}": _length(function)
        for path, function in _functions()
        if not (
            path.relative_to(PACKAGE).parts[0].removesuffix(".py") in EDGE and function.name == "__init__"
        )
        and path.stem != "command"
    }

    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def test_parameters_are_few() -> None:
    # What a user writes in a Dag is keywords of one call, and at a shell options of one command: these are exempt.
    counts = {
        f"{path}:{function.name}": _parameters(function)
        for path, function in _functions()
        if path.relative_to(PACKAGE).parts[0].removesuffix(".py") not in EDGE
        and path.stem not in ("cli", "command")
    }

    assert {name: count for name, count in counts.items() if count > MAX_PARAMETERS} == {}


def test_a_module_is_named_for_what_it_holds() -> None:
    vague = {"common", "helpers", "misc", "tools", "util", "utils"}

    assert [path for path in _files() if vague & set(path.stem.split("_"))] == []


def test_a_docstring_says_what_is_done_by_whom() -> None:
    # The style: a verb or a plain noun first, and the actor by name. A clause such as "When it ended" has to be decoded.
    unclear = re.compile(
        r"(What|Whether|Which|How|When|Whoever|Where|Why|Who|Of|Tell (if|whether))\b"
        r"|.*\b(so many|somebody|anybody|whoever|of ours|one's own|mishap|but for)\b",
        re.DOTALL,
    )
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for path in (*_files(), *(ROOT / "tests").rglob("*.py"))
        for line, text in _docstrings(path)
        if unclear.match(text.strip())
    ]

    assert found == []


def _docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield every text that is a statement by itself: of a module, a class, a function or a field."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield node.lineno, text


def _lint_imports(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "lint-imports"
    return subprocess.run(
        [program, "--no-cache", *options],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def _modules() -> list[str]:
    """Every module, packages first."""
    paths = (path.relative_to(ROOT).with_suffix("") for path in _files())
    names = (".".join(path.parts).removesuffix(".__init__") for path in paths)
    return sorted(name for name in names if not name.endswith(".__main__"))


def _is_edge(module: str) -> bool:
    return any(module.startswith(f"{PACKAGE.name}.{name}") for name in EDGE)


def _family(module: str, room: str) -> str | None:
    """The adapter that a module of this room belongs to, or None for a shared one."""
    name = module.removeprefix(f"{airflow_batch_llm.__name__}.{room}.").partition(".")[0]
    return next((adapter for adapter in ADAPTERS[room] if f"{name}_".startswith(f"{adapter}_")), None)


def _loaded_by(*modules: str) -> dict[str, set[str]]:
    """Return the top-level names and SDKs that each of these adds to a fresh process that imports them in turn."""
    program = """
import importlib, json, sys
loaded = {}
for module in sys.argv[1:]:
    before = set(sys.modules)
    importlib.import_module(module)
    loaded[module] = sorted(set(sys.modules) - before)
print(json.dumps(loaded))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *modules],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    return {
        module: {name.split(".")[0] for name in names} | {name for name in names if name in SDKS}
        for module, names in loaded.items()
    }


def _files() -> Iterator[Path]:
    return PACKAGE.rglob("*.py")


def _imported(path: Path) -> set[str]:
    """Return the top-level names of all imports anywhere in a file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def _functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in _files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[0]
    documented = ast.get_docstring(function, clean=False) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_no_module_outside_a_warehouse_decides_by_its_name() -> None:
    # A title in a message and a word in a comment decide nothing; a string that is a kind's or a dialect's name does.
    names = set(WAREHOUSES) | {dialect.name for dialect in all_dialects()}
    homes = {Path(*module.split(".")[1:]) for module in WAREHOUSES.values()}

    deciding = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in _files()
        if path != PACKAGE / "warehouses/__init__.py"  # the table of all of them
        and not any(_is_at_home(path.relative_to(PACKAGE), home) for home in homes)
        for name in names & _compared(path)
    }
    assert deciding == set()


def _is_at_home(path: Path, home: Path) -> bool:
    """Return whether a module is in the folder of a registration, or in `sql` under the database's own name."""
    if home.parent.name == "sql":
        return path.parent == home.parent and f"{path.stem}_".startswith(f"{home.name}_")
    return home.parent in path.parents


def _compared(path: Path) -> set[str]:
    """The texts that a file compares with something, matches, or looks up in a mapping of its own."""
    places: list[ast.AST] = []
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Compare() | ast.MatchValue():
                places += ast.walk(node)
            case ast.Dict():
                places += [key for key in node.keys if key is not None]
    return {node.value for node in places if isinstance(node, ast.Constant) and isinstance(node.value, str)}
