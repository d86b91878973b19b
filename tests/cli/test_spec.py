from pathlib import Path

import pytest

from airflow_batch_llm.commands.spec import Opening, read_spec
from airflow_batch_llm.errors import InputError

GOOD = """
model_id: openai:gpt-5-mini
warehouse: {duckdb: w.duckdb}
source: {table: tickets}
key: id
prompt: "{{ subject }}"
target: labels
workspace: runs
"""


def _refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_spec(path)
    return str(refused.value)


def test_what_is_left_out_has_the_defaults_of_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(GOOD)

    spec = read_spec(path)

    stage = spec.stage
    assert (stage.max_cost_usd, stage.pace.rows_per_batch, stage.target) == (25.0, 10_000, "labels")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("guards: {max_attempt: 3}", "guards.max_attempt is unknown; is it max_attempts?"),
        ("max_cost: 3", "max_cost is unknown; is it max_cost_usd?"),
        ("shape: {partition: day}", "shape.partition is unknown; is it partition_by?"),
        ("promt: x", "promt is unknown; is it prompt?"),
        ("provider: {api_key: sk-123}", "api_key: a secret does not stand in the file; name the"),
        (
            "prompt_file: p.md",
            "Exactly one of prompt and prompt_file is needed, got both",
        ),
        ("output_type: [yes, no]", "quote them"),
        ("only: some", "only must be one of 'changed', 'outdated', 'new' or 'all', got 'some'"),
        ("pace: {rows_per_batch: many}", "pace.rows_per_batch must be an int, got 'many'"),
        ("shape: {target: other}", "shape.target is unknown"),
        ("provider: {base_url: localhost:8765}", "provider.base_url must begin with https:// or http://"),
    ],
)
def test_a_field_that_does_not_fit_is_named_with_what_to_do(tmp_path: Path, more: str, said: str) -> None:
    message = _refused(tmp_path, GOOD + more)

    assert said in message
    assert "sk-123" not in message


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("pace: {rows_per_batch: 0}", "pace.rows_per_batch must be 1 or more, got 0"),
        ("pace: {max_active_batches: 0}", "pace.max_active_batches must be 1 or more, got 0"),
        ("guards: {max_attempts: 0}", "guards.max_attempts must be 1 or more, got 0"),
        ("max_rows: -1", "max_rows must be 0 or more, got -1"),
        ("guards: {min_success_ratio: 95}", "guards.min_success_ratio must be 1 or less, got 95"),
        ("shape: {failures_target: labels}", "failures_target is the target, labels"),
    ],
)
def test_a_slip_in_a_number_or_a_name_is_told_before_it_costs_anything(
    tmp_path: Path, more: str, said: str
) -> None:
    assert said in _refused(tmp_path, GOOD + more)


def test_a_source_is_one_thing(tmp_path: Path) -> None:
    message = _refused(tmp_path, GOOD.replace("{table: tickets}", "{table: tickets, sql: SELECT 1}"))

    assert "source needs exactly one of sql, table, uri, and it has sql and table" in message


def test_a_model_id_names_its_provider(tmp_path: Path) -> None:
    assert "<provider>:<model>" in _refused(tmp_path, GOOD.replace("openai:gpt-5-mini", "gpt-5-mini"))


def test_broken_yaml_is_named_by_its_line(tmp_path: Path) -> None:
    assert "not valid YAML in line 2" in _refused(tmp_path, "key: id\nprompt: [")


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_spec(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("{duckdb: w.duckdb}", "nightly-4662b9206f5b"),
        ("{postgres: {dsn_env: PG}}", "nightly-2673420a7141"),
        ("{bigquery: {project: shop, dataset: support}}", "nightly-a56d1e14b1b8"),
    ],
)
def test_the_same_question_has_the_same_run_as_in_older_releases(
    tmp_path: Path, section: str, name: str
) -> None:
    path = tmp_path / "spec.yaml"
    source = "source: {table: tickets, warehouse: {sqlite: s.db}}\noutput_type: [a, b]"
    text = GOOD.replace("{duckdb: w.duckdb}", section).replace("source: {table: tickets}", source)
    path.write_text(text)

    assert Opening.of(read_spec(path), path).run_name("nightly") == name


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("{duckdb: w.duckdb, sqlite: s.db}", "exactly one of bigquery, duckdb, postgres, sqlite, and it has"),
        ("{dukdb: w.duckdb}", "warehouse.dukdb is unknown; is it duckdb?"),
        ("{postgres: {dsn: x}}", "dsn: a secret does not stand in the file; name the environment variable"),
    ],
)
def test_a_warehouse_that_does_not_fit_is_told(tmp_path: Path, section: str, said: str) -> None:
    assert said in _refused(tmp_path, GOOD.replace("{duckdb: w.duckdb}", section))
