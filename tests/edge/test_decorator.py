"""A function of the row as a task."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, task

from airflow_batch_llm.decorators import llm_transform_task
from airflow_batch_llm.errors import InputError, PromptError
from tests.edge.conftest import TICKETS, World
from tests.edge.dag_runs import read_dags, states, xcom
from tests.edge.tasks import arguments

Run = Callable[..., Any]

FILE = '''
from airflow.sdk import DAG, task

with DAG("decorated", schedule=None, default_args={{"retries": 0}}):

    @task
    def budget() -> float:
        return 5.0

    @task.llm_transform(
        source_table="tickets",
        source_conn_id="warehouse",
        key="ticket_id",
        model_id="anthropic:claude-haiku-4-5",
        only="outdated",
        {changed},
    )
    def label(row, params):
        """Labels the tickets."""
        return f"{{params['greeting']}} {{row['subject']}}"

    label(max_cost_usd=budget(), prompt_params={{"greeting": "{{{{ params.greeting }}}}"}}, target="labels")
'''


def functions(**changes: Any) -> dict[str, Any]:
    return arguments(task_id=..., prompt=..., **changes)


def read(path: Path) -> Any:
    """The Dag of a file, read as Airflow reads it."""
    (dag,) = read_dags(path, path.parent).values()
    dag.params["greeting"] = "About"
    return dag


def test_a_function_in_a_dag_file_is_the_prompt_and_its_decorator_is_not(
    world: World, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "dags" / "decorated.py"
    file.parent.mkdir()
    file.write_text(FILE.format(changed="deferrable=True"))
    dag = read(file)
    done = run(dag)

    assert states(done) == {"budget": "success", "label": "success"}
    assert xcom(done, "label")["outcomes"] == {"succeeded": len(TICKETS)}
    task = dag.get_task("label")
    assert (task.operator_name, task.doc_md) == ("@task.llm_transform", "Labels the tickets.")
    (requests,) = (world.folder / "workspace").rglob("*.requests.jsonl")
    assert requests.read_text().count("About Ticket") == len(TICKETS)

    file.write_text(FILE.format(changed="max_rows=100,\n        pool_slots=1"))
    done = run(read(file))

    assert xcom(done, "label")["why"] == {"answered": len(TICKETS)}
    assert world.rows_charged() == len(TICKETS)


def test_the_operators_arguments_may_be_mapped_over_and_overridden(world: World, run: Run) -> None:
    with DAG("decorated_mapped", schedule=None, default_args={"source_conn_id": "warehouse"}) as dag:

        @task
        def halves() -> list[str]:
            return [f"SELECT * FROM tickets WHERE ticket_id % 2 = {rest}" for rest in (0, 1)]

        @task
        def table() -> str:
            return "labels"

        @task.llm_transform(**functions(source_table=..., source_conn_id=..., target=...))
        def label(row: Mapping[str, object]) -> str:
            return f"{row['subject']}\n\n{row['body']}"

        half = label.partial(target=table()).expand(source_sql=halves())  # type: ignore[attr-defined]
        twice = label.override(task_id="twice", only="new").expand_kwargs(  # type: ignore[attr-defined]
            [{"target": "labels", "source_table": "tickets"}, {"target": "others", "source_table": "tickets"}]
        )
        half >> twice
        half >> label(target="labels", source_table="tickets")  # type: ignore[call-arg]

    done = run(dag)

    assert states(done) == dict.fromkeys(
        ["halves", "table", "label[0]", "label[1]", "twice[0]", "twice[1]", "label__1"], "success"
    )
    assert world.query("SELECT count(*), count(DISTINCT ticket_id) FROM labels") == [(12, 12)]
    assert world.query("SELECT count(*) FROM others") == [(12,)]
    assert world.rows_charged() == 2 * len(TICKETS)
    assert xcom(done, "label__1")["why"] == {"answered": len(TICKETS)}


def test_a_decorated_function_takes_the_conditions_of_airflows_own_tasks(world: World, run: Run) -> None:
    with DAG("decorated_skipped", schedule=None) as dag:

        @task.skip_if(lambda context: True)
        @llm_transform_task(**functions())
        def label(row: Mapping[str, object]) -> str:
            return f"{row['subject']}"

        label()

    assert states(run(dag)) == {"label": "skipped"}
    assert world.rows_charged() == 0


@pytest.mark.parametrize(
    ("use", "error", "advice"),
    [
        (lambda label: label("tickets"), InputError, "Give it arguments of LLMTransformOperator, by name"),
        (lambda label: label(prompt="x"), InputError, "The decorated function is the prompt"),
        (lambda label: label(task_id="x"), InputError, "use .override"),
        (lambda label: label.expand(row=[1]), TypeError, "unexpected keyword argument 'row'"),
        (lambda label: label.partial(retries=1), TypeError, "unexpected keyword argument 'retries'"),
    ],
)
def test_a_call_that_cannot_be_meant_is_refused_while_the_dag_is_read(
    use: Callable[[Any], Any], error: type[Exception], advice: str
) -> None:
    with DAG("decorated_wrongly", schedule=None):

        @llm_transform_task(**functions())
        def label(row: Mapping[str, object]) -> str:
            return f"{row['subject']}"

        with pytest.raises(error, match=advice):
            use(label)


def test_a_function_of_three_columns_is_told_that_it_is_given_the_row() -> None:
    with DAG("decorated_columns", schedule=None):

        @llm_transform_task(**functions())
        def label(subject: str, body: str, day: str) -> str:
            return subject + body + day

        with pytest.raises(PromptError, match="called with the row"):
            label()
