"""A database computes the hash of an input by itself, as it is told in the reference of the tables."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.core.spec import input_hash, input_hashes
from airflow_batch_llm.warehouses.base import Warehouse
from airflow_batch_llm.warehouses.duckdb.warehouse import DuckDBWarehouse
from tests.emulators.servers import Emulators
from tests.warehouses.bigquery_dataset import BigQueryDataset

#: Column -> two values, as SQL that both databases understand.
VALUES = {
    "body": ("concat('tab', chr(9), 'and ''quotes'' \"two\"')", "''"),
    "day": ("DATE '2026-02-28'", "CAST(NULL AS DATE)"),
    "is_open": ("true", "false"),
    "moment": ("TIMESTAMP '2026-01-02 03:04:05+00:00'", "TIMESTAMP '2026-01-02 03:04:05.25+00:00'"),
    "n": ("-7", "9007199254740993"),
    "text": ("'Grüße \u2028 \U0001f600'", "CAST(NULL AS {text})"),
}
GOLDEN = ["fee822a1cac4cc97c4886658d77eb500", "c49c6410b29285fb4228e4cb07ecb566"]

BIGQUERY = {
    "body": "CONCAT('t', CAST(BYTE_LENGTH(body) AS STRING), ':', body)",
    "day": "CONCAT('t10:', FORMAT_DATE('%F', day))",
    "is_open": "IF(is_open, 'b4:true', 'b5:false')",
    "moment": "IF(MOD(UNIX_MICROS(moment), 1000000) = 0,"
    " CONCAT('t20:', FORMAT_TIMESTAMP('%FT%H:%M:%S', moment, 'UTC'), 'Z'),"
    " CONCAT('t27:', FORMAT_TIMESTAMP('%FT%H:%M:%E6S', moment, 'UTC'), 'Z'))",
    "n": "CONCAT('n', CAST(LENGTH(CAST(n AS STRING)) AS STRING), ':', CAST(n AS STRING))",
    "text": "CONCAT('t', CAST(BYTE_LENGTH(text) AS STRING), ':', text)",
}
DUCKDB = {
    "body": "concat('t', strlen(body), ':', body)",
    "day": "concat('t10:', strftime(day, '%Y-%m-%d'))",
    "is_open": "CASE WHEN is_open THEN 'b4:true' ELSE 'b5:false' END",
    "moment": "CASE WHEN epoch_us(moment) % 1000000 = 0"
    " THEN concat('t20:', strftime(moment AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%SZ'))"
    " ELSE concat('t27:', strftime(moment AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%fZ')) END",
    "n": "concat('n', length(n::VARCHAR), ':', n)",
    "text": "concat('t', strlen(text), ':', text)",
}


def hashed(parts: dict[str, str]) -> str:
    """The text of a row: each column's name and its value, in the order of the names."""
    both = [
        part
        for name in sorted(parts)
        for part in (f"'t{len(name)}:{name}'", f"CASE WHEN {name} IS NULL THEN 'z0:' ELSE {parts[name]} END")
    ]
    return f"CONCAT({', '.join(both)})"


def rows(text: str) -> str:
    """A query for the two rows."""
    chosen = [
        ", ".join(f"{values[row].format(text=text)} AS {name}" for name, values in VALUES.items())
        for row in range(2)
    ]
    return f"SELECT 1 AS id, {chosen[0]} UNION ALL SELECT 2, {chosen[1]}"


@pytest.fixture(params=["duckdb", "bigquery"])
def hashes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[dict[str, Any]]]:
    """The rows as a worker reads them, with the hash that the database gives them."""
    if request.param == "duckdb":
        path = tmp_path / "source.duckdb"
        duckdb.connect(str(path)).close()
        query = f"SELECT *, left(sha256({hashed(DUCKDB)}), 32) AS hash FROM ({rows('VARCHAR')})"
        with closing(DuckDBWarehouse(path)) as warehouse:
            yield read(warehouse, query.replace("TIMESTAMP '", "TIMESTAMPTZ '"))
        return
    emulators: Emulators = request.getfixturevalue("emulators")
    query = f"SELECT *, LEFT(TO_HEX(SHA256({hashed(BIGQUERY)})), 32) AS `hash` FROM ({rows('STRING')})"
    with (
        closing(BigQueryDataset(emulators.bigquery, emulators.bigquery_storage)) as dataset,
        closing(dataset.open()) as warehouse,
    ):
        yield read(warehouse, query.replace("''quotes''", "\\'quotes\\'"))


def read(warehouse: Warehouse, sql: str) -> list[dict[str, Any]]:
    found = warehouse.read(Source(sql=f"SELECT * FROM ({sql}) AS r ORDER BY id")).read_all().to_pylist()
    return [{name: value for name, value in row.items() if name != "id"} for row in found]


def test_a_database_gives_an_input_the_hash_that_a_worker_gives_it(hashes: list[dict[str, Any]]) -> None:
    given = [row.pop("hash") for row in hashes]
    assert given == [input_hash(row) for row in hashes] == GOLDEN
    columns = {name: [row[name] for row in hashes] for name in VALUES}
    assert input_hashes(columns) == GOLDEN
