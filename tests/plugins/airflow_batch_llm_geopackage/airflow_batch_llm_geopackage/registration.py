"""Register GeoPackage: a connection's host, or a spec's field, is the path of the file."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.warehouses.base import Warehouse
from airflow_batch_llm.warehouses.registration import AirflowConnection, SpecFile, UriForm, WarehouseType
from airflow_batch_llm.warehouses.sql.sqlite import DIALECT


class GeoPackageSection(BaseModel):
    """A GeoPackage file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    description: str = ""


def _open_connection(connection: AirflowConnection) -> Warehouse:
    if not connection.host:
        raise InputError(f"{connection.called} names no file. Its host is the file's path.")
    return _open(connection.host, **connection.hook_params)


def _open_section(section: GeoPackageSection, file: SpecFile) -> Warehouse:
    return _open(file.path(section.file), description=section.description)


def _open(path: Any, **options: Any) -> Warehouse:
    from airflow_batch_llm_geopackage.warehouse import GeoPackage

    return GeoPackage(path, **options)


WAREHOUSE = WarehouseType(
    name="geopackage",
    dialect=DIALECT,
    uri_form=UriForm.FILE,
    connection_types=frozenset({"geopackage"}),
    open_connection=_open_connection,
    hook_params=frozenset({"description"}),
    section=GeoPackageSection,
    open_section=_open_section,
)
