"""Check the values that a user sets, and explain what does not fit: the field, the value and what fits."""

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs, ErrorDetails

from airflow_batch_llm.core.model import Caching, Outcome
from airflow_batch_llm.errors import InputError


def seconds(value: timedelta | float | None) -> float | None:
    """Return a span of time in seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else value


def names(value: str | Sequence[str]) -> tuple[str, ...]:
    """Return one name, or several, as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value)


def _span(value: Any) -> Any:
    span = seconds(value)
    if isinstance(span, int | float) and not span >= 0:
        raise ValueError(f"must be 0 seconds or more, got {span:g}")
    return span


def _unless_empty(value: Any) -> Any:
    """Read an empty text as no limit: a template may render to it."""
    return None if value == "" else value


def _unless_infinite(value: Any) -> Any:
    value = _unless_empty(value)
    try:
        return None if value is not None and math.isinf(float(value)) else value
    except (TypeError, ValueError):
        return value  # what it should have been is said by the field's own check


def _provider_and_model(value: Any) -> Any:
    provider, _, model = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not (provider and model):
        raise ValueError(
            f"must read '<provider>:<model>', such as 'anthropic:claude-haiku-4-5', got {value!r}"
        )
    return value


ModelId = Annotated[str, BeforeValidator(_provider_and_model)]
Params = Annotated[Mapping[str, Any], BeforeValidator(lambda value: value or {})]
Dollars = Annotated[float | None, Field(ge=0), BeforeValidator(_unless_infinite)]
RowLimit = Annotated[int | None, Field(ge=0), BeforeValidator(_unless_empty)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Span = Annotated[timedelta | float | None, BeforeValidator(_span)]
Names = Annotated[Sequence[str], BeforeValidator(names)]
Count = Annotated[int, Field(ge=1)]
#: At most 100: the items of a request are counted in one byte, and longer lists are answered badly.
RowsPerRequest = Annotated[int, Field(ge=1, le=100)]

#: Answers are copied within the target, or not at all.
REUSE_TARGET, REUSE_NONE = "target", "none"


def _reuse(value: Any) -> Any:
    if isinstance(value, str) and value not in (REUSE_TARGET, REUSE_NONE):
        raise ValueError(f"must be 'target', 'none' or a list of tables; write [{value!r}] for one table")
    return value if isinstance(value, str) or not isinstance(value, Sequence) else names(value)


Reuse = Annotated[str | Sequence[str], BeforeValidator(_reuse)]


def _outcome_names(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else names(value)


def _escalates(outcome: Outcome) -> Outcome:
    if outcome in (Outcome.SUCCEEDED, Outcome.CANCELED):
        raise ValueError(f"holds {outcome.value}, after which no row goes on; use `below` or `left` instead")
    return outcome


FailureName = Annotated[Outcome, AfterValidator(_escalates)]
Failures = Annotated[Sequence[FailureName], BeforeValidator(_outcome_names)]


def _caching(value: Any) -> Any:
    """Accept a boolean, which YAML makes of `on` and `off`."""
    return (Caching.ON if value else Caching.OFF) if isinstance(value, bool) else value


CacheChoice = Annotated[Caching, BeforeValidator(_caching)]

CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Settings:
    """Explain every value that does not fit as one `InputError`.

    The classes have no slots: adding slots makes a second class, and the validator would see the first one, without fields.
    """

    template_fields: ClassVar[tuple[str, ...]] = ()
    """Fields whose Jinja templates Airflow renders when the object is an operator's argument."""

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, given: Any, make: ModelWrapValidatorHandler[Any]) -> Any:
        if not isinstance(given, ArgsKwargs):
            return make(given)  # a part of a larger document, which explains all of its faults at once
        try:
            return make(given)
        except ValidationError as error:
            raise InputError(explained(error, cls)) from None


def explained(error: ValidationError, settings: type) -> str:
    """Turn a validation error into an `InputError` that names each wrong field."""
    return f"{settings.__name__}: " + " ".join(
        explanation(detail, settings) for detail in error.errors(include_url=False)
    )


def explanation(detail: ErrorDetails, settings: type) -> str:
    """Say what is wrong with one field, and which values fit. `settings` is the outermost class of the document."""
    name, value = ".".join(str(part) for part in detail["loc"]), detail["input"]
    context = detail.get("ctx", {})
    advice = " Check what its template renders to." if isinstance(value, str) and "{" not in value else ""
    match detail["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            return unknown_field(name, field_names(settings, [str(part) for part in detail["loc"][:-1]]))
        case "missing" | "missing_keyword_only_argument":
            return f"{name} is missing."
        case "enum":
            return f"{name} must be one of {context['expected']}, got {value!r}."
        case "int_parsing" | "int_type" | "int_from_float":
            return f"{name} must be an int, got {value!r}.{advice}"
        case "float_parsing" | "float_type":
            return f"{name} must be a number, got {value!r}.{advice}"
        case "greater_than_equal":
            return f"{name} must be {context['ge']:g} or more, got {value!r}."
        case "less_than_equal":
            return f"{name} must be {context['le']:g} or less, got {value!r}."
        case "value_error":
            return f"{name} {detail['msg'].removeprefix('Value error, ').rstrip('.')}.".lstrip()
        case _:
            return f"{name}: {detail['msg']}, got a {type(value).__name__}."


def unknown_field(name: str, known: Sequence[str]) -> str:
    """Say that a field does not exist, and which field was probably meant."""
    close = get_close_matches(name.rpartition(".")[2], known, n=1)
    return f"{name} is unknown; " + (f"is it {close[0]}?" if close else f"there are {', '.join(known)}.")


def field_names(settings: Any, path: Sequence[str]) -> list[str]:
    """Return the names of the fields of the group at this path."""
    for part in path:
        found = settings.__pydantic_fields__.get(part)
        kinds = [] if found is None else [found.annotation, *getattr(found.annotation, "__args__", ())]
        settings = next((kind for kind in kinds if hasattr(kind, "__pydantic_fields__")), settings)
    return list(settings.__pydantic_fields__)
