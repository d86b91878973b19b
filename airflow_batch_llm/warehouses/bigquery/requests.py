"""Write requests in SQL: the text of a prompt, the hash of an input, and the vendor's request around both.

Each expression gives exactly the bytes that a worker computes from the same row. It only uses functions that give the
same in BigQuery and in the emulator of the tests, so TRIM, FORMAT of a NUMERIC, and `%F` are not used.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
from jinja2.defaults import DEFAULT_POLICIES

from airflow_batch_llm.core.prompt import CompiledPrompt
from airflow_batch_llm.core.request import CUSTOM_ID, ORDINAL_DIGITS, PROMPT, LineTemplate
from airflow_batch_llm.core.template import Cell, Filter, shown
from airflow_batch_llm.core.value import scrub
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.warehouses.bigquery.connection import quoted

#: The white space of Python's `str.strip`, as the inside of a class of characters.
_SPACE = r"\t-\r\x{1c}-\x{1f} \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"

#: Powers of two whose shortest spelling is not the nearest of its length: Python writes it, and FORMAT does not.
_SPELLED_OTHERWISE = (
    *(-1017, -1007, -957, -921, -808, -791, -788, -778, -705, -695, -662, -652, -549, -509, -496, -489, -383),
    *(-366, -296, -140, -97, -77, -44, -24, 89, 122, 132, 172, 182, 275, 305, 345, 378, 398, 405, 481, 534),
    *(544, 554, 574, 594, 710, 803, 863, 896, 976),
)

_MOST_DIGITS = 17  # of a FLOAT64

# A literal is cut where a backslash stands before what would be an escape with it: the emulator reads literals twice.
_CUT = re.compile(r"(?<=\\)(?=u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2}|[0-7]{3})|(\0)")
_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def text_sql(text: str) -> str:
    """Return a constant with any characters. A lone surrogate becomes U+FFFD, as in a worker."""
    parts = [_literal(part) for part in _CUT.split(scrub(text)) if part]
    return _joined(parts) if parts else "''"


def _literal(part: str) -> str:
    if part == "\0":
        return "CODE_POINTS_TO_STRING([0])"
    escaped = (_ESCAPES.get(char) or (char if char >= " " else f"\\x{ord(char):02x}") for char in part)
    return "'" + "".join(escaped) + "'"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"CONCAT({', '.join(parts)})"


def prompt_sql(prompt: CompiledPrompt, types: Mapping[str, str]) -> str:
    """Return the expression of a row's prompt, over the source's columns of these types."""
    if prompt.columns is None:
        raise _refused("a function as its prompt", "write the prompt as a template")
    if prompt.parts is None:
        raise _refused(
            "a prompt with loops, conditions, calculations or filters over several values",
            "compute the text in the source's query, and name its column in the prompt",
        )
    parts = [text_sql(part) if isinstance(part, str) else _cell(part, types) for part in prompt.parts]
    return _joined(parts) if parts else "''"


def input_hash_sql(columns: Sequence[str], types: Mapping[str, str]) -> str:
    """Return the expression of the hash of a row's input, which is the values of these columns."""
    parts = [
        part
        for name in sorted(columns)
        for part in (
            text_sql(f"t{len(name.encode())}:{name}"),
            f"IF({quoted(name)} IS NULL, 'z0:', {_way(name, types)[1](quoted(name))})",
        )
    ]
    return f"LEFT(TO_HEX(SHA256({_joined(parts)})), 32)" if parts else "''"


def custom_id_sql(token: str, ordinal: str) -> str:
    """Return the expression of a request's custom_id. `token` and `ordinal` are expressions; the first ordinal is 0."""
    written = f"CAST({ordinal} AS STRING)"
    zeros = f"REPEAT('0', GREATEST(0, {ORDINAL_DIGITS} - LENGTH({written})))"
    return f"CONCAT({token}, '-', {zeros}, {written})"


def request_sql(template: LineTemplate, prompt: str, custom_id: str) -> str:
    """Return the expression of the request in a line of this template, as JSON text. The two holes take expressions."""
    if template.content is not None:
        raise _refused("images and PDFs", "leave out attachments=")
    line = orjson.loads(template.line(CUSTOM_ID, orjson.dumps(PROMPT)))
    form = LineTemplate.of(line["request"])
    texts, parts = [piece.decode() for piece in form.pieces], []
    for at, hole in enumerate(form.holes):
        quote = "" if hole == PROMPT else '"'
        parts += [text_sql(texts[at] + quote), f"TO_JSON_STRING({prompt})" if hole == PROMPT else custom_id]
        texts[at + 1] = quote + texts[at + 1]
    parts.append(text_sql(texts[-1]))
    return _joined(parts)


def is_blank_sql(prompt: str) -> str:
    """Return the condition that a prompt is empty or white space alone, so that it is not sent."""
    return f"NOT REGEXP_CONTAINS({prompt}, {text_sql(f'[^{_SPACE}]')})"


def encoded_bytes_sql(prompt: str) -> str:
    """Return the expression of a prompt's bytes as JSON, by which requests are measured and tokens estimated."""
    return f"BYTE_LENGTH(TO_JSON_STRING({prompt}))"


Way = tuple[Callable[[str], str], Callable[[str], str]]


def _plain(letter: str, text: Callable[[str], str]) -> Way:
    """Return the two expressions of a type: its text in a prompt, which a hash takes after a letter and its length."""
    return text, lambda value: _counted(letter, text(value))


def _counted(letter: str, text: str) -> str:
    return f"CONCAT('{letter}', CAST(BYTE_LENGTH({text}) AS STRING), ':', {text})"


def _numeric(value: str) -> str:
    """Write all nine places, as a worker reads them."""
    written = f"CAST({value} AS STRING)"
    places = f"IFNULL(REGEXP_EXTRACT({written}, '[.]([0-9]+)$'), '')"
    return f"CONCAT(REGEXP_EXTRACT({written}, '^-?[0-9]+'), '.', RPAD({places}, 9, '0'))"


def _numeric_hashed(value: str) -> str:
    return _counted("n", f"REGEXP_REPLACE({_numeric(value)}, '[.]?0*$', '')")


def _clock(value: str, kind: str) -> str:
    """Write a time of day. BigQuery's microseconds are those of the second, and the emulator's those of the minute."""
    micros = f"MOD(EXTRACT(MICROSECOND FROM {value}), 1000000)"
    part = f"IF({micros} = 0, '', CONCAT('.', LPAD(CAST({micros} AS STRING), 6, '0')))"
    return f"CONCAT(FORMAT_{kind}('%H:%M:%S', {value}), {part})"


def _datetime(value: str) -> str:
    return f"CONCAT(CAST(DATE({value}) AS STRING), 'T', {_clock(value, 'DATETIME')})"


def _timestamp(value: str) -> str:
    in_utc = f"DATETIME({value}, 'UTC')"
    return f"CONCAT({_datetime(in_utc)}, 'Z')"


def _float(value: str, shown: str) -> str:
    """Take a FLOAT64 apart: `s` is its shortest spelling with an exponent, `d` the digits of that, `e` the exponent."""
    lengths = range(_MOST_DIGITS)
    spelled = [
        f"WHEN SAFE_CAST(FORMAT('%.{n}e', v) AS FLOAT64) = v THEN FORMAT('%.{n}e', v)" for n in lengths
    ]
    powers = [repr(2.0**power) for power in _SPELLED_OTHERWISE]
    others = [f"WHEN ABS(v) = {power} THEN CONCAT(IF(v < 0, '-', ''), '{power}')" for power in powers]
    shortest = f"SELECT v, CASE {' '.join([*others, *spelled])} END AS s FROM (SELECT {value} AS v)"
    taken = (
        "SELECT v, s, IF(STARTS_WITH(s, '-'), '-', '') AS m, "
        "REGEXP_REPLACE(REGEXP_EXTRACT(s, '^-?([0-9.]+)'), '[.]', '') AS d, "
        f"SAFE_CAST(REGEXP_EXTRACT(s, 'e[+]?(-?[0-9]+)$') AS INT64) AS e FROM ({shortest})"
    )
    return f"(SELECT {shown} FROM ({taken}))"


#: The names of NaN and the infinities, and a number without an exponent.
_NO_NUMBER = "WHEN IS_NAN(v) THEN 'NaN' WHEN IS_INF(v) THEN IF(v > 0, 'Infinity', '-Infinity')"
_WHOLE = "CONCAT(m, d, REPEAT('0', GREATEST(0, e + 1 - LENGTH(d))))"
_FRACTION = (
    "IF(e < 0, CONCAT(m, '0.', REPEAT('0', GREATEST(0, -e - 1)), d),"
    " CONCAT(m, SUBSTR(d, 1, GREATEST(0, e + 1)), '.', SUBSTR(d, GREATEST(1, e + 2))))"
)


def _float_text(value: str) -> str:
    near = f"IF(e + 1 >= LENGTH(d), CONCAT({_WHOLE}, '.0'), {_FRACTION})"
    written = _float(value, f"CASE {_NO_NUMBER} WHEN e BETWEEN -4 AND 15 THEN {near} ELSE s END")
    # A subquery may take 0.0 and -0.0 for one value.
    return f"IF({value} = 0, IF(STARTS_WITH(FORMAT('%.0e', {value}), '-'), '-0.0', '0.0'), {written})"


def _float_hashed(value: str) -> str:
    number = f"CASE WHEN v = 0 THEN '0' WHEN e + 1 >= LENGTH(d) THEN {_WHOLE} ELSE {_FRACTION} END"
    written = f"CASE {_NO_NUMBER} ELSE {number} END"
    letter = "IF(IS_NAN(v) OR IS_INF(v), 't', 'n')"
    return _float(value, f"CONCAT({letter}, CAST(LENGTH({written}) AS STRING), ':', {written})")


#: By a column's type: the text of a value that is not NULL in a prompt, and its form in a hash.
_WAYS: Mapping[str, Way] = {
    "STRING": _plain("t", lambda value: value),
    "INT64": _plain("n", lambda value: f"CAST({value} AS STRING)"),
    "BOOL": _plain("b", lambda value: f"CAST({value} AS STRING)"),
    "NUMERIC": (_numeric, _numeric_hashed),
    "FLOAT64": (_float_text, _float_hashed),
    "DATE": _plain("t", lambda value: f"CAST({value} AS STRING)"),
    "TIME": _plain("t", lambda value: _clock(value, "TIME")),
    "DATETIME": _plain("t", _datetime),
    "TIMESTAMP": _plain("t", _timestamp),
}


#: A text in SQL that is a number or a time in a worker, so that a filter may treat it otherwise there.
_TEXT_OF_OTHERS = "text of a value"


def _way(name: str, types: Mapping[str, str]) -> Way:
    kind = types[name]
    if kind not in _WAYS:
        raise _refused(
            f"the column {name!r} of type {kind} in its prompt",
            "make a STRING of it in the source's query (CAST, TO_JSON_STRING, JSON_VALUE)",
        )
    return _WAYS[kind]


def _cell(cell: Cell, types: Mapping[str, str]) -> str:
    """Return the expression of a hole's text: `kind` is the type of the filters' result so far."""
    if cell.filters is None:
        raise _refused(
            f"a field of the column {cell.column!r} in its prompt",
            "take the field out in the source's query (JSON_VALUE, or struct.field)",
        )
    value, kind, to_text = quoted(cell.column), types[cell.column], _way(cell.column, types)[0]
    text = f"IF({value} IS NULL, '', {to_text(value)})"
    for one in cell.filters:
        value, kind = _filtered(one, value, kind, text)
        text = _WAYS[kind][0](value) if kind in _WAYS else value
    return text


#: The arguments of the filters that have a twin.
_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "d": ("default_value", "boolean"),
    "default": ("default_value", "boolean"),
    "length": (),
    "replace": ("old", "new", "count"),
    "string": (),
    "trim": ("chars",),
    "truncate": ("length", "killwords", "end", "leeway"),
}


def _filtered(one: Filter, value: str, kind: str, text: str) -> tuple[str, str]:
    """Return the expression of a filter's result, and its type. `text` is the text of the value."""
    names = _ARGUMENTS.get(one.name, ())
    given = {**dict(zip(names, one.arguments, strict=False)), **dict(one.named)}
    known = one.name in _ARGUMENTS and len(one.arguments) <= len(names) and given.keys() <= set(names)
    match one.name if known else None:
        case "string":
            return text, "STRING"
        case "trim" if not given:
            edges = text_sql(f"^[{_SPACE}]+|[{_SPACE}]+$")
            return f"REGEXP_REPLACE({text}, {edges}, '')", "STRING"
        case "length" if kind == "STRING":
            return f"LENGTH({text})", "INT64"
        case "default" | "d" if not given.get("boolean"):
            otherwise = given.get("default_value", "")
            after = "STRING" if kind == "STRING" and isinstance(otherwise, str) else _TEXT_OF_OTHERS
            return f"IF({value} IS NULL, {text_sql(shown(otherwise))}, {text})", after
        case "default" | "d" if kind == "STRING" and isinstance(given["default_value"], str):
            return f"IFNULL(NULLIF({value}, ''), {text_sql(given['default_value'])})", "STRING"
        case "replace" if given.get("old") and given.keys() == {"old", "new"}:
            return f"REPLACE({text}, {text_sql(str(given['old']))}, {text_sql(str(given['new']))})", "STRING"
        case "truncate" if (cut := _truncated(text, **given)) is not None:
            return cut, "STRING"
        case _:
            raise _refused(
                f"the filter {one.name!r} with these arguments in its prompt: SQL gives another text",
                "compute the text in the source's query, and name its column in the prompt",
            )


def _truncated(
    text: str,
    length: Any = 255,
    killwords: Any = False,
    end: Any = "...",
    leeway: Any = None,
) -> str | None:
    """Return the expression of a text that is cut off as Jinja does it. None: Jinja would cut off no text so."""
    spare = DEFAULT_POLICIES["truncate.leeway"] if leeway is None else leeway
    if type(length) is not int or type(spare) is not int or not isinstance(end, str):
        return None
    kept = length - len(end)
    if kept < 0 or spare < 0:
        return None
    cut = f"SUBSTR({text}, 1, {kept})"
    whole = cut if killwords else f"REGEXP_REPLACE({cut}, ' [^ ]*$', '')"
    return f"IF(LENGTH({text}) <= {length + spare}, {text}, CONCAT({whole}, {text_sql(end)}))"


def _refused(feature: str, remedy: str) -> InputError:
    return InputError(
        f"A stage with execution='warehouse' cannot have {feature}. To keep it, set execution='worker'. Otherwise {remedy}."
    )
