"""The JSON Schema of a Python type: a Pydantic model, a TypedDict, a union, an enum, a list of any of them.

Imports Pydantic, so it is imported where an output type is a Python type and not before.
"""

import sys
import types
import typing
from typing import Any, Union, get_args, get_origin

import typing_extensions
from pydantic import PydanticUserError, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import DecimalSchema

from airflow_batch_llm.core.answer_schema import DECIMAL, DECIMAL_PLACES, MAX_DIGITS
from airflow_batch_llm.errors import OutputTypeError


class _AnswerSchema(GenerateJsonSchema):
    """Pydantic admits text for a decimal. A model is asked for a number, whose digits are taken as it writes them."""

    def decimal_schema(self, schema: DecimalSchema) -> JsonSchemaValue:
        bounds = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
        limits = {word: float(schema[key]) for key, word in bounds.items() if key in schema}  # type: ignore[literal-required]
        names = {"max_digits": MAX_DIGITS, "decimal_places": DECIMAL_PLACES}
        digits = {word: schema[key] for key, word in names.items() if schema.get(key) is not None}  # type: ignore[literal-required]
        return {"type": "number", "format": DECIMAL, **limits, **digits}


def json_schema(python_type: Any) -> dict[str, Any]:
    """Return the schema, with its definitions at the root. Raises `OutputTypeError` for a type without a schema."""
    try:
        return TypeAdapter(_modern(python_type)).json_schema(schema_generator=_AnswerSchema)
    except (PydanticUserError, PydanticSchemaGenerationError, NameError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise OutputTypeError(
            f"The output type {python_type!r} has no JSON Schema ({reason}). Use a Pydantic model, a TypedDict, "
            "a JSON Schema, a list of labels, or str."
        ) from None


def _modern(hint: Any) -> Any:
    """Return the type with each `typing.TypedDict` as Pydantic takes it: before Python 3.12, only from typing_extensions."""
    if sys.version_info >= (3, 12):
        return hint
    if typing.is_typeddict(hint) and type(hint).__module__ == "typing":
        return _modern_typed_dict(hint)
    origin, args = get_origin(hint), get_args(hint)
    if origin is None or origin is typing.Literal or not args:
        return hint
    if origin is typing.Annotated:
        return typing.Annotated[(_modern(args[0]), *hint.__metadata__)]
    modern = tuple(_modern(arg) for arg in args)
    return Union[modern] if origin is types.UnionType else origin[modern]  # noqa: UP007 - of a computed tuple


def _modern_typed_dict(hint: Any) -> Any:
    fields: dict[str, Any] = {}
    for name, field in typing.get_type_hints(hint, include_extras=True).items():
        bare = get_args(field)[0] if get_origin(field) in (typing.Required, typing.NotRequired) else field
        needed = (
            typing_extensions.Required if name in hint.__required_keys__ else typing_extensions.NotRequired
        )
        fields[name] = needed[_modern(bare)]
    modern = typing_extensions.TypedDict(hint.__name__, fields)  # type: ignore[misc]
    modern.__doc__ = hint.__doc__
    return modern
