"""An SDK is imported without the types of what no batch touches, and everybody finds all of it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_batch_llm.providers.imports import import_sparingly

_PROGRAM = """
import sys
from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access

def loaded():
    return sum(name.startswith("{sdk}.") for name in sys.modules)

client = connect("{sdk}", Access(api_key="any", base_url="http://127.0.0.1:9"))._clients.sync
few = loaded()
import {sdk}
everything = {{name: getattr({sdk}, name) for name in {sdk}.__all__}}
assert isinstance(client, everything["{client}"])
from {sdk}.resources import *
from {sdk}.types import *
assert {of_types} is {sdk}.types.{of_types}
print(few, loaded())
"""


@pytest.mark.parametrize(
    ("sdk", "client", "of_types", "share"),
    [("anthropic", "Anthropic", "Message", 0.5), ("openai", "OpenAI", "Batch", 0.1)],
)
def test_a_client_is_opened_with_few_of_its_modules_and_the_others_are_there_when_asked_for(
    sdk: str, client: str, of_types: str, share: float
) -> None:
    program = _PROGRAM.format(sdk=sdk, client=client, of_types=of_types)
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    few, whole = map(int, done.stdout.split())
    assert few < share * whole


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `sparing` on the path; whatever imported it is taken back."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    (tmp_path / "sparing").mkdir()
    yield tmp_path / "sparing"
    for name in [name for name in sys.modules if name.partition(".")[0] == "sparing"]:
        del sys.modules[name]


def written(package: Path, **modules: str) -> None:
    for name, text in modules.items():
        (package / f"{name}.py").write_text(text)


def test_a_name_is_taken_from_its_module_and_the_package_runs_for_a_name_of_its_own(package: Path) -> None:
    written(
        package,
        __init__="from . import part as piece\nfrom .part import a, b\nfrom .other import c\nb = [b]\n",
        part="a = 'a'\nb = 'b'\n",
        other="c = 'c'\n",
    )
    sparing = import_sparingly("sparing")

    assert (sparing.a, sparing.piece.b) == ("a", "b")
    assert "sparing.other" not in sys.modules
    assert sparing.b == ["b"]
    assert "sparing.other" in sys.modules


def test_a_module_that_its_package_does_not_name_is_imported_from_it(package: Path) -> None:
    written(package, __init__="from .user import use\n", user="from . import part as use\n", part="x = 1\n")
    assert import_sparingly("sparing").use.x == 1


def test_a_package_that_needs_itself_while_it_runs_finds_what_it_has_by_then(package: Path) -> None:
    written(
        package,
        __init__="first = 1\nfrom .user import second\nthird = second + 1\n",
        user="from sparing import first\nsecond = first + 1\n",
    )
    assert import_sparingly("sparing").third == 3


def test_a_name_that_nobody_has_is_missing_as_anywhere(package: Path) -> None:
    written(package, __init__="x = 1\n")
    sparing = import_sparingly("sparing")
    with pytest.raises(AttributeError, match="'sparing' has no attribute 'y'"):
        _ = sparing.y
    assert sparing.x == 1
