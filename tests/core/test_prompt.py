"""The row's text, by template and by function."""

import traceback
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batch_llm.core.prompt import CompiledPrompt, compile_prompt, identity
from airflow_batch_llm.errors import PromptError

SECRET = "4111-1111"


def through_jinja(prompt: CompiledPrompt) -> CompiledPrompt:
    """The same prompt without the way that avoids Jinja."""
    assert prompt._parts is not None, "this template does not take the fast path"
    return replace(prompt, _parts=None)


def one(template: str, params: Mapping[str, object] | None = None, /, **row: object) -> str:
    prompt = compile_prompt(template, params)
    prompt.check(row)
    return prompt.render(row)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.decimals(allow_nan=False, allow_infinity=False, places=3),
    st.text(st.characters(codec=None), max_size=20),
    st.dates(),
    st.datetimes(timezones=st.sampled_from([None, UTC])),
    st.binary(max_size=3),
    st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=3),
    st.dictionaries(
        st.sampled_from(["x", "y", "items"]), st.one_of(st.none(), st.text(max_size=5)), max_size=3
    ),
)
PIECES = st.sampled_from(
    [
        "{{ a }}",
        "{{b}}",
        "{{ a | upper }}",
        "{{ b|lower|title }}",
        "{{ a | trim }}",
        "{{ a | default('n/a') }}",
        "{{ b | default('x', true) | capitalize }}",
        "{{ a.x }}",
        "{{ a['items'] }}",
        "{{ a.x.y | default('-') }}",
        "{{ b | tojson }}",
        "{{ b | string }}",
        "{{ a | truncate(5, leeway=0) }}",
        "{{ b | truncate(1, end='..') }}",
        "{{ a | replace('1', new=2) }}",
        "{{ a | default(default_value='-') }}",
        "{{ params.tone }}",
        "{{ '{{' }}",
        "{# a comment #}",
        'Say "hi"\n\\ \u2028 <b>& é 🙂 ',
        " \n",
        "\r\n",
    ]
)


@given(
    pieces=st.lists(PIECES, min_size=1, max_size=6),
    rows=st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=5),
)
def test_the_fast_path_gives_what_jinja_gives(pieces: list[str], rows: list[tuple[object, object]]) -> None:
    prompt = compile_prompt("".join(pieces), {"tone": "dry"})
    columns = {"a": [a for a, _ in rows], "b": [b for _, b in rows]}
    assert _told(prompt, columns) == _told(through_jinja(prompt), columns)


def _told(prompt: CompiledPrompt, columns: Mapping[str, list[object]]) -> list[bytes | str]:
    return [str(told) if isinstance(told, PromptError) else told for told in prompt.render_batch(columns)]


@given(rows=st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=5))
def test_a_batch_holds_the_encoded_prompt_of_each_row(rows: list[tuple[object, object]]) -> None:
    prompt = compile_prompt("{% if a %}A: {% endif %}{{ a }} and {{ b }}")
    columns = {"a": [a for a, _ in rows], "b": [b for _, b in rows]}
    for (a, b), told in zip(rows, prompt.render_batch(columns), strict=True):
        if isinstance(told, PromptError):
            assert isinstance(a, bytes) or isinstance(b, bytes)
        else:
            assert orjson.loads(told) == prompt.render({"a": a, "b": b})


@pytest.mark.parametrize(
    ("template", "row", "expected"),
    [
        ("{{ subject }}: {{ body }}", {"subject": "Hi", "body": "there"}, "Hi: there"),
        ("<{{ body }}>", {"body": None}, "<>"),
        ("{{ body | default('nothing') }}", {"body": None}, "nothing"),
        ("{{ body | default('nothing') }}", {"body": ""}, ""),
        ("{{ body | default('nothing', true) }}", {"body": ""}, "nothing"),
        ("{{ paid }} {{ n }} {{ price }}", {"paid": True, "n": 3, "price": Decimal("9.90")}, "true 3 9.90"),
        ("{{ at }}", {"at": datetime(2026, 1, 2, tzinfo=UTC)}, "2026-01-02T00:00:00Z"),
        ("{{ tags }}", {"tags": ["a", None]}, '["a",null]'),
        ("{{ tags | join('/') }}", {"tags": ["a", date(2026, 1, 2)]}, "a/2026-01-02"),
        ("{{ buyer.name }}", {"buyer": {"name": "Ann"}}, "Ann"),
        ("<{{ buyer.name }}>", {"buyer": None}, "<>"),
        ("{{ buyer.items }}", {"buyer": {"items": 3}}, "3"),
        (
            "{% for k, v in buyer.items() %}{{ k }}={{ v }};{% endfor %}",
            {"buyer": {"a": 1, "b": None}},
            "a=1;b=;",
        ),
        ("{% if n > 2 %}many{% else %}few{% endif %}", {"n": 3}, "many"),
        ("{{ 'n is ' ~ n ~ at }}", {"n": True, "at": date(2026, 1, 2)}, "n is true2026-01-02"),
        ("{{ at | replace('-', '') }}", {"at": date(2026, 1, 2)}, "20260102"),
        ("{{ body | truncate(8, true, '…', 0) }}", {"body": "abcdefghijk"}, "abcdefg…"),
        ("{{ body }}", {"body": "{{ 7 * 7 }} {% raw %}"}, "{{ 7 * 7 }} {% raw %}"),
        ("{{ body }}", {"body": "<b>&"}, "<b>&"),
    ],
)
def test_a_template_renders_as_documented(template: str, row: dict[str, object], expected: str) -> None:
    prompt = compile_prompt(template)
    columns = {name: [value] for name, value in row.items()}
    if expected:
        assert prompt.render(row) == expected
        assert prompt.render_batch(columns) == [orjson.dumps(expected)]
    else:
        with pytest.raises(PromptError, match="empty"):
            prompt.render(row)


def test_params_are_constants_of_the_template() -> None:
    params = {"day": date(2026, 1, 2), "tone": "dry"}
    assert one("{{ params.day }}: be {{ params['tone'] }}, {{ name }}", params, name="Ann") == (
        "2026-01-02: be dry, Ann"
    )


def test_a_column_called_params_does_not_hide_the_params() -> None:
    assert one("{{ params.x }} {{ n }}", {"x": 1}, n=2, params="row") == "1 2"


def test_a_parameter_that_was_not_given_is_refused_at_once() -> None:
    with pytest.raises(PromptError, match=r"params\.tone.*It has: day"):
        compile_prompt("{{ params.tone }}", {"day": 1})


def test_a_parameter_without_a_text_form_is_refused_at_once() -> None:
    with pytest.raises(PromptError, match="prompt_params\\['x'\\]"):
        compile_prompt("{{ params.x }}", {"x": b"raw"})


def test_the_columns_are_those_that_the_template_uses() -> None:
    template = (
        "{{ b }}{% if a.x %}{{ c|upper }}{% endif %}{% for i in range(n) %}{{ i }}{{ params.p }}{% endfor %}"
    )
    assert compile_prompt(template, {"p": 1}).columns == ("a", "b", "c", "n")


def test_a_missing_column_is_named_beside_those_there_are() -> None:
    with pytest.raises(PromptError, match=r"uses bodi, .*columns are: id, body\."):
        compile_prompt("{{ bodi }} {{ id }}").check(["id", "body"])


@pytest.mark.parametrize("name", ["ds", "logical_date", "data_interval_end", "dag_run", "var"])
def test_an_airflow_name_is_refused_with_the_way_to_pass_it(name: str) -> None:
    with pytest.raises(PromptError) as caught:
        compile_prompt(f"{{{{ {name} }}}}").check(["id"])
    assert f"prompt_params={{'x': '{{{{ {name} }}}}'}}" in str(caught.value)
    assert "{{ params.x }}" in str(caught.value)


def test_a_column_may_bear_the_name_of_an_airflow_value() -> None:
    assert one("day {{ ds }}", ds="2026-01-02") == "day 2026-01-02"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("line one\n{{ body", "line 2"),
        ("{{ body | no_such_filter }}", "no_such_filter"),
        ("{{ body | random }}", "random"),
        ("{% include 'x' %}{{", "line 1"),
    ],
)
def test_a_template_that_cannot_be_compiled_says_where(template: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        compile_prompt(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ body.__class__.__mro__ }}",
        "{{ body.format.__globals__ }}",
        "{{ tags.append(1) }}",
        "{{ range(10000000) | length }}",
        "{% include 'x' %}",
    ],
)
def test_a_template_stays_in_its_sandbox(template: str) -> None:
    with pytest.raises(PromptError):
        compile_prompt(template).render({"body": "x", "tags": [1]})


@pytest.mark.parametrize(
    "template", ["{{ body }}", "{{ body.card }}", "{% if 1 %}{{ body.card }}{% endif %}"]
)
def test_a_row_that_cannot_be_rendered_is_its_own_error_and_shows_no_value(template: str) -> None:
    rows: list[object] = [SECRET.encode(), {"card": SECRET.encode()}, {SECRET: 1, "card": "ok"}, SECRET]
    told = compile_prompt(template).render_batch({"body": rows})
    failed = [item for item in told if isinstance(item, PromptError)]
    assert 0 < len(failed) < len(told)
    for error in failed:
        assert SECRET not in "".join(traceback.format_exception(error))
        assert error.__context__ is error.__traceback__ is None


@pytest.mark.parametrize("blank", [None, "", "  \n", "\u00a0\u2003\x1c"])
def test_a_blank_prompt_is_that_rows_error(blank: object) -> None:
    told = compile_prompt("{{ body }}").render_batch({"body": ["1", blank, "bcd"]})
    assert told[0] == b'"1"'
    assert isinstance(told[1], PromptError)
    assert told[2] == b'"bcd"'


@pytest.mark.parametrize("template", ["Tell a joke", "{ subject }", "{{ params.x }}"])
def test_a_prompt_that_uses_no_column_is_refused(template: str) -> None:
    with pytest.raises(PromptError, match="no column"):
        compile_prompt(template, {"x": 1}).check(["subject"])


def test_a_batch_without_rows_has_no_prompts() -> None:
    assert compile_prompt("{{ a }}").render_batch({"a": []}) == []


def by_row(row: dict[str, object]) -> str:
    return f"{row['subject']}!"


def by_row_and_params(row: dict[str, object], params: Mapping[str, object]) -> str:
    return f"{row['subject']} {params['tone']}"


def test_a_function_is_given_the_whole_row() -> None:
    prompt = compile_prompt(by_row)
    assert prompt.columns is None
    prompt.check([])
    assert prompt.render_batch({"subject": ["a", "b"], "x": [1, 2]}) == [b'"a!"', b'"b!"']


def test_a_function_may_take_the_params_too() -> None:
    assert compile_prompt(by_row_and_params, {"tone": "dry"}).render({"subject": "a"}) == "a dry"


def test_a_function_cannot_change_the_row_for_others() -> None:
    row: dict[str, object] = {"subject": "a"}
    assert compile_prompt(lambda row: str(row.pop("subject"))).render(row) == "a"
    assert row == {"subject": "a"}


def test_a_row_for_which_the_function_raises_is_its_own_error() -> None:
    def checked(row: dict[str, object]) -> str:
        if row["n"] == 2:
            raise ValueError(SECRET)
        return "fine" if row["n"] == 1 else None  # type: ignore[return-value]

    told = compile_prompt(checked).render_batch({"n": [1, 2, 3]})
    assert told[0] == b'"fine"'
    assert isinstance(told[1], PromptError)
    assert "ValueError" in str(told[1])
    assert SECRET not in "".join(traceback.format_exception(told[1]))
    assert "NoneType" in str(told[2])


@pytest.mark.parametrize("prompt", [3, str.upper, lambda: "x", lambda a, b, c: "x"])
def test_what_is_neither_a_template_nor_a_fitting_function_is_refused(prompt: object) -> None:
    with pytest.raises(PromptError):
        compile_prompt(prompt)  # type: ignore[arg-type]


def test_a_template_is_identified_by_its_text() -> None:
    assert identity("{{ a }}") == {"template": "{{ a }}"}


def test_a_function_is_identified_by_its_name_and_source() -> None:
    assert identity(by_row) == {
        "function": f"{__name__}.by_row",
        "source": "def by_row(row: dict[str, object]) -> str:\n    return f\"{row['subject']}!\"\n",
    }


def test_the_decorator_that_makes_a_task_is_not_part_of_the_identity(tmp_path: Path) -> None:
    plain = "def by_row(row):\n    return row['a']\n"
    of_task = "@setup\n@task.llm_transform(\n    key='a',  # a comment\n    max_rows={rows},\n)\n"
    logged = "@logged\n"

    def source(text: str) -> str:
        path = tmp_path / f"m{len(list(tmp_path.iterdir()))}.py"
        path.write_text(text)
        names: dict[str, Any] = {"__name__": "m", "setup": lambda f: f, "logged": lambda f: f}
        names["task"] = SimpleNamespace(llm_transform=lambda **_: lambda f: f)
        names["llm_transform_task"] = lambda f: f
        exec(compile(text, path, "exec"), names)
        return identity(names["by_row"])["source"]

    assert {source(of_task.format(rows=rows) + plain) for rows in (1, 2)} == {plain}
    assert source("@llm_transform_task\n" + plain) == plain
    assert source(of_task.format(rows=1) + logged + plain) == logged + plain
    assert source(logged + plain) == logged + plain


def test_the_name_that_airflow_gives_a_dag_file_is_not_part_of_the_identity() -> None:
    deployed = FunctionType(by_row.__code__, {"__name__": "unusual_prefix_0a1b2c_my_dag"}, "by_row")
    assert identity(deployed)["function"] == "my_dag.by_row"


def test_a_function_without_a_source_is_refused() -> None:
    scope: dict[str, FunctionType] = {}
    exec("def made(row): return 'x'", scope)
    with pytest.raises(PromptError, match="Define it in a file"):
        identity(scope["made"])


def test_importing_the_prompt_does_not_import_jinja() -> None:
    import subprocess
    import sys

    code = "import sys, airflow_batch_llm.core.prompt; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
