"""A world whose tables are in BigQuery, where the vendor reads and writes, too: for stages that run in the warehouse."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from google.cloud.bigquery import QueryJobConfig

from airflow_batch_llm.stage.parts import Parts
from tests.emulators.servers import PROJECT
from tests.stage.world import World
from tests.warehouses.bigquery_dataset import client, open_warehouse


def new_staging(rest: str) -> str:
    """Make a dataset, and return it as Vertex's staging."""
    name = f"stage_{uuid4().hex[:8]}"
    with closing(client(rest)) as google:
        google.create_dataset(f"{PROJECT}.{name}")
    return f"bq://{PROJECT}.{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BigQueryWorld(World):
    """The dataset of `staging` holds everything: the tickets, the target, and what is staged."""

    @property
    def rest(self) -> str:
        return self.environ["BIGQUERY_EMULATOR_HOST"]

    @property
    def dataset(self) -> str:
        return self.staging.rpartition(".")[2]

    def parts(self, **changes: Any) -> Parts:
        warehouse = open_warehouse(self.rest, None, self.dataset)
        return World.parts(self, **{"source": warehouse, "target": warehouse, **changes})

    def rows(self, sql: str) -> list[Mapping[str, Any]]:
        """The rows of a statement, by column."""
        with closing(client(self.rest)) as google:
            config = QueryJobConfig(default_dataset=f"{PROJECT}.{self.dataset}")
            return [dict(row) for row in google.query(sql, job_config=config).result()]

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in self.rows(sql)]

    def make_tickets(self, rows: int, distinct: int | None = None) -> None:
        """Rows whose texts repeat after `distinct` of them."""
        number = f"CAST(MOD(i, {distinct or rows}) AS STRING)"
        self.ask(
            "CREATE OR REPLACE TABLE tickets AS SELECT i AS id,"
            f" CONCAT('subject ', {number}) AS subject, CONCAT('body of ', {number}) AS body"
            f" FROM UNNEST(GENERATE_ARRAY(0, {rows - 1})) AS i"
        )

    def tables(self, *, lasting: bool = False) -> set[str]:
        """The names of all tables, or of those that do not vanish by themselves."""
        with closing(client(self.rest)) as google:
            tables = google.list_tables(f"{PROJECT}.{self.dataset}")
            return {table.table_id for table in tables if not (lasting and table.expires)}

    def seen(self) -> dict[str, Any]:
        """As ever, and the tables with the times of their creation and their end, but those that the vendor writes."""
        with closing(client(self.rest)) as google:
            found = google.list_tables(f"{PROJECT}.{self.dataset}")
            own = [table for table in found if not table.table_id.startswith("llm_answers_")]
        tables = {table.table_id: (table.created, table.expires) for table in own}
        return World.seen(self) | {"tables": tables}
