"""Judge answers in SQL, as far as a query can be sure of them, with the same values that a worker would read.

A query is sure of an answer that one regular expression, made from the output type's schema, describes to its last
character: no property twice, none more, none in another order. After that match, BigQuery's JSON functions cannot read
anything else than a worker's parser. BigQuery and the emulator of the tests share the engine of regular expressions, RE2.

The response around an answer is the vendor's own JSON: a query relies on it to name nothing twice.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

from airflow_batch_llm.core.answer import storable
from airflow_batch_llm.core.answer_schema import (
    DECIMAL,
    DECIMAL_PLACES,
    MAX_DIGITS,
    branches_at,
    decimal_digits,
)
from airflow_batch_llm.core.model import ColumnType, Outcome, ResultForm
from airflow_batch_llm.core.output_type import AnswerKind, Column, OutputType
from airflow_batch_llm.core.schema_rules import admits_null, inline_refs
from airflow_batch_llm.errors import OutputTypeError
from airflow_batch_llm.warehouses.bigquery.requests import is_blank_sql, text_sql

_MODEL_CHARS = 200
_COUNT = "^[0-9]{1,8}$"

#: White space in JSON, and its texts: without U+0000, and with surrogates in pairs alone.
_WS = r"[ \t\n\r]*"
_HEX = "[0-9a-fA-F]"
_UNIT = (
    rf"\\u(?:000[1-9a-fA-F]|00[1-9a-fA-F]{_HEX}|0[1-9a-fA-F]{_HEX}{{2}}|[1-9a-cA-CeEfF]{_HEX}{{3}}|[dD][0-7]{_HEX}{{2}}"
    rf"|[dD][89abAB]{_HEX}{{2}}\\u[dD][c-fC-F]{_HEX}{{2}})"
)
_STRING = rf'"(?:[^"\\\x{{00}}-\x{{1f}}]|\\["\\/bfnrt]|{_UNIT})*"'
#: Numbers that are read alike everywhere: few enough digits, and no zero below zero.
_INTEGER = "(?:0|-?[1-9][0-9]{0,17})"
_NUMBER = (
    r"(?:-?[1-9][0-9]{0,14}(?:\.[0-9]{1,17})?|0(?:\.[0-9]{1,17})?|-0\.0{0,9}[1-9][0-9]{0,9})"
    r"(?:[eE][-+]?[0-9]{1,2})?"
)
#: The digits of a number that is exact however a database keeps it in between, and those after the point.
_EXACT_DIGITS, _EXACT_PLACES = 15, 6

#: A response without U+0000 and without lone surrogates, which JSON functions and tables take.
_STORABLE = rf"^(?:[^\\]|\\[^u]|{_UNIT})*$"

_DATE = "[12][0-9]{3}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
_ZONE = "(?:Z|[+-](?:0[0-9]|1[0-3]):[0-5][0-9])"
_TIMESTAMP = rf"{_DATE}T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.(?:[0-9]{{3}}){{1,2}})?"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOST_PATTERN = 30_000  # characters, beyond which an engine may refuse it

#: Keywords of a schema that no answer can break.
_REMARKS = frozenset({"title", "description", "default", "examples", "deprecated"})
_RULES: Mapping[str, frozenset[str]] = {
    "string": frozenset({"minLength", "maxLength", "format"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
    "number": frozenset(
        {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "format", MAX_DIGITS, DECIMAL_PLACES}
    ),
    "boolean": frozenset(),
    "null": frozenset(),
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
}
_COMPARED = {"minimum": ">=", "maximum": "<=", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}


def judged_sql(output_type: OutputType, form: ResultForm, results: str) -> str:
    """Return the query that judges results: rows of `custom_id`, `status` and `response`, which is JSON as a STRING.

    It gives each row `_llm_unsure`, and where that is false the outcome, the model, the tokens and the answer's columns
    `a0`, `a1` and so on, in the types of a staged row.
    """
    judge = _judge(output_type)
    counts = {
        f"_llm_{name}_tokens": _sum(form, names)
        for name, names in (
            ("input", form.input_tokens),
            ("cached", form.cached_tokens),
            ("output", form.output_tokens),
            ("reasoning", form.reasoning_tokens),
        )
    }
    kept = {"_llm_outcome": f"'{Outcome.SUCCEEDED}'", "_llm_model": _model(form), **counts}
    names = [*kept, *(f"a{at}" for at in range(len(output_type.columns)))]
    shown = ", ".join(f"IF(sure, {name}, NULL) AS {name}" for name in names)
    answers = "".join(f", {value} AS a{at}" for at, value in enumerate(judge.values))
    whole = f"IF(REGEXP_CONTAINS(response, {text_sql(_STORABLE)}), response, NULL)"
    sure = " AND ".join([*_of_the_form(form), *judge.conditions])
    return (
        f"SELECT custom_id, NOT sure AS _llm_unsure, {shown}\n"
        f"FROM (SELECT *, IFNULL({sure}, FALSE) AS sure\n"
        f"FROM (SELECT *{answers}, {', '.join(f'{value} AS {name}' for name, value in kept.items())}\n"
        f"FROM (SELECT *, {judge.fitting} AS fit\n"
        f"FROM (SELECT *, {_text(form)} AS said\n"
        f"FROM (SELECT custom_id, status, {whole} AS r FROM {results})))))"
    )


def _at(json: str, path: str) -> str:
    """Return the expression of the value at a path, as JSON text, or NULL for null or no value."""
    return f"NULLIF(JSON_QUERY({json}, '{path}'), 'null')"


def _list(json: str, path: str) -> str:
    """Return the expression of a list's items, as JSON texts. NULL if there is no list, since the emulator fails there."""
    return f"JSON_QUERY_ARRAY(IF(STARTS_WITH({_at(json, path)}, '['), {json}, NULL), '{path}')"


def _text(form: ResultForm) -> str:
    """Return the expression of an answer's text. NULL where a part is none that a query knows."""
    parts = f"UNNEST({_list('r', form.parts)}) AS part WITH OFFSET AS place"
    thought, text = _at("part", form.thought), _at("part", form.text)
    known = f"IFNULL({thought}, 'false') = 'true' OR IFNULL({thought}, 'false') = 'false' AND STARTS_WITH({text}, '\"')"
    shown = f"IF({thought} = 'true', '', JSON_VALUE(part, '{form.text}'))"
    return f"(SELECT IF(LOGICAL_AND(IFNULL({known}, FALSE)), STRING_AGG({shown}, '' ORDER BY place), NULL) FROM {parts})"


def _of_the_form(form: ResultForm) -> Iterator[str]:
    """Yield the conditions that a response is a whole answer of the form, for which alone its parts are read."""
    yield "custom_id != ''"
    yield "IFNULL(status, '') = ''"
    yield f"{_at('r', form.end)} = '\"{form.whole}\"'"
    for path in form.unclear:
        yield f"{_at('r', path)} IS NULL"
    yield f"IFNULL(STARTS_WITH({_at('r', form.model)}, '\"'), TRUE)"
    yield f"IFNULL(STARTS_WITH({_at('r', form.usage)}, '{{'), TRUE)"
    names = {*form.input_tokens, *form.cached_tokens, *form.output_tokens, *form.reasoning_tokens}
    for name in sorted(names):
        yield f"IFNULL(REGEXP_CONTAINS({_count(form, name)}, '{_COUNT}'), TRUE)"
    yield f"NOT ({is_blank_sql('said')})"


def _count(form: ResultForm, name: str) -> str:
    return _at("r", f"{form.usage}.{name}")


def _sum(form: ResultForm, names: Sequence[str]) -> str:
    return " + ".join(f"IFNULL(SAFE_CAST({_count(form, name)} AS INT64), 0)" for name in names)


def _model(form: ResultForm) -> str:
    return f"NULLIF(SUBSTR(JSON_VALUE(r, '{form.model}'), 1, {_MODEL_CHARS}), '')"


#: The types of a judged row. JSON is text there, as in a staged row.
_TYPES: Mapping[ColumnType, str] = {
    ColumnType.STRING: "STRING",
    ColumnType.INTEGER: "INT64",
    ColumnType.NUMBER: "FLOAT64",
    ColumnType.DECIMAL: "NUMERIC",
    ColumnType.BOOLEAN: "BOOL",
    ColumnType.TIMESTAMP: "TIMESTAMP",
    ColumnType.DATE: "DATE",
    ColumnType.JSON: "STRING",
    ColumnType.VECTOR: "ARRAY<FLOAT64>",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judge:
    """The expressions that judge an answer's text, `said`. The others read `fit`, the text if it fits."""

    fitting: str
    values: Sequence[str]
    conditions: Sequence[str]


class _Unsure(Exception):
    """SQL cannot express the schema."""


def _judge(output_type: OutputType) -> _Judge:
    if output_type.kind is AnswerKind.TEXT:
        return _Judge(fitting="said", values=["said"], conditions=["said IS NOT NULL"])
    try:
        schema = inline_refs(output_type.schema or {})
        pattern = _Pattern(schema)
        whole = f"^{_WS}{pattern.of(schema, ())}{_WS}$"
        if len(whole) > _MOST_PATTERN:
            raise _Unsure
        read = [_value(column, schema) for column in output_type.columns]
    except (_Unsure, OutputTypeError, re.error):
        nothing = [f"CAST(NULL AS {_TYPES[column.type]})" for column in output_type.columns]
        return _Judge(fitting="said", values=nothing, conditions=["FALSE"])
    conditions = ["fit IS NOT NULL", *pattern.conditions]
    conditions += [
        condition.replace("{}", f"a{at}") for at, (_, some) in enumerate(read) for condition in some
    ]
    fitting = f"IF(REGEXP_CONTAINS(said, {text_sql(whole)}), said, NULL)"
    return _Judge(fitting=fitting, values=[value for value, _ in read], conditions=conditions)


def _value(column: Column, schema: Mapping[str, Any]) -> tuple[str, Sequence[str]]:
    """Return the expression of a column's value, and the conditions for which that is a worker's. `{}` is the value."""
    path = ".".join(("$", *column.path))
    text = f"JSON_VALUE(fit, '{path}')"
    read = f"({text} IS NULL) = ({{}} IS NULL)"
    typed = f"SAFE_CAST({text} AS {_TYPES[column.type]})"
    match column.type:
        case ColumnType.STRING:
            return text, ()
        case ColumnType.INTEGER | ColumnType.NUMBER | ColumnType.BOOLEAN:
            return typed, [read]
        case ColumnType.DECIMAL:
            kinds = [one.get("format", one.get("type")) for one in branches_at(schema, column.path)]
            if not {*kinds} <= {DECIMAL, "null"}:  # another number may have more digits
                raise _Unsure
            return typed, [read, f"IFNULL({{}} != 0 OR NOT STARTS_WITH({text}, '-'), TRUE)"]
        case ColumnType.DATE:
            return typed, [read, f"IFNULL(REGEXP_CONTAINS({text}, '^{_DATE}$'), TRUE)"]
        case ColumnType.TIMESTAMP:
            known = f"IFNULL(REGEXP_CONTAINS({text}, {text_sql(f'^{_TIMESTAMP}{_ZONE}?$')}), TRUE)"
            zoned = f"IF(REGEXP_CONTAINS({text}, {text_sql(f'{_ZONE}$')}), {text}, CONCAT({text}, 'Z'))"
            return f"SAFE_CAST({zoned} AS TIMESTAMP)", [read, known]
        case ColumnType.JSON:
            return _at("fit", path), ()
        case ColumnType.VECTOR:
            raise _Unsure
        case _:
            assert_never(column.type)


@dataclass(slots=True)
class _Pattern:
    """Writes the regular expression of a schema's answers, and the conditions that it cannot say."""

    root: Mapping[str, Any]
    conditions: list[str] = field(default_factory=list)

    def of(self, node: Any, path: tuple[str, ...] | None) -> str:
        """Return the pattern of a schema's values at a path, or None within a list."""
        if not isinstance(node, Mapping):
            raise _Unsure
        rules = {name: rule for name, rule in node.items() if name not in _REMARKS}
        for union in ("anyOf", "oneOf"):
            if union in rules:
                return self._one_of(rules, union, path)
        if "enum" in rules or "const" in rules:
            return _members(rules)
        kinds = rules.pop("type", "object" if "properties" in rules else None)
        names = [kinds] if isinstance(kinds, str) else kinds
        if not names or not all(name in _RULES for name in names):
            raise _Unsure
        allowed = frozenset().union(*(_RULES[name] for name in names))
        if not rules.keys() <= allowed:
            raise _Unsure
        return _any([self._typed(name, rules, path) for name in names])

    def _one_of(self, rules: Mapping[str, Any], union: str, path: tuple[str, ...] | None) -> str:
        branches = rules[union]
        nulls = [branch for branch in branches if branch == {"type": "null"}]
        others = [branch for branch in branches if branch != {"type": "null"}]
        if len(rules) > 1 or (union == "oneOf" and (len(others), len(nulls)) != (1, 1)):
            raise _Unsure
        if nulls and union == "oneOf" and admits_null(others[0], self.root):
            raise _Unsure
        return _any([self.of(branch, path) for branch in branches])

    def _typed(self, kind: str, rules: Mapping[str, Any], path: tuple[str, ...] | None) -> str:
        match kind:
            case "string":
                self._text_rules(rules, path)
                return _STRING
            case "integer":
                self._number_rules(rules, path, "INT64")
                return _INTEGER
            case "number":
                self._number_rules(rules, path, "FLOAT64")
                return _NUMBER if path is None or rules.get("format") != DECIMAL else self._decimal(path)
            case "boolean":
                return "(?:true|false)"
            case "null":
                return "null"
            case "object":
                return self._object(rules, path)
            case _:
                return self._array(rules, path)

    def _decimal(self, path: tuple[str, ...]) -> str:
        digits, places = decimal_digits(self.root, path)
        places = min(places, _EXACT_PLACES)
        before = min(digits - places, _EXACT_DIGITS - places) - 1
        whole = f"(?:0|[1-9][0-9]{{0,{before}}})" if before >= 0 else "0"
        after = rf"(?:\.[0-9]{{1,{places}}})?" if places else ""
        return f"-?{whole}{after}"

    def _object(self, rules: Mapping[str, Any], path: tuple[str, ...] | None) -> str:
        properties = rules.get("properties", {})
        required = rules.get("required", ())
        if not properties or not {*required} <= properties.keys():
            raise _Unsure
        members = []
        for at, (name, child) in enumerate(properties.items()):
            if not _NAME.fullmatch(name):
                raise _Unsure
            value = self.of(child, None if path is None else (*path, name))
            if path == () and name not in required and not admits_null(child, self.root):
                value = _any([value, "null"])  # left out, as a worker reads it
            member = f'{_WS}"{name}"{_WS}:{_WS}{value}'
            if at:
                member = f"{_WS},{member}"
            members.append(member if name in required or not at else f"(?:{member})?")
        return rf"\{{{''.join(members)}{_WS}\}}"

    def _array(self, rules: Mapping[str, Any], path: tuple[str, ...] | None) -> str:
        item = self.of(rules.get("items"), None)
        for name, sign in (("minItems", ">="), ("maxItems", "<=")):
            if name in rules:
                count = f"ARRAY_LENGTH({_list('fit', _json_path(path))})"
                self._require(f"{count} {sign} {int(rules[name])}", path)
        return rf"\[{_WS}(?:{item}(?:{_WS},{_WS}{item})*{_WS})?\]"

    def _text_rules(self, rules: Mapping[str, Any], path: tuple[str, ...] | None) -> None:
        if rules.get("format", "date") not in ("date", "date-time"):
            raise _Unsure
        for name, sign in (("minLength", ">="), ("maxLength", "<=")):
            if name in rules:
                self._require(
                    f"CHAR_LENGTH(JSON_VALUE(fit, '{_json_path(path)}')) {sign} {int(rules[name])}", path
                )

    def _number_rules(self, rules: Mapping[str, Any], path: tuple[str, ...] | None, kind: str) -> None:
        for name, sign in _COMPARED.items():
            if name in rules:
                value = f"SAFE_CAST(JSON_VALUE(fit, '{_json_path(path)}') AS {kind})"
                self._require(f"{value} {sign} {_number(rules[name], kind)}", path)
        if "multipleOf" in rules:
            value = f"SAFE_CAST(JSON_VALUE(fit, '{_json_path(path)}') AS INT64)"
            self._require(f"MOD({value}, {_number(rules['multipleOf'], 'INT64')}) = 0", path)

    def _require(self, condition: str, path: tuple[str, ...] | None) -> None:
        """Keep a condition on the value at a path, unless there is none."""
        there = _at("fit", _json_path(path))
        self.conditions.append(f"IF({there} IS NULL, TRUE, IFNULL({condition}, FALSE))")


def _json_path(path: tuple[str, ...] | None) -> str:
    if path is None:
        raise _Unsure
    return ".".join(("$", *path))


def _number(bound: Any, kind: str) -> str:
    """Write a bound of a number of this type."""
    if type(bound) is int and abs(bound) < 10**_EXACT_DIGITS:
        return str(bound)
    if type(bound) is float and kind == "FLOAT64":
        return f"CAST('{bound!r}' AS FLOAT64)"
    raise _Unsure


def _members(rules: Mapping[str, Any]) -> str:
    """Return the pattern of a fixed few values, of those that the type admits."""
    if not rules.keys() <= {"enum", "const", "type"} or {"enum", "const"} <= rules.keys():
        raise _Unsure
    kinds = rules.get("type")
    names = {kinds} if isinstance(kinds, str) else set(kinds or _RULES)
    values = [rules["const"]] if "const" in rules else rules["enum"]
    told = [_member(value) for value in values if _kind(value) & names]
    if not told:
        raise _Unsure
    return _any(told)


def _kind(value: object) -> set[str]:
    match value:
        case None:
            return {"null"}
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case str():
            return {"string"}
        case _:
            raise _Unsure


def _member(value: object) -> str:
    if isinstance(value, str) and storable(value) != value:
        raise _Unsure
    return _any([re.escape(json.dumps(value, ensure_ascii=escaped)) for escaped in (False, True)])


def _any(patterns: Sequence[str]) -> str:
    different = list(dict.fromkeys(patterns))
    return different[0] if len(different) == 1 else f"(?:{'|'.join(different)})"
