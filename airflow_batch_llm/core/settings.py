"""Define what a user sets: one set of names for Dags, YAML files and Python.

`Stage` holds what people write every day: what is asked, of which model, where the rows come from and where the answers
go, and what it may cost. The rest stands in four groups: `Request`, `Shape`, `Guards` and `Pace`. Each object checks its
values when it is made and raises `InputError`, which names the field, the value and what fits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from datetime import timedelta
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs, ErrorDetails

from airflow_batch_llm.errors import InputError

RowFunction = Callable[[Mapping[str, object]], str]


class Only(StrEnum):
    """Which rows a run asks about."""

    CHANGED = "changed"
    """Rows that are new, or whose input differs from what was answered."""
    OUTDATED = "outdated"
    """These, and rows that an older prompt, model or schema has answered."""
    NEW = "new"
    """Rows whose key has no answer."""
    ALL = "all"
    """Every row of the source."""


class OverBudget(StrEnum):
    """What happens when the rows would cost more than is allowed."""

    FAIL = "fail"
    """Fail before anything is sent."""
    PARTIAL = "partial"
    """Send rows in source order up to the budget, and postpone the rest."""


class BadRow(StrEnum):
    """What happens to the run when a row cannot be sent."""

    RECORD = "record"
    """Write the row to the failures table and go on."""
    FAIL = "fail"
    """Fail before anything is sent."""


class WriteMode(StrEnum):
    """How answers meet what is in the target table."""

    MERGE = "merge"
    """Keep one row per key: insert it or update it."""
    APPEND = "append"
    """Keep one row per key and run."""


class SchemaChange(StrEnum):
    """What happens to an answer column that the target table does not have."""

    APPEND_NEW_COLUMNS = "append_new_columns"
    """Add the column to the table."""
    IGNORE = "ignore"
    """Leave the column out."""
    FAIL = "fail"
    """Fail before anything is sent."""


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
    """Take an empty text for no limit: a template may render to it."""
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


Span = Annotated[timedelta | float | None, BeforeValidator(_span)]
Names = Annotated[Sequence[str], BeforeValidator(names)]
Count = Annotated[int, Field(ge=1)]

_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Settings:
    """Explain every value that does not fit as one `InputError`."""

    template_fields: ClassVar[tuple[str, ...]] = ()
    """The fields that Airflow renders, when the object is an operator's argument."""

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, given: Any, make: ModelWrapValidatorHandler[Any]) -> Any:
        if not isinstance(given, ArgsKwargs):
            return make(given)  # a part of a larger document, which explains all of its faults at once
        try:
            return make(given)
        except ValidationError as error:
            raise InputError(explained(error, cls)) from None


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Request(Settings):
    """What each request carries besides the prompt."""

    template_fields: ClassVar[tuple[str, ...]] = ("extra_body", "endpoint")

    max_tokens: Count | None = 1024
    """The most tokens of one answer. None: the model's own limit."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request's body, in the provider's own words, such as `{"temperature": 0}`. Sent as they are."""
    endpoint: str | None = None
    """The API path, for providers that have more than one. None: the provider's default."""
    cache_system_prompt: bool = False
    """Ask the provider to cache the system prompt for the other requests, where that must be asked for."""


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Shape(Settings):
    """How the target table and the failures table look."""

    template_fields: ClassVar[tuple[str, ...]] = ("failures_target", "staging_schema")

    failures_target: str | None = None
    """The table for rows without a good answer. None: the target's name and `__failures`."""
    carry: Names = ()
    """Source columns that are copied beside the answer."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The answer's columns by path in the answer: `{"buyer_name": "buyer.name"}`. Empty: one for each property."""
    output_column: str | None = None
    """The name of the answer's only column. None: a name that fits the output type."""
    write_mode: WriteMode = WriteMode.MERGE
    """Keep one row per key, or one per key and run."""
    on_schema_change: SchemaChange = SchemaChange.APPEND_NEW_COLUMNS
    """What happens to an answer column that the target does not have."""
    create_target: bool = True
    """Create and extend the two tables. False: they must exist with all columns."""
    allow_constraints: bool = False
    """Write to tables whose UNIQUE, CHECK or FOREIGN KEY constraints look at answer columns."""
    allow_source_as_target: bool = False
    """Write the answers, with all bookkeeping columns, into a table that the source reads."""
    partition_by: str | None = None
    """The carried or key column that a new target is partitioned by. None: no partitions."""
    cluster_by: Names = ()
    """The columns that a new target is clustered by."""
    staging_schema: str | None = None
    """The schema where answers wait for the merge. None: the target's own."""
    keep_raw_excerpt: bool = True
    """Keep the beginning of a bad answer in the failures table."""


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Guards(Settings):
    """What limits a run before and after the first cent."""

    retry_dead: bool = False
    """Ask again about rows that were refused or have used up their attempts."""
    on_over_budget: OverBudget = OverBudget.FAIL
    """What happens when the rows would cost more than `max_cost_usd`."""
    on_bad_row: BadRow = BadRow.RECORD
    """What happens when a row cannot be sent."""
    max_attempts: Count = 3
    """The most times one row is asked about."""
    min_success_ratio: Annotated[float, Field(ge=0, le=1)] = 0.95
    """The run fails with a smaller share of good answers, after these have landed. Between 0 and 1."""
    prices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Dollars per million tokens by model, where the package does not know them or you pay others."""


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Pace(Settings):
    """How fast a run goes, how long it may take, and how many batches run at once."""

    rows_per_batch: Count = 10_000
    """The most rows of one batch."""
    max_active_batches: Count = 20
    """The most batches that run at once."""
    timeout: Span = None
    """How long the run may take over all tries, in seconds or as a timedelta. None: the provider's window and two hours."""
    min_round_time: Span = 3600.0
    """Rows are not asked again with less time left, in seconds or as a timedelta."""
    poll_interval: Annotated[float | None, Field(ge=0)] = None
    """Seconds between two looks at the batches. None: often at first, and less often later."""
    cancel_on_timeout: bool = True
    """Cancel batches that still run when `timeout` has passed."""


@plain_dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The rows to read: a SELECT statement, or a whole table by name. Neither of the two: files."""

    sql: str | None = None
    """A SELECT statement."""
    table: str | None = None
    """A table's name."""
    parameters: Mapping[str, Any] | Sequence[Any] | None = None
    """Values for the placeholders of `sql`."""
    key: tuple[str, ...] = ()
    """The columns that identify a row."""


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Stage(Settings):
    """Rows in, one typed answer per row out: as the user wrote it, nothing resolved yet."""

    source: Source
    """The rows to ask about."""
    key: Names
    """The column, or columns, that identify a row."""
    model_id: Annotated[str, BeforeValidator(_provider_and_model)]
    """`<provider>:<model>`, such as `anthropic:claude-haiku-4-5`."""
    target: str
    """The table that the answers are merged into, with its schema: `support.ticket_labels`."""
    prompt: str | RowFunction | None = None
    """A Jinja template over the row's columns, or a function of the row."""
    prompt_file: Path | None = None
    """A file that holds the template, instead of `prompt`. A run that is planned goes on without the file."""
    prompt_params: Annotated[Mapping[str, Any], BeforeValidator(lambda value: value or {})] = field(
        default_factory=dict
    )
    """Values that are the same for all rows: `{{ params.name }}` in the template."""
    system_prompt: str | None = None
    """The text that stands before each prompt. None: no such text."""
    output_type: Any = str
    """A Pydantic model, a JSON Schema, a list of labels, `Embedding`, or `str`."""
    only: Only = Only.CHANGED
    """Which rows are asked about."""
    max_rows: Annotated[int | None, Field(ge=0), BeforeValidator(_unless_empty)] = None
    """The most rows that one run sends. None: no limit."""
    max_cost_usd: Annotated[float | None, Field(ge=0), BeforeValidator(_unless_infinite)] = 25.0
    """The most dollars that one run may cost. None or infinity: no limit."""
    plan_only: bool = False
    """Find out what would be sent and what it would cost, and send nothing."""
    keep_days: Annotated[float | None, Field(ge=0)] = 30.0
    """Days for which the workspace keeps prompts and raw answers. 0: until they have landed. None: for good."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels on the warehouse's jobs, where it has such."""
    request: Request = Request()
    shape: Shape = Shape()
    guards: Guards = Guards()
    pace: Pace = Pace()

    def __post_init__(self) -> None:
        if not self.key:
            raise InputError("key names no column. Name the columns that identify a row.")
        if (self.prompt is None) == (self.prompt_file is None):
            found = "neither" if self.prompt is None else "both"
            raise InputError(f"Exactly one of prompt and prompt_file is needed, got {found}.")
        if self.shape.failures_target == self.target:
            raise InputError(
                f"failures_target is the target, {self.target}. Failures need a table of their own."
            )

    @property
    def provider(self) -> str:
        """The provider's name."""
        return self.model_id.partition(":")[0]

    @property
    def model(self) -> str:
        """The model's name, as the provider knows it."""
        return self.model_id.partition(":")[2]

    @property
    def failures_table(self) -> str:
        """The table for rows without a good answer."""
        return self.shape.failures_target or _suffixed(self.target, "__failures")


def _suffixed(name: str, suffix: str) -> str:
    """Lengthen a table's name. A quoted name is lengthened inside its quotes."""
    closing = name[-1] if len(name) > 1 and name[-1] in '"`]' else ""
    return name.removesuffix(closing) + suffix + closing


def explained(error: ValidationError, settings: type) -> str:
    """Say what does not fit, field by field."""
    return f"{settings.__name__}: " + " ".join(
        explanation(detail, settings) for detail in error.errors(include_url=False)
    )


def explanation(detail: ErrorDetails, settings: type) -> str:
    """Say what is wrong with one field, and what fits. `settings` is the outermost class of the document."""
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
    """Say that a field does not exist, and which one is meant."""
    close = get_close_matches(name.rpartition(".")[2], known, n=1)
    return f"{name} is unknown; " + (f"is it {close[0]}?" if close else f"there are {', '.join(known)}.")


def field_names(settings: Any, path: Sequence[str]) -> list[str]:
    """Return the names of the fields of the group at this path."""
    for part in path:
        found = settings.__pydantic_fields__.get(part)
        kinds = [] if found is None else [found.annotation, *getattr(found.annotation, "__args__", ())]
        settings = next((kind for kind in kinds if hasattr(kind, "__pydantic_fields__")), settings)
    return list(settings.__pydantic_fields__)
