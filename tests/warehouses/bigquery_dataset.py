"""A dataset of the BigQuery on loopback, for one test, looked at with Google's own client."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any
from uuid import uuid4

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import BigQueryReadClient
from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport

from airflow_batch_llm.warehouses.bigquery.jobs import JobPatience
from airflow_batch_llm.warehouses.bigquery.types import DIALECT
from airflow_batch_llm.warehouses.bigquery.warehouse import BigQuerySettings, BigQueryWarehouse

PROJECT = "test-project"
LOCATION = "EU"

#: Waits short enough for tests; of several that publish at once, the emulator lets one through at a time.
PATIENCE = JobPatience(first_wait=0.02, longest_wait=0.5, per_call=20, jobs=50)

#: Expressions of the integer n, by the type that they have. The emulator keeps a BIGNUMERIC from Parquet as a double.
KEY_TYPES = {
    "bool": "MOD(n, 2) = 0",
    "int64": "n + 9007199254740993",
    "numeric": "CAST(n AS NUMERIC) + NUMERIC '12345678901234567890.000000001'",
    "string": "CONCAT('key ', CAST(n AS STRING), '\\u2028')",
    "bytes": "CAST(CONCAT('bytes ', CAST(n AS STRING)) AS BYTES)",
    "date": "DATE_ADD(DATE '1969-12-30', INTERVAL n DAY)",
    "time": "TIME_ADD(TIME '12:34:56.789', INTERVAL n SECOND)",
    "datetime": "DATETIME_ADD(DATETIME '1969-12-31 23:59:59.123456', INTERVAL n DAY)",
    "timestamp": "TIMESTAMP_ADD(TIMESTAMP '2026-02-28 23:59:59.5+05:30', INTERVAL n DAY)",
}
CARRIED_TYPES = {
    "json": """PARSE_JSON(CONCAT('{"b": [', CAST(n AS STRING), ', null], "a": 1.50}'))""",
    "doubles": "[n / 2, 1.0]",
    "struct": "STRUCT(n AS a, 'x' AS b)",
}


class BigQueryDataset:
    """An empty dataset. `rest` and `storage` are where the two interfaces listen."""

    placeholder = "?"
    longest_name = 300
    nul = "\0"
    key_types = KEY_TYPES
    carried_types = CARRIED_TYPES
    rules = frozenset({"not null"})
    generated = ""

    def __init__(self, rest: str, storage: str) -> None:
        self.name = f"t{uuid4().hex[:12]}"
        self.address = {"rest": rest, "storage": storage, "dataset": self.name}
        self.recipe: tuple[str, Mapping[str, Any]] = (f"{__name__}:open_warehouse", self.address)
        self.client = client(rest)
        dataset = bigquery.Dataset(f"{PROJECT}.{self.name}")
        dataset.location = LOCATION
        self.client.create_dataset(dataset)

    def open(self) -> BigQueryWarehouse:
        return open_warehouse(**self.address)

    def seed(self, table: str, rows: pa.Table) -> None:
        file = BytesIO()
        pq.write_table(rows, file)
        file.seek(0)
        config = bigquery.LoadJobConfig(source_format="PARQUET")
        self.client.load_table_from_file(file, self.full(table), job_config=config).result()

    def make(self, table: str, schema: pa.Schema, rules: Mapping[str, str], *constraints: str) -> None:
        assert not constraints, "BigQuery enforces none"
        required = {name for name, rule in rules.items() if rule == "NOT NULL"}
        fields = [
            bigquery.SchemaField(
                field.name,
                DIALECT.column_type(field.type),
                "REQUIRED" if field.name in required else "NULLABLE",
            )
            for field in schema
        ]
        self.client.create_table(bigquery.Table(self.full(table), schema=fields))

    def tables(self) -> set[str]:
        return {table.table_id for table in self.client.list_tables(self.name)}

    def full(self, table: str) -> str:
        """A table's name with project and dataset."""
        return f"{PROJECT}.{self.name}.{table}"

    def run(self, sql: str) -> list[dict[str, Any]]:
        """The rows of a statement, in which `{d}` is the dataset."""
        return [dict(row) for row in self.client.query(sql.format(d=f"`{PROJECT}`.{self.name}")).result()]

    def close(self) -> None:
        self.client.delete_dataset(self.name, delete_contents=True, not_found_ok=True)
        self.client.close()


def client(rest: str) -> bigquery.Client:
    """Google's client on the REST interface."""
    return bigquery.Client(
        project=PROJECT,
        credentials=AnonymousCredentials(),
        location=LOCATION,
        client_options={"api_endpoint": rest},
    )


def read_client(storage: str) -> BigQueryReadClient:
    """Google's client on the Storage Read interface, as the emulator speaks it: without TLS."""
    channel = grpc.insecure_channel(storage, options=[("grpc.max_receive_message_length", -1)])
    return BigQueryReadClient(transport=BigQueryReadGrpcTransport(channel=channel))


def open_warehouse(rest: str, storage: str | None, dataset: str | None, **more: Any) -> BigQueryWarehouse:
    """An adapter on the dataset."""
    return BigQueryWarehouse(
        BigQuerySettings(
            client=lambda: client(rest),
            storage=None if storage is None else lambda: read_client(storage),
            dataset=dataset,
            **{"patience": PATIENCE, **more},
        )
    )
