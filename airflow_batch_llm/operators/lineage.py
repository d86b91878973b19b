"""The tables of a stage as OpenLineage wants them: source to target, and the prompt's columns to the answer's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """What was read and written: URIs of tables, and names of columns."""

    inputs: tuple[str, ...]
    output: str
    columns_used: tuple[str, ...]
    columns_made: tuple[str, ...]

    def to_openlineage(self) -> Any:
        """Its facets. Airflow asks for them only where its OpenLineage provider is installed."""
        from airflow.providers.common.compat.openlineage.facet import (
            ColumnLineageDatasetFacet,
            Dataset,
            Fields,
            InputField,
        )
        from airflow.providers.openlineage.extractors import OperatorLineage

        sources = [_dataset(uri) for uri in self.inputs]
        used = [
            InputField(namespace=namespace, name=name, field=column)
            for namespace, name in sources
            for column in self.columns_used
        ]
        fields = {column: Fields(inputFields=used) for column in self.columns_made}
        namespace, name = _dataset(self.output)
        facet = ColumnLineageDatasetFacet(fields=fields)
        return OperatorLineage(
            inputs=[Dataset(namespace=namespace, name=name) for namespace, name in sources],
            outputs=[Dataset(namespace=namespace, name=name, facets={"columnLineage": facet})],
        )


def tables_of(sql: str, dialect: str | None = None) -> Sequence[str]:
    """The tables that a SELECT reads, by the names that stand in it; none where it cannot be understood."""
    import sqlglot
    from sqlglot import exp

    try:
        parsed = sqlglot.parse_one(sql, dialect=dialect)
    except sqlglot.errors.SqlglotError:
        return ()
    made = {cte.alias_or_name for cte in parsed.find_all(exp.CTE)}
    names = (".".join(part.name for part in table.parts) for table in parsed.find_all(exp.Table))
    return sorted({name for name in names if name not in made})


def _dataset(uri: str) -> tuple[str, str]:
    """A table's URI as namespace and name: a database's host and the dotted name, or a file and its path."""
    parts = urlsplit(uri)
    path = parts.path.lstrip("/")
    if parts.scheme == "file":
        return "file", parts.path
    if parts.scheme == "bigquery":
        return "bigquery", f"{parts.netloc}.{path.replace('/', '.')}"
    return f"{parts.scheme}://{parts.netloc}", path.replace("/", ".")
