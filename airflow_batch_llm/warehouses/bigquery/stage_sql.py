"""Write the statements that plan and land a stage inside BigQuery: pure, and without a value of a row in them.

The package's columns begin with `_llm_`. A stage's source must not have a needed column with such a name.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.price import Tariff
from airflow_batch_llm.core.selection import REUSABLE, SENT, Reason
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.warehouses.base import KNOWN_COLUMNS, PACKED_COLUMN, Target
from airflow_batch_llm.warehouses.bigquery.connection import quoted
from airflow_batch_llm.warehouses.bigquery.judging import judged_sql
from airflow_batch_llm.warehouses.bigquery.registration import DIALECT
from airflow_batch_llm.warehouses.bigquery.requests import (
    custom_id_sql,
    encoded_bytes_sql,
    input_hash_sql,
    is_blank_sql,
    prompt_sql,
    request_sql,
    text_sql,
)
from airflow_batch_llm.warehouses.bigquery.sql import GOOD, same_key, staged_name, staged_schema
from airflow_batch_llm.warehouses.kind import ColumnKind, of_arrow
from airflow_batch_llm.warehouses.publication import Donor
from airflow_batch_llm.warehouses.stages import Judging, Numbering, Selection

#: The length of the hash prefix by which rows are counted, so that no sort has to hold all of them.
_BUCKET = "LEFT(_llm_input_hash, 3)"

_SENT, _REUSABLE = (", ".join(f"'{reason}'" for reason in sorted(some)) for some in (SENT, REUSABLE))

_EMPTY_PROMPT = "prompt_failed: The prompt of this row is empty."


def needed(target: Target, selection: Selection) -> list[str]:
    """Return the columns of the source that the stage reads."""
    names = dict.fromkeys([*target.key.names, *target.carried.names, *(selection.prompt.columns or ())])
    taken = sorted(name for name in names if name.lower().startswith("_llm_"))
    if taken:
        raise InputError(
            f"The source's column {taken[0]} has a name that the package keeps for itself. Give it another name in"
            " source_sql, or set execution='worker'."
        )
    return list(names)


# Planning.


def selected_rows(
    target: Target, selection: Selection, source: str, types: Mapping[str, str], donors: Sequence[Donor]
) -> str:
    """Return the hash, reason, problem and prompt of each row of a source that has `KNOWN_COLUMNS`."""
    columns = selection.prompt.columns or ()
    specs = f"({', '.join(map(text_sql, selection.spec_hashes))})"
    asked = (
        f"SELECT *, {input_hash_sql(columns, types)} AS _llm_input_hash, {prompt_sql(selection.prompt, types)} AS _llm_prompt"
        f"\nFROM ({source}\n)"
    )
    failed = f"_llm_failed_input_hash = _llm_input_hash AND _llm_failed_spec_hash IN {specs}"
    facts = (
        "_llm_known_input_hash IS NOT NULL",
        "_llm_known_input_hash = _llm_input_hash",
        f"_llm_known_spec_hash IN {specs}",
        f"_llm_failed_dead AND {failed}",
    )
    code = " + ".join(f"IF(COALESCE({fact}, FALSE), {1 << bit}, 0)" for bit, fact in enumerate(facts))
    seen = (
        f"SELECT * EXCEPT ({', '.join(KNOWN_COLUMNS.names)}), {encoded_bytes_sql('_llm_prompt')} AS _llm_bytes,\n"
        f"{_by_code(code, selection.reasons)} AS _llm_why,\n"
        f"IF(COALESCE({failed}, FALSE), COALESCE(_llm_failed_attempts, 0), 0) AS _llm_attempts\nFROM ({asked})"
    )
    most = selection.max_prompt_bytes
    too_large = f"CONCAT('too_large: the prompt has ', FORMAT(\"%'d\", _llm_bytes), ' bytes, {most:,} fit into a request')"
    problem = (
        f"CASE WHEN _llm_why NOT IN ({_SENT}) THEN NULL WHEN {is_blank_sql('_llm_prompt')} THEN {text_sql(_EMPTY_PROMPT)}"
        f" WHEN _llm_bytes > {most} THEN {too_large} END"
    )
    judged = f"SELECT *, {problem} AS _llm_problem FROM ({seen})"
    reason = (
        f"CASE WHEN _llm_problem IS NOT NULL THEN '{Reason.UNSENDABLE}' WHEN _llm_reused_spec IS NULL THEN _llm_why"
        f" WHEN _llm_why IN ({_REUSABLE}) THEN '{Reason.REUSED}' ELSE _llm_why END"
    )
    answered = _answered(donors, specs)
    reasoned = (
        f"SELECT *, {reason} AS _llm_reason FROM ({judged})\nLEFT JOIN ({answered}) USING (_llm_input_hash)"
    )
    return (
        f"SELECT {_origin(target)}, _llm_input_hash, _llm_attempts, _llm_problem, _llm_reason, _llm_reused_spec,\n"
        f"IF(_llm_reason IN ({_SENT}), _llm_bytes, NULL) AS _llm_bytes,\n"
        f"IF(_llm_reason IN ({_SENT}), _llm_prompt, NULL) AS _llm_prompt\nFROM ({reasoned})"
    )


def _answered(donors: Sequence[Donor], specs: str) -> str:
    """Select the inputs that have an answer in one of these tables, and a spec of one."""
    if not donors:
        return "SELECT '' AS _llm_input_hash, CAST(NULL AS STRING) AS _llm_reused_spec"
    found = "\nUNION ALL ".join(
        f"SELECT _llm_input_hash, _llm_spec_hash FROM {one.table} AS y WHERE {one.within or 'TRUE'}"
        f" AND _llm_spec_hash IN {specs}"
        for one in donors
    )
    return f"SELECT _llm_input_hash, MAX(_llm_spec_hash) AS _llm_reused_spec FROM ({found}) GROUP BY _llm_input_hash"


def _by_code(code: str, reasons: Sequence[Reason]) -> str:
    listed = ", ".join(f"'{reason}'" for reason in reasons)
    return f"[{listed}][OFFSET({code})]"


def _origin(target: Target, alias: str = "") -> str:
    """Return the key and carried columns."""
    return ", ".join(f"{alias}{quoted(name)}" for name in (*target.key.names, *target.carried.names))


def totals(target: Target, selection: Selection, rows: str) -> str:
    """One row: which columns are NULL that may not be, the different requests, and the bytes of their prompts."""
    empty = [f"{quoted(name)} IS NULL" for name in target.key.names]
    empty += [f"{quoted(name)} IS NULL AND _llm_reason IN ({_SENT})" for name in selection.required]
    nulls = ", ".join(f"COALESCE(LOGICAL_OR({one}), FALSE) AS null{at}" for at, one in enumerate(empty))
    firsts = f"SELECT ANY_VALUE(_llm_bytes) AS b FROM {rows} WHERE _llm_reason IN ({_SENT}) GROUP BY _llm_input_hash"
    return (
        f"SELECT * FROM (SELECT {nulls} FROM {rows})"
        f" CROSS JOIN (SELECT COUNT(*) AS requests, SUM(b) AS bytes, MAX(b) AS largest FROM ({firsts}))"
    )


def problems(rows: str) -> str:
    """Select the number of rows that cannot be sent, by the code of their problem."""
    code = "SPLIT(_llm_problem, ':')[SAFE_OFFSET(0)]"
    return f"SELECT {code} AS code, COUNT(*) AS n FROM {rows} WHERE _llm_problem IS NOT NULL GROUP BY 1"


def reasons_of(rows: str) -> str:
    """Select the number of rows by reason."""
    return f"SELECT _llm_reason AS reason, COUNT(*) AS n FROM {rows} GROUP BY 1"


def doubled_keys(target: Target, rows: str, most: int) -> str:
    """Select some keys that are there more than once."""
    key = ", ".join(map(quoted, target.key.names))
    return f"SELECT {key} FROM {rows} GROUP BY {key} HAVING COUNT(*) > 1 LIMIT {most}"


def sample_prompts(rows: str, most: int) -> str:
    """Select the prompts of the sent rows with the smallest hashes."""
    return (
        f"SELECT _llm_prompt AS prompt FROM {rows} WHERE _llm_reason IN ({_SENT})"
        f" QUALIFY ROW_NUMBER() OVER (PARTITION BY _llm_input_hash) = 1 ORDER BY _llm_input_hash LIMIT {most}"
    )


def unsendable_rows(target: Target, rows: str) -> str:
    """Select the rows that have a problem."""
    return (
        f"SELECT {_origin(target)}, _llm_input_hash, _llm_attempts, _llm_problem FROM {rows}"
        f" WHERE _llm_reason = '{Reason.UNSENDABLE}'"
    )


def left_out(target: Target, rows: str, theirs: str) -> str:
    """Change the reason of the rows that another plan asks."""
    return (
        f"UPDATE {rows} AS R SET _llm_reason = '{Reason.IN_FLIGHT}' WHERE _llm_reason IN ({_SENT}) AND EXISTS ("
        f"SELECT 1 FROM {theirs} AS P WHERE {same_key(target.key.names, 'P', 'R')}"
        " AND P._llm_input_hash = R._llm_input_hash AND P._llm_shard > 0)"
    )


def numbered_rows(target: Target, numbering: Numbering, rows: str) -> str:
    """Select the rows that are sent, each with the shard and the number of its request.

    Requests are numbered by their hashes. Each beginning of a hash is counted, so that it knows its first number.
    """
    key = ", ".join(map(quoted, target.key.names))
    sent = f"SELECT * FROM {rows} WHERE _llm_reason IN ({_SENT})"
    if numbering.rows is not None:
        sent = (
            f"SELECT * EXCEPT (_llm_start) FROM ({_started(sent)}) WHERE TRUE QUALIFY _llm_start"
            f" + ROW_NUMBER() OVER (PARTITION BY {_BUCKET} ORDER BY _llm_input_hash, {key}) <= {numbering.rows}"
        )
    firsts = "SELECT DISTINCT _llm_input_hash FROM sent"
    number = f"_llm_start + ROW_NUMBER() OVER (PARTITION BY {_BUCKET} ORDER BY _llm_input_hash) - 1"
    nth = f"ROW_NUMBER() OVER (PARTITION BY _llm_input_hash ORDER BY {key})"
    token = f"CONCAT({text_sql(numbering.run_token + '-')}, FORMAT('%04d', _llm_shard))"
    kept = "_llm_input_hash, _llm_attempts, _llm_reason, _llm_reused_spec"
    request = request_sql(numbering.template, "_llm_prompt", "_llm_custom_id")
    return (
        f"WITH sent AS ({sent}),\n"
        f"numbers AS (SELECT _llm_input_hash, {number} AS _llm_number FROM ({_started(firsts)})),\n"
        f"placed AS (SELECT sent.*, 1 + DIV(_llm_number, {numbering.per_shard}) AS _llm_shard,\n"
        f"MOD(_llm_number, {numbering.per_shard}) AS _llm_request, {nth} > 1 AS _llm_shared\n"
        f"FROM sent JOIN numbers USING (_llm_input_hash) WHERE _llm_number < {numbering.requests}),\n"
        f"named AS (SELECT *, {custom_id_sql(token, '_llm_request')} AS _llm_custom_id FROM placed)\n"
        f"SELECT {_origin(target)}, {kept}, _llm_shard, _llm_request, _llm_shared, _llm_custom_id,\n"
        f"IF(_llm_shared, 0, _llm_bytes) AS _llm_bytes, IF(_llm_shared, NULL, {request}) AS _llm_body FROM named\n"
        f"UNION ALL SELECT {_origin(target)}, {kept}, 0, 0, TRUE, '', 0, NULL\n"
        f"FROM {rows} WHERE _llm_reason = '{Reason.REUSED}'"
    )


def _started(rows: str) -> str:
    """Return rows with the number of rows whose hashes begin with less."""
    counts = f"SELECT {_BUCKET} AS _llm_bucket, COUNT(*) AS n FROM ({rows}) GROUP BY _llm_bucket"
    starts = f"SELECT _llm_bucket, SUM(n) OVER (ORDER BY _llm_bucket) - n AS _llm_start FROM ({counts})"
    return f"SELECT R.*, _llm_start FROM ({rows}) AS R JOIN ({starts}) ON {_BUCKET} = _llm_bucket"


def shards(plan: str) -> str:
    """Select the shards of a plan: number, requests, rows and bytes of the prompts."""
    return (
        "SELECT _llm_shard AS number, COUNTIF(NOT _llm_shared) AS requests, COUNT(*) AS n_rows,"
        f" SUM(_llm_bytes) AS bytes FROM {plan} WHERE _llm_shard > 0 GROUP BY 1 ORDER BY 1"
    )


def requests(plan: str, shard: int) -> str:
    """Select the requests of a shard, as the vendor reads them."""
    return f"SELECT _llm_custom_id AS custom_id, _llm_body AS request FROM {plan} WHERE _llm_shard = {shard} AND NOT _llm_shared"


# Landing.


def answers_with(answers: str, mark: str) -> str:
    """Select the number of answers whose custom_id begins with the mark."""
    return f"SELECT COUNT(*) AS n FROM {answers} WHERE STARTS_WITH(custom_id, {text_sql(mark)})"


def sure_answers(judging: Judging, answers: str | None) -> str:
    """Select the answers that are surely good, one for each custom_id, typed as the staged rows are."""
    judged = judged_sql(judging.output_type, judging.form, answers or _NO_ANSWERS)
    once = "QUALIFY COUNT(*) OVER (PARTITION BY custom_id) = 1"
    sure = f"NOT _llm_unsure AND _llm_outcome = '{Outcome.SUCCEEDED}'"
    if answers is None or not judging.trusted:
        sure = "FALSE"
    return (
        f"SELECT *, {_dollars(judging.tariffs)} AS _llm_cost, {_dollars(judging.list_tariffs)} AS _llm_list_cost,\n"
        f"{_dollars(judging.tariffs, cached=False)} AS _llm_uncached\n"
        f"FROM (SELECT * FROM ({judged}) WHERE custom_id IS NOT NULL {once}) WHERE {sure}"
    )


_NO_ANSWERS = (
    "(SELECT CAST(NULL AS STRING) AS custom_id, CAST(NULL AS STRING) AS status, CAST(NULL AS STRING) AS response"
    " FROM UNNEST(CAST([] AS ARRAY<INT64>)))"
)


def staged_rows(target: Target, judging: Judging, plan: str, sure: str) -> str:
    """Select the rows of a shard whose answers are sure, in the shape in which parts are staged."""
    values = {field.name: _typed(f"J.a{at}", field.type) for at, field in enumerate(target.answer)}
    values |= {name: _literal(value) for name, value in judging.stamp.items()}
    values |= {
        "_llm_model": f"COALESCE(J._llm_model, {_literal(judging.stamp['_llm_model'])})",
        "_llm_shared": "P._llm_shared",
        "_llm_input_tokens": "IF(P._llm_shared, 0, J._llm_input_tokens)",
        "_llm_cached_tokens": "IF(P._llm_shared, 0, J._llm_cached_tokens)",
        "_llm_output_tokens": "IF(P._llm_shared, 0, J._llm_output_tokens)",
        "_llm_cost_usd": "IF(P._llm_shared, 0, J._llm_cost)",
        PACKED_COLUMN.name: "1",
    }
    return f"{_staged(target, values)}\n{_joined(judging, plan, sure)}"


def copied_rows(target: Target, stamp: Mapping[str, object], plan: str) -> str:
    """Select the rows that get a copy of an answer, in the shape in which they are staged."""
    values = {name: _literal(value) for name, value in stamp.items() if name != "_llm_route"}
    values |= dict.fromkeys(("_llm_input_tokens", "_llm_cached_tokens", "_llm_output_tokens"), "0")
    values |= {"_llm_spec_hash": "P._llm_reused_spec", "_llm_cost_usd": "0.0", "_llm_shared": "TRUE"}
    return f"{_staged(target, values)}\nFROM {plan} AS P WHERE P._llm_shard = 0"


def _staged(target: Target, values: Mapping[str, str]) -> str:
    """Select the columns of staged rows with an answer, from rows P of a plan."""
    origin = {
        field.name: _kept(f"P.{quoted(field.name)}", field.type) for field in (*target.key, *target.carried)
    }
    known = {**origin, **values, "_llm_input_hash": "P._llm_input_hash", GOOD: "TRUE"}
    shown = ", ".join(
        f"{known.get(field.name) or _nothing(field.type)} AS {staged_name(at)}"
        for at, field in enumerate(staged_schema(target))
    )
    return f"SELECT {shown}"


def _joined(judging: Judging, plan: str, sure: str) -> str:
    return f"FROM {plan} AS P JOIN {sure} AS J ON J.custom_id = P._llm_custom_id WHERE P._llm_shard = {judging.part.shard}"


def sums(judging: Judging, plan: str, sure: str) -> str:
    """One row: rows, requests, tokens and dollars of the answers that are sure."""
    own = "NOT P._llm_shared"
    added = {
        "input": "J._llm_input_tokens",
        "cached": "J._llm_cached_tokens",
        "output": "J._llm_output_tokens",
        "reasoning": "J._llm_reasoning_tokens",
        "squares": "CAST(J._llm_output_tokens AS FLOAT64) * J._llm_output_tokens",
    }
    dollars = {
        "cost": ("J._llm_cost", judging.tariffs),
        "list_cost": ("J._llm_list_cost", judging.list_tariffs),
        "won": ("J._llm_uncached - J._llm_cost", judging.tariffs),
    }
    counted = {
        "requests": own,
        "unpriced": f"{own} AND J._llm_cost IS NULL",
        "answers": f"{own} AND J._llm_input_tokens > 0",
        "hits": f"{own} AND J._llm_cached_tokens > 0",
    }
    listed = [f"SUM(IF({own}, {what}, 0)) AS {name}" for name, what in added.items()]
    for name, (what, tariffs) in dollars.items():
        scale = _scale(tariffs)  # whole numbers have the same sum in any order
        listed.append(f"SUM(IF({own}, CAST(ROUND(({what}) * {scale}) AS INT64), 0)) / {scale} AS {name}")
    listed += [f"COUNTIF({what}) AS {name}" for name, what in counted.items()]
    return f"SELECT COUNT(*) AS n, {', '.join(listed)} {_joined(judging, plan, sure)}"


def labels(target: Target, judging: Judging, plan: str, sure: str, name: str) -> str:
    """Select the number of rows by the value of an answer's column."""
    at = target.answer.get_field_index(name)
    return f"SELECT J.a{at} AS label, COUNT(*) AS n {_joined(judging, plan, sure)} GROUP BY 1"


def unsure_rows(target: Target, judging: Judging, plan: str, sure: str) -> str:
    """Select the rows of a shard without a sure answer."""
    return (
        f"SELECT {_origin(target, 'P.')}, P._llm_input_hash, P._llm_attempts, P._llm_request, P._llm_shared\n"
        f"FROM {plan} AS P WHERE P._llm_shard = {judging.part.shard}"
        f" AND NOT EXISTS (SELECT 1 FROM {sure} AS J WHERE J.custom_id = P._llm_custom_id)\n"
        "ORDER BY P._llm_request, P._llm_shared"
    )


def unsure_answers(answers: str | None, sure: str) -> str:
    """Select the answers that are not sure, as texts."""
    return (
        f"SELECT A.custom_id, A.status, A.response FROM {answers or _NO_ANSWERS} AS A"
        f" WHERE NOT EXISTS (SELECT 1 FROM {sure} AS J WHERE J.custom_id = A.custom_id)"
    )


# Values.


def _literal(value: object) -> str:
    match value:
        case str():
            return text_sql(value)
        case datetime():
            return f"TIMESTAMP '{value.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}+00'"
        case _:
            return str(value)


def _nothing(kind: pa.DataType) -> str:
    if of_arrow(kind) is ColumnKind.VECTOR:
        return "CAST([] AS ARRAY<FLOAT64>)"
    if of_arrow(kind) in (ColumnKind.JSON, ColumnKind.BINARY):
        return "CAST(NULL AS STRING)"
    return f"CAST(NULL AS {DIALECT.column_type(kind)})"


def _kept(column: str, kind: pa.DataType) -> str:
    """Return a column of the source as it is staged."""
    if of_arrow(kind) is ColumnKind.JSON:
        return f"IF({column} IS NULL, NULL, TO_JSON_STRING({column}))"
    if of_arrow(kind) is ColumnKind.BINARY:
        return f"TO_BASE64({column})"
    return column


def _typed(column: str, kind: pa.DataType) -> str:
    """Return a column of a judged answer as it is staged."""
    if of_arrow(kind) is ColumnKind.DECIMAL:
        return f"CAST({column} AS {DIALECT.column_type(kind)})"
    return column


def _dollars(tariffs: Sequence[Tariff], *, cached: bool = True) -> str:
    """Return the cost of an answer, exact to the last digit: whole numbers are added up, and divided once."""
    if not tariffs:
        return "CAST(NULL AS FLOAT64)"
    digits = _most_digits(tariffs)
    cases = " ".join(
        f"WHEN _llm_input_tokens > {tariff.above} THEN {_units(tariff, digits, cached=cached)}"
        for tariff in tariffs
    )
    return f"CASE {cases} ELSE 0 END / {_scale(tariffs)}"


def _scale(tariffs: Sequence[Tariff]) -> str:
    """Return the whole numbers to a dollar. Prices are for a million tokens."""
    return f"{10 ** (_most_digits(tariffs) + 6)}.0"


def _most_digits(tariffs: Sequence[Tariff]) -> int:
    return max((_digits(price) for tariff in tariffs for price in tariff.prices), default=0)


def _units(tariff: Tariff, digits: int, *, cached: bool) -> str:
    price = [int(one.scaleb(digits)) for one in tariff.prices]
    output = f"{price[2]} * _llm_output_tokens"
    if not cached:
        return f"{price[0]} * _llm_input_tokens + {output}"
    fresh = f"{price[0]} * GREATEST(0, _llm_input_tokens - _llm_cached_tokens)"
    return f"{fresh} + {price[1]} * _llm_cached_tokens + {output}"


def _digits(price: Decimal) -> int:
    exponent = price.normalize().as_tuple().exponent
    assert isinstance(exponent, int), "a price is a number"
    return max(0, -exponent)
