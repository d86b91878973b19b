"""Say how BigQuery's SQL differs, and register it: the clients are Airflow's hook's, or the environment's."""

import os
from typing import Any

from pydantic import BaseModel, ConfigDict

from airflow_batch_llm.warehouses.base import Warehouse
from airflow_batch_llm.warehouses.dialect import Dialect, Upsert
from airflow_batch_llm.warehouses.kind import ColumnKind
from airflow_batch_llm.warehouses.registration import AirflowConnection, SpecFile, UriForm, WarehouseType

DIALECT = Dialect(
    name="bigquery",
    title="BigQuery",
    types={
        ColumnKind.STRING: "STRING",
        ColumnKind.SMALLINT: "INT64",
        ColumnKind.INTEGER: "INT64",
        ColumnKind.BIGINT: "INT64",
        ColumnKind.REAL: "FLOAT64",
        ColumnKind.DOUBLE: "FLOAT64",
        ColumnKind.DECIMAL: "BIGNUMERIC",
        ColumnKind.BOOLEAN: "BOOL",
        ColumnKind.DATE: "DATE",
        ColumnKind.TIME: "TIME",
        ColumnKind.TIMESTAMP: "DATETIME",
        ColumnKind.TIMESTAMPTZ: "TIMESTAMP",
        ColumnKind.BINARY: "BYTES",
        ColumnKind.UUID: "STRING",
        ColumnKind.JSON: "JSON",
        ColumnKind.VECTOR: "ARRAY<FLOAT64>",
    },
    upsert=Upsert.MERGE,
    decimal_digits=76,
    numeric="NUMERIC",
    vector_brackets="",  # a load job takes a vector as the list that it is
    max_identifier=300,
    backslashes=True,
)


class BigQuerySection(BaseModel):
    """A BigQuery project, with the environment's credentials."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    project: str
    dataset: str | None = None
    """Dataset of tables that are named without one. Default: none."""
    location: str | None = None
    """Location of the jobs. Default: BigQuery chooses it by the tables."""


def _open_connection(connection: AirflowConnection) -> Warehouse:
    from airflow_batch_llm.warehouses.bigquery.warehouse import BigQuerySettings, BigQueryWarehouse

    params = dict(connection.hook_params)
    project, dataset = params.pop("project", None), params.pop("dataset", None)
    hook = connection.hook(use_legacy_sql=False, **params)

    def storage() -> Any:
        from google.cloud.bigquery_storage_v1 import BigQueryReadClient

        client_class: Any = BigQueryReadClient  # untyped
        return client_class(credentials=hook.get_credentials())

    return BigQueryWarehouse(
        BigQuerySettings(
            client=lambda: hook.get_client(project or hook.project_id, params.get("location")),
            # Google's variable for an emulator leads the REST client there, and no other.
            storage=None if os.environ.get("BIGQUERY_EMULATOR_HOST") else storage,
            dataset=dataset,
            location=params.get("location"),
        )
    )


def _open_section(section: BigQuerySection, _file: SpecFile) -> Warehouse:
    from airflow_batch_llm.warehouses.bigquery.warehouse import BigQuerySettings, BigQueryWarehouse

    def client() -> Any:
        from google.cloud.bigquery import Client

        return Client(project=section.project, location=section.location)

    def storage() -> Any:
        from google.cloud.bigquery_storage_v1 import BigQueryReadClient

        client_class: Any = BigQueryReadClient  # untyped
        return client_class()

    settings = BigQuerySettings(
        client=client, storage=storage, dataset=section.dataset, location=section.location
    )
    return BigQueryWarehouse(settings)


WAREHOUSE = WarehouseType(
    name="bigquery",
    dialect=DIALECT,
    uri_form=UriForm.PROJECT,
    connection_types=frozenset({"gcpbigquery", "google_cloud_platform"}),
    open_connection=_open_connection,
    requirement="airflow-batch-llm[google]",
    hook="airflow.providers.google.cloud.hooks.bigquery.BigQueryHook",
    hook_params=frozenset(
        {
            "api_resource_configs", "dataset", "impersonation_chain", "impersonation_scopes", "labels", "location",
            "priority", "project",
        }
    ),
    section=BigQuerySection,
    open_section=_open_section,
)  # fmt: skip
