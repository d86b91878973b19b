"""The contract of a warehouse, kept by one in a distribution of its own, which a connection and a spec lead to."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.hooks.arguments import check_params
from airflow_batch_llm.hooks.warehouse import warehouse
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.testing.warehouses import WarehouseContract
from airflow_batch_llm.warehouses import dataset, table_uri
from tests.plugins.airflow_batch_llm_geopackage.tests.file import GeoPackageFile
from tests.plugins.installed import installed

LISTED = "SELECT table_name, description FROM gpkg_contents ORDER BY 1"


@pytest.fixture(autouse=True, scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    with installed("airflow_batch_llm_geopackage", tmp_path_factory.mktemp("site")) as paths:
        yield paths


class TestGeoPackage(WarehouseContract):
    @pytest.fixture
    def database(self, tmp_path: Path) -> GeoPackageFile:
        return GeoPackageFile(tmp_path / "land.gpkg")


def test_a_connection_of_its_type_leads_to_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fields = {"conn_type": "geopackage", "host": str(tmp_path / "land.gpkg")}
    monkeypatch.setenv("AIRFLOW_CONN_LAND", json.dumps(fields))
    check_params(target_hook_params={"description": "labels"})
    opened = warehouse("land", {"description": "labels"}, argument="target_conn_id")
    found = opened.read(Source(sql="SELECT 7 AS n")).read_all().to_pylist()
    opened.close()
    assert (opened.asset_uri, found) == (f"geopackage://{tmp_path}/land.gpkg", [{"n": 7}])
    table = table_uri(opened.asset_uri, "main.labels")
    assert dataset(table) == ("geopackage", f"{tmp_path}/land.gpkg/main/labels")
    with pytest.raises(InputError, match=r"'role' for geopackage\. It may have description"):
        warehouse("land", {"role": "x"}, argument="target_conn_id")


def test_a_spec_leads_to_it(plugin: list[str], tmp_path: Path) -> None:
    database = GeoPackageFile(tmp_path / "land.gpkg")
    database.seed("plots", pa.table({"id": [1, 2], "name": ["a field", "a wood"]}))
    with Simulator(batch_seconds=0) as simulator:
        done = _run_spec(tmp_path, plugin, simulator.url, {"geopackage": {"file": "land.gpkg"}})
    assert done.returncode == 0, done.stderr
    assert database.execute("SELECT count(*) FROM labels WHERE label IN ('open', 'closed')") == [(2,)]
    assert database.execute(LISTED) == [("labels", ""), ("labels__failures", "")]


def test_a_field_of_its_section_that_does_not_fit_is_named(plugin: list[str], tmp_path: Path) -> None:
    done = _run_spec(tmp_path, plugin, "http://127.0.0.1:9", {"geopackage": {"fill": "land.gpkg"}})
    assert "warehouse.geopackage.fill is unknown; is it file?" in done.stderr
    assert "warehouse.geopackage.file is missing" in done.stderr


def _run_spec(
    folder: Path, plugin: list[str], url: str, section: dict[str, Any]
) -> "subprocess.CompletedProcess[str]":
    fields = {
        "model_id": "anthropic:claude-haiku-4-5",
        "provider": {"base_url": url, "api_key_env": "KEY"},
        "warehouse": section,
        "source": {"table": "plots"},
        "key": "id",
        "prompt": "{{ name }}",
        "output_type": ["open", "closed"],
        "target": "labels",
        "pace": {"poll_interval": 0.1},
        "workspace": "workspace",
    }
    (folder / "plots.yaml").write_text(yaml.safe_dump(fields))
    return subprocess.run(
        [Path(sys.executable).parent / "airflow-batch-llm", "run", folder / "plots.yaml"],
        env={**os.environ, "KEY": "any", "PYTHONPATH": os.pathsep.join(plugin)},
        capture_output=True,
        text=True,
        check=False,
    )
