"""The tables of a run as OpenLineage wants them: source to target, and the prompt's columns to the answer's.

What is not known is left out: a wrong edge in a lineage graph is worse than none.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_batch_llm.operators.outcome import table_uri

if TYPE_CHECKING:
    from airflow_batch_llm.stage.plan import Plan

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """What was read and written: URIs of tables, and names of columns."""

    inputs: tuple[str, ...]  # none: not known
    output: str
    columns_used: tuple[str, ...]
    columns_made: tuple[str, ...]


def is_lineage_wanted() -> bool:
    """Whether Airflow will ask for it."""
    return find_spec("airflow.providers.openlineage") is not None


@contextmanager
def unfailing() -> Iterator[None]:
    """What is paid for has been sent, or has landed: that nobody can be told where it came from is no failure."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a connection, a driver, a parser
        _log.warning("OpenLineage is not told all that was read and written (%s).", type(error).__name__)


def planned_lineage(plan: "Plan", inputs: tuple[str, ...], database_uri: str) -> Lineage:
    """What a run reads and writes by its frozen plan, which knows all but the source."""
    from airflow_batch_llm.core.prompt import compile_prompt
    from airflow_batch_llm.core.spec import Spec

    spec = Spec.from_json(plan.spec)
    template = spec.prompt.get("template")  # a function is given all columns
    used = () if template is None else compile_prompt(template, spec.prompt_params).columns
    return Lineage(
        inputs=inputs,
        output=table_uri(database_uri, plan.target.table),
        columns_used=tuple(used or ()),
        columns_made=tuple(plan.target.answer.names),
    )


def to_openlineage(lineages: Iterable[Lineage]) -> Any:
    """Their facets. Airflow asks for them only where its OpenLineage provider is installed."""
    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.providers.openlineage.extractors import OperatorLineage

    inputs: dict[tuple[str, str], Any] = {}
    outputs: dict[tuple[str, str], Any] = {}
    for lineage in lineages:
        for namespace, name in map(_dataset, lineage.inputs):
            inputs[namespace, name] = Dataset(namespace=namespace, name=name)
        namespace, name = _dataset(lineage.output)
        outputs[namespace, name] = Dataset(namespace=namespace, name=name, facets=_facets(lineage))
    return OperatorLineage(inputs=list(inputs.values()), outputs=list(outputs.values()))


def _facets(lineage: Lineage) -> dict[str, Any]:
    """Which columns the answers were made of. Of several tables it is not known which one has the column."""
    from airflow.providers.common.compat.openlineage.facet import (
        ColumnLineageDatasetFacet,
        Fields,
        InputField,
    )

    if len(lineage.inputs) != 1 or not lineage.columns_used:
        return {}
    namespace, name = _dataset(lineage.inputs[0])
    used = [InputField(namespace=namespace, name=name, field=column) for column in lineage.columns_used]
    fields = {column: Fields(inputFields=used) for column in lineage.columns_made}
    return {"columnLineage": ColumnLineageDatasetFacet(fields=fields)}


def tables_of(sql: str, database_uri: str = "") -> Sequence[str]:
    """The tables that a SELECT reads, by the names that stand in it; none where it cannot be understood."""
    import sqlglot
    from sqlglot import exp

    scheme = urlsplit(database_uri).scheme
    dialect = sqlglot.Dialect.get("duckdb" if scheme == "file" else scheme)
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
