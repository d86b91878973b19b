"""How tables and columns are called in BigQuery: names are read once, whole, and quoted wherever they stand in SQL."""

from dataclasses import dataclass

from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.warehouses.bigquery.types import DIALECT


@dataclass(frozen=True, slots=True, kw_only=True)
class TableName:
    """Where a table is: project, dataset and table."""

    project: str
    dataset: str
    table: str

    def __str__(self) -> str:
        return f"{self.project}.{self.dataset}.{self.table}"

    @property
    def quoted(self) -> str:
        return f"{quoted(self.project)}.{quoted(self.dataset)}.{quoted(self.table)}"


def table_name(written: str, *, project: str, dataset: str | None) -> TableName:
    """Read `table` (of the default dataset, where there is one), `dataset.table` or `project.dataset.table`."""
    parts = DIALECT.parts(written)
    if len(parts) == 1 and dataset is not None:
        return TableName(project=project, dataset=dataset, table=parts[0])
    if len(parts) not in (2, 3):
        raise TargetError(
            f"{written!r} names no BigQuery table. Write dataset.table or project.dataset.table."
        )
    return TableName(project=parts[0] if len(parts) == 3 else project, dataset=parts[-2], table=parts[-1])


def quoted(name: str) -> str:
    """One identifier, quoted."""
    return DIALECT.quote(name)
