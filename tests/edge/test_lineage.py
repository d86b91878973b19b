"""What OpenLineage is told."""

from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_batch_llm.operators import llm_transform
from airflow_batch_llm.operators.lineage import Lineage, tables_of
from tests.edge.conftest import World
from tests.edge.dag_runs import states
from tests.edge.tasks import transform


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("SELECT * FROM support.tickets WHERE day > 1", ["support.tickets"]),
        ("WITH new AS (SELECT * FROM a) SELECT * FROM new JOIN b.c USING (id)", ["a", "b.c"]),
        ("not a SELECT (", []),
    ],
)
def test_the_tables_of_a_select_are_its_inputs(sql: str, tables: list[str]) -> None:
    assert list(tables_of(sql)) == tables


def test_a_run_notes_its_tables_and_columns_where_openlineage_is_installed(
    world: World, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[Lineage | None] = []
    monkeypatch.setattr(llm_transform, "find_spec", lambda name: object())  # as if the provider were here
    with DAG("lineage", schedule=None) as dag:
        transform(post_execute=lambda context, result: noted.append(context["task"]._lineage))

    assert states(run(dag)) == {"label": "success"}
    file = f"file://{world.duckdb_path}"
    assert noted == [
        Lineage(
            inputs=(f"{file}/tickets",),
            output=f"{file}/labels",
            columns_used=("body", "subject"),
            columns_made=("topic", "urgent"),
        )
    ]


def test_tables_are_named_as_openlineage_names_them() -> None:
    pytest.importorskip("airflow.providers.openlineage")
    lineage = Lineage(
        inputs=("postgres://db:5432/shop/support/tickets", "bigquery://project/support/tickets"),
        output="file:///data/w.duckdb/labels",
        columns_used=("body",),
        columns_made=("topic",),
    )

    told = lineage.to_openlineage()

    assert [(one.namespace, one.name) for one in told.inputs] == [
        ("postgres://db:5432", "shop.support.tickets"),
        ("bigquery", "project.support.tickets"),
    ]
    (output,) = told.outputs
    assert (output.namespace, output.name) == ("file", "/data/w.duckdb/labels")
    fields = output.facets["columnLineage"].fields["topic"].inputFields
    assert [field.field for field in fields] == ["body", "body"]
