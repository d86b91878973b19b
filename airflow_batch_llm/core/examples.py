"""Show the model inputs with their right answers, in the part that all requests share.

An example is one line of JSON, so that no text of it can end it or begin another one. Its answer has the very form that an
answer must have, alone or as an item of a packed request.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from airflow_batch_llm.core.answer import AnswerParser, Invalid
from airflow_batch_llm.core.output_type import AnswerKind, OutputType
from airflow_batch_llm.core.prompt import CompiledPrompt
from airflow_batch_llm.core.value import plain
from airflow_batch_llm.errors import InputError

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
    """Return what of the examples decides the answers. None: there are none."""
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
