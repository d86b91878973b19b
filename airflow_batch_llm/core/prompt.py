"""The row's text. A prompt is compiled once, from a template over the row's columns or a function of it.

A row whose prompt cannot be rendered gets a `PromptError`, and does not stop the others. No message
holds a value of a row.

Examples are in the part that all requests share. Each is one line of JSON, so that no text of it can end it or begin
another one. Its answer has exactly the form that the model must use, alone or as an item of a packed request.
"""

import ast
import contextlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import PurePath
from traceback import walk_tb
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from airflow_batch_llm.core.answer import AnswerParser, Invalid
from airflow_batch_llm.core.output_type import AnswerKind, OutputType
from airflow_batch_llm.core.value import plain, scrub, text
from airflow_batch_llm.errors import InputError, PromptError

if TYPE_CHECKING:
    from airflow_batch_llm.core.template import Cell


#: A prompt as a user writes it: a template's text, or a function of the row (or of row and params) that returns text.
Prompt = str | Callable[..., str]

#: Names that Airflow's own templates have and a row does not have.
_AIRFLOW_NAMES = frozenset(
    {
        "conn",
        "dag",
        "dag_run",
        "data_interval_end",
        "data_interval_start",
        "ds",
        "ds_nodash",
        "execution_date",
        "inlet_events",
        "inlets",
        "logical_date",
        "macros",
        "map_index_template",
        "next_ds",
        "outlet_events",
        "outlets",
        "prev_data_interval_end_success",
        "prev_data_interval_start_success",
        "prev_ds",
        "prev_end_date_success",
        "prev_start_date_success",
        "run_id",
        "task",
        "task_instance",
        "task_instance_key_str",
        "ti",
        "tomorrow_ds",
        "triggering_asset_events",
        "ts",
        "ts_nodash",
        "ts_nodash_with_tz",
        "var",
        "yesterday_ds",
    }
)

# The bytes that an encoded prompt of nothing but white space consists of.
_BLANKS = orjson.dumps(
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006"
    "\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)

#: The decorators that make a task of a prompt function. Their arguments are not part of the prompt.
_TASK_DECORATORS = frozenset({"llm_transform", "llm_transform_task"})

# Airflow imports a Dag file under a module name that holds a hash of the file's path.
_DAG_FILE_PREFIX = re.compile(r"^unusual_prefix_[0-9a-f]+_")


def _unrenderable(error: Exception) -> str:
    """Say that a template cannot be rendered, without any value of the row."""
    return (
        f"The prompt of this row cannot be rendered ({type(error).__name__}). Look for a field that its value does not have, "
        "or a column whose type has no text form, such as bytes."
    )


@dataclass(frozen=True, slots=True)
class CompiledPrompt:
    """A prompt, ready for many rows. `columns` are those that it uses. With None it is a function, which gets all columns."""

    columns: tuple[str, ...] | None
    _render: Callable[[Mapping[str, object]], str]
    _parts: "tuple[str | Cell, ...] | None" = None
    _explain: Callable[[Exception], str] = _unrenderable

    @property
    def parts(self) -> "tuple[str | Cell, ...] | None":
        """Return the constants and columns of which the text consists. Returns None if only Python can render it."""
        return self._parts

    def check(self, columns: Iterable[str], *, has_attachments: bool = False) -> None:
        """Raise `PromptError` for columns that the prompt uses and the rows do not have, or if it uses none.

        With attachments a prompt may use none, because the rows differ by their attachments.
        """
        if self.columns == () and not has_attachments:
            raise PromptError(
                "The prompt uses no column of the source, so it would be the same for every row. A column's value "
                "is written {{ column }}."
            )
        there = list(columns)
        missing = [name for name in self.columns or () if name not in there]
        if not missing:
            return
        names = ", ".join(missing)
        if _AIRFLOW_NAMES.intersection(missing):
            raise PromptError(
                f"The prompt uses {names}, which is not a column of the source. A prompt is a template over "
                f"the row, not an Airflow template: pass the value as prompt_params={{'x': '{{{{ {missing[0]} }}}}'}} "
                "and write {{ params.x }} in the prompt."
            )
        raise PromptError(
            f"The prompt uses {names}, which is not a column of the source. The columns are: {', '.join(there)}."
        )

    def render(self, row: Mapping[str, object]) -> str:
        """Return the prompt of one row. Raises `PromptError`, without any value in it."""
        try:
            prompt = self._render(row)
        except PromptError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a user's function raises costs this row only
            failed = self._explain(error)
        else:
            return _checked(prompt)
        # Raised out here, so that the cause, which may quote a value of the row, does not travel along.
        raise PromptError(failed)

    def render_batch(self, columns: Mapping[str, Sequence[object]]) -> list[bytes | PromptError]:
        """Return the prompt of each row as an encoded JSON string, or the reason why it has none."""
        if self._parts is not None:
            # Where a row of the batch cannot be rendered, it is found out below which one.
            with contextlib.suppress(Exception):
                return self._render_simple(self._parts, columns)
        return [self._encoded(row) for row in _rows(columns, self.columns)]

    def _render_simple(
        self, parts: "tuple[str | Cell, ...]", columns: Mapping[str, Sequence[object]]
    ) -> list[bytes | PromptError]:
        # Each value is encoded by itself and stripped of its quotes: joining bytes is cheaper than joining
        # texts and encoding the whole, and the constants are encoded once.
        pieces: list[Iterable[bytes]] = [repeat(b'"', _length(columns))]
        for part in parts:
            if isinstance(part, str):
                pieces.append(repeat(orjson.dumps(part)[1:-1]))
            else:
                texts = _texts(columns[part.column], part.convert)
                pieces.append([orjson.dumps(value)[1:-1] for value in texts])
        prompts = list(map(b"".join, zip(*pieces, repeat(b'"'), strict=False)))
        never_empty = any(isinstance(part, str) and part.strip() for part in parts)
        if not never_empty and any(map(_is_blank, prompts)):
            raise PromptError("The prompt of a row is empty.")
        return prompts  # type: ignore[return-value]  # a list is invariant, and nobody else holds this one

    def _encoded(self, row: Mapping[str, object]) -> bytes | PromptError:
        try:
            return orjson.dumps(self.render(row))
        except PromptError as error:
            return error.with_traceback(None)  # the frames would keep the row alive


def compile_prompt(prompt: Prompt, params: Mapping[str, object] | None = None) -> CompiledPrompt:
    """Compile a template or wrap a function. Raises `PromptError` for what can never be rendered."""
    constants = dict(params or {})
    for name, value in constants.items():
        try:
            text(value)
        except TypeError as error:
            raise PromptError(f"prompt_params[{name!r}] cannot stand in a prompt: {error}.") from None
    if isinstance(prompt, str):
        from airflow_batch_llm.core.template import compile_template

        template = compile_template(prompt, constants)
        return CompiledPrompt(template.columns, template.render, template.parts)
    function = _function(prompt)
    return CompiledPrompt(None, _calling(function, constants), _explain=partial(_raised, function))


def identity(prompt: Prompt) -> Mapping[str, str]:
    """Return what identifies a prompt: the template's text, or the function's qualified name and source.

    What a function refers to outside its own source is not covered. The source is without the decorator that
    makes a task of the function, whose arguments are hashed elsewhere or change no answer. The name is without
    the prefix that Airflow gives to the modules of Dag files, which differs between deployments.
    """
    if isinstance(prompt, str):
        return {"template": prompt}
    function = _function(prompt)
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        raise PromptError(
            f"The source of the prompt function {function.__qualname__} cannot be read, so a change of it "
            "would not be noticed. Define it in a file."
        ) from None
    module = _DAG_FILE_PREFIX.sub("", function.__module__)
    return {"function": f"{module}.{function.__qualname__}", "source": _undecorated(source)}


def _function(prompt: object) -> FunctionType:
    if isinstance(prompt, FunctionType):
        return prompt
    raise PromptError(
        f"A prompt is a template's text or a Python function of the row, not {type(prompt).__name__}."
    )


def _undecorated(source: str) -> str:
    """Return a function's source without the decorator that makes a task of it, and those above that one."""
    if not source.startswith("@"):
        return source
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef), "a decorated function begins with @"
    ends = [node.end_lineno for node in function.decorator_list if _name(node) in _TASK_DECORATORS]
    return "".join(source.splitlines(keepends=True)[ends[-1] :]) if ends else source


def _name(decorator: ast.expr) -> str | None:
    """Return the last part of a decorator's name."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return getattr(called, "attr", None) or getattr(called, "id", None)


def _calling(function: FunctionType, params: Mapping[str, object]) -> Callable[[Mapping[str, object]], Any]:
    takes = len(inspect.signature(function).parameters)
    if takes == 1:
        return lambda row: function(dict(row))
    if takes == 2:
        return lambda row: function(dict(row), params)
    raise PromptError(
        f"The prompt function {function.__qualname__} takes {takes} arguments. It is called with the row, "
        "or with the row and the prompt_params."
    )


def _raised(function: FunctionType, error: Exception) -> str:
    """Describe the error of a prompt function and its place, without any value of the row."""
    source = function.__code__
    lines = [
        line for frame, line in walk_tb(error.__traceback__) if frame.f_code.co_filename == source.co_filename
    ]
    where = f" in line {lines[-1]} of {PurePath(source.co_filename).name}" if lines else ""
    # A text that stands in the function's source is not data: it is the column that the row does not have.
    said = error.args[0] if len(error.args) == 1 else None
    is_own = isinstance(said, str) and said in source.co_consts
    raised = f"{type(error).__name__}({said!r})" if is_own else type(error).__name__
    return (
        f"The prompt function {function.__qualname__} raised {raised}{where}. Nothing was sent for this row."
    )


def _checked(prompt: object) -> str:
    if not isinstance(prompt, str):
        raise PromptError(f"The prompt function returned {type(prompt).__name__}, not text.")
    if not prompt or prompt.isspace():
        raise PromptError("The prompt of this row is empty.")
    return scrub(prompt)


def _texts(values: Sequence[object], convert: Callable[[Any], str] | None) -> Iterable[str]:
    if convert is not None:
        return map(convert, values)
    if set(map(type, values)) <= {str}:
        return values  # type: ignore[return-value]  # just looked
    return map(text, values)


def _is_blank(encoded: bytes) -> bool:
    return not encoded.strip(_BLANKS) and not orjson.loads(encoded).strip()


def _length(columns: Mapping[str, Sequence[object]]) -> int:
    return len(next(iter(columns.values()), ()))


def _rows(
    columns: Mapping[str, Sequence[object]], used: tuple[str, ...] | None
) -> Iterable[dict[str, object]]:
    names = tuple(columns) if used is None else used
    if not names:
        return ({} for _ in range(_length(columns)))
    values = zip(*(columns[name] for name in names), strict=True)
    return (dict(zip(names, row, strict=True)) for row in values)


_HEAD = "Examples. Each line is a JSON object with an input and the right answer to it."

_FORM = "must be pairs of an input and its answer, such as ('I was charged twice.', 'billing')"


class Example(NamedTuple):
    """An input and its right answer."""

    input: str | Mapping[str, Any]
    """The text as a row's prompt would be, or a row's columns, from which the prompt is rendered."""
    answer: Any
    """A value of the output type."""


def examples_of(given: Any) -> tuple[Example, ...]:
    """Take pairs, and mappings with `input` and `answer`, for examples."""
    is_list = isinstance(given, Sequence) and not isinstance(given, str)
    return tuple(_example(one) for one in (given if is_list else (given,)))


def _example(given: Any) -> Example:
    if isinstance(given, Mapping) and given.keys() == {"input", "answer"}:
        return Example(given["input"], given["answer"])
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence) or len(given) != 2:
        raise ValueError(_FORM)
    return Example(*given)


def check_examples(examples: Sequence[Example], output_type: OutputType) -> None:
    """Raise `InputError` for an answer that the output type does not admit. No message holds an example's text."""
    if output_type.kind is AnswerKind.VECTOR:
        raise InputError("examples are for answers in words, and output_type is Embedding. Leave them out.")
    parser = AnswerParser.of(output_type)
    for number, example in enumerate(examples):
        try:
            answer = orjson.dumps(_answer(example, output_type)).decode()
        except TypeError as error:
            raise InputError(f"examples[{number}]: the answer has no form in JSON ({error}).") from None
        if output_type.kind is AnswerKind.TEXT and not isinstance(example.answer, str):
            raise InputError(f"examples[{number}]: the answer must be a text, since output_type is str.")
        if output_type.labels and example.answer not in output_type.labels:
            raise InputError(f"examples[{number}]: the answer is none of the labels of output_type.")
        fits = parser.parse(example.answer if output_type.kind is AnswerKind.TEXT else answer)
        if isinstance(fits, Invalid):
            raise InputError(f"examples[{number}]: {fits.message}")


def identity_of_examples(examples: Sequence[Example]) -> list[list[Any]] | None:
    """Return the part of the examples that decides the answers. Returns None if there are none."""
    return [[plain(one.input), plain(_plain_answer(one.answer))] for one in examples] or None


def with_examples(
    system_prompt: str | None, examples: Sequence[Example], prompt: CompiledPrompt, output_type: OutputType
) -> str | None:
    """Return the system prompt with the examples after it. Raises `InputError` for columns that an example lacks."""
    if not examples:
        return system_prompt
    check_examples(examples, output_type)
    lines = [
        orjson.dumps({"input": _input(number, one, prompt), "answer": _answer(one, output_type)}).decode()
        for number, one in enumerate(examples)
    ]
    return "\n\n".join(filter(None, (system_prompt, "\n".join((_HEAD, *lines)))))


def _input(number: int, example: Example, prompt: CompiledPrompt) -> str:
    if isinstance(example.input, str):
        return example.input
    if missing := [name for name in prompt.columns or () if name not in example.input]:
        raise InputError(
            f"examples[{number}]: the input lacks {', '.join(missing)}, which the prompt uses. Name each column of the"
            " prompt, or give the input as a text."
        )
    return prompt.render(example.input)


def _answer(example: Example, output_type: OutputType) -> Any:
    """Return the answer in the form that the model must give it."""
    answer = plain(_plain_answer(example.answer))
    if output_type.kind in (AnswerKind.LABEL, AnswerKind.VALUE):
        return {output_type.columns[0].path[0]: answer}
    return answer


def _plain_answer(answer: Any) -> Any:
    """Return an object of a Pydantic model as a mapping."""
    return answer.model_dump(by_alias=True) if hasattr(answer, "model_dump") else answer
