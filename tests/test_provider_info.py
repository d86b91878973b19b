"""An invalid provider breaks `import airflow` for everybody who has it installed: these tests come first."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import airflow_batch_llm
from airflow_batch_llm.get_provider_info import get_provider_info
from airflow_batch_llm.providers import PROVIDERS


@pytest.fixture(scope="module")
def schema() -> Any:
    spec = find_spec("airflow")
    folders = (spec and spec.submodule_search_locations) or []
    [path] = [found for folder in folders for found in Path(folder).glob("provider_info.schema.json")]
    return json.loads(path.read_text())


def test_the_info_is_valid_against_the_schema_of_the_installed_airflow(schema: Any) -> None:
    jsonschema.validate(get_provider_info(), schema)


def test_the_schema_notices_an_option_without_a_type(schema: Any) -> None:
    info = get_provider_info()
    del info["config"]["batch_llm"]["options"]["workspace"]["type"]

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(info, schema)


def test_the_module_loads_the_standard_library_only() -> None:
    program = (
        "import sys, airflow_batch_llm.get_provider_info; print(*{m.split('.')[0] for m in sys.modules})"
    )
    loaded = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    bare = subprocess.run(
        [sys.executable, "-I", "-c", program.replace(", airflow_batch_llm.get_provider_info", "")],
        capture_output=True,
        text=True,
        check=True,
    )

    added = set(loaded.stdout.split()) - set(bare.stdout.split())
    assert added - sys.stdlib_module_names == {"airflow_batch_llm"}


def test_every_option_is_in_the_documentation_with_its_default() -> None:
    page = (Path(__file__).parents[1] / "docs/reference/configuration.md").read_text()

    for name, option in get_provider_info()["config"]["batch_llm"]["options"].items():
        assert (
            f"| `{name}` | {option['default'] or ''} | {option['description']} |".replace("  ", " ") in page
        )


def test_every_name_that_the_info_declares_can_be_imported() -> None:
    for path in _declared(get_provider_info()):
        module_name, _, attribute = path.rpartition(".")
        if find_spec(path.split(".")[0]) and _is_module(path):
            continue
        assert hasattr(__import__(module_name, fromlist=[attribute]), attribute), path


def test_the_entry_point_names_the_function() -> None:
    [entry_point] = metadata.entry_points(group="apache_airflow_provider").select(
        name="provider_info", module="airflow_batch_llm.get_provider_info"
    )

    assert entry_point.load() is get_provider_info
    assert metadata.version("airflow-batch-llm") == airflow_batch_llm.__version__


def test_there_is_an_extra_for_each_provider() -> None:
    extras = metadata.metadata("airflow-batch-llm").get_all("Provides-Extra") or []

    assert {provider.extra for provider in PROVIDERS.values()} <= set(extras)


def test_airflow_imports_and_lists_the_provider_and_its_configuration(tmp_path: Path) -> None:
    program = """
import airflow
from airflow.configuration import conf
from airflow.providers_manager import ProvidersManager
ProvidersManager().initialize_providers_configuration()  # Airflow 3.1 does not until it must
print(ProvidersManager().providers["airflow-batch-llm"].version, conf.getfloat("batch_llm", "default_max_cost_usd"))
"""
    environ = os.environ | {"AIRFLOW_HOME": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == [airflow_batch_llm.__version__, "25.0"]


def _declared(value: Any) -> Iterator[str]:
    """Every dotted path into our package, however deep in the info."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _declared(each)
    elif isinstance(value, str) and value.startswith("airflow_batch_llm."):
        yield value


def _is_module(path: str) -> bool:
    try:
        return find_spec(path) is not None
    except ModuleNotFoundError:
        return False
