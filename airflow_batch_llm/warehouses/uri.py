"""Name tables by URIs, as Airflow's assets and OpenLineage do."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from airflow_batch_llm.warehouses import all_types
from airflow_batch_llm.warehouses.registration import UriForm, WarehouseType


def table_uri(database_uri: str, table: str) -> str:
    """The table as Airflow's assets spell it: below its database, a part of the name at a time."""
    base = database_uri.rstrip("/")
    form = _form(base)
    # A name of three parts begins with a database, which then takes the place of the URI's own.
    has_database = form is UriForm.PROJECT or (form is UriForm.SERVER and urlsplit(base).path)
    if table.count(".") == 2 and has_database:
        base = base.rpartition("/")[0]
    return f"{base}/{table.replace('.', '/')}"


def dataset(uri: str) -> tuple[str, str]:
    """A table's URI as OpenLineage's namespace and name."""
    parts = urlsplit(uri)
    name = parts.path.lstrip("/").replace("/", ".")
    match _form(uri):
        case UriForm.FILE:
            return parts.scheme, parts.path
        case UriForm.PROJECT:
            return parts.scheme, f"{parts.netloc}.{name}"
        case UriForm.SERVER:
            return f"{parts.scheme}://{parts.netloc}", name


def tables_of(sql: str, database_uri: str = "") -> Sequence[str]:
    """The tables that a SELECT reads, by the names that stand in it. Returns none if it cannot be parsed."""
    from airflow_batch_llm.warehouses.dialect import (
        referenced,
    )  # it brings pyarrow, and Dags import this module

    kind = _kind(database_uri)
    dialect = kind.dialect.name if kind and kind.dialect else None
    return sorted({".".join(parts) for parts in referenced(sql, dialect)})


def _form(uri: str) -> UriForm:
    kind = _kind(uri)
    return kind.uri_form if kind else UriForm.SERVER


def _kind(uri: str) -> WarehouseType | None:
    scheme = urlsplit(uri).scheme
    return next((kind for kind in all_types() if scheme == (kind.uri_scheme or kind.name)), None)
