"""Define what a user sets: one set of names for Dags, YAML files and Python.

`Stage` holds what people write every day: what is asked, of which model, where the rows come from and where the answers
go, and what it may cost. The rest stands in four groups: `Request`, `Shape`, `Guards` and `Pace`. Each object checks its
values when it is made and raises `InputError`, which names the field, the value and what fits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, assert_never

from pydantic import AfterValidator, BeforeValidator
from pydantic.dataclasses import dataclass

from airflow_batch_llm.core.attachment import Uploads
from airflow_batch_llm.core.checked import (
    CONFIG,
    REUSE_TARGET,
    CacheChoice,
    Count,
    Dollars,
    Failures,
    ModelId,
    Names,
    NotNegative,
    Params,
    Reuse,
    RowLimit,
    RowsPerRequest,
    Settings,
    Share,
    Span,
    seconds,
)
from airflow_batch_llm.core.escalation import Rule
from airflow_batch_llm.core.model import Caching, Execution
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.prompt import Example, check_examples, examples_of
from airflow_batch_llm.core.value import KeyRange
from airflow_batch_llm.errors import InputError

RowFunction = Callable[[Mapping[str, object]], str]
RouteFunction = Callable[[Mapping[str, object]], str | None]

#: Why attachments and packed requests exclude each other.
PACKED_ATTACHMENTS = "A model confuses the images of several rows. Leave out attachments or rows_per_request, which is above 1."

#: The name of the route that a stage has without any other.
OWN_ROUTE = "default"


class StageWay(StrEnum):
    """Choose the way in which a stage's requests are asked."""

    BATCH = "batch"
    """In batches, at the batch price."""
    FLEX = "flex"
    """Each in real time at half the price. Not every model has it."""
    NOW = "now"
    """Each in real time, at the full price."""
    AUTO = "auto"
    """In batches, or by `flex` if the model has it and a run sends fewer than 100 requests."""


class Only(StrEnum):
    """Choose the rows that a run asks about."""

    CHANGED = "changed"
    """Rows that are new, or whose input differs from what was answered."""
    OUTDATED = "outdated"
    """Rows as by `changed`, and rows that an older prompt, model or schema has answered."""
    NEW = "new"
    """Rows whose key has no answer."""
    ALL = "all"
    """Every row of the source."""


class OverBudget(StrEnum):
    """Choose what a run does when its rows would cost more than the budget."""

    FAIL = "fail"
    """Fail before anything is sent."""
    PARTIAL = "partial"
    """Send rows in source order up to the budget, and postpone the rest."""


class BadRow(StrEnum):
    """Choose what a run does when a row cannot be sent."""

    RECORD = "record"
    """Write the row to the failures table and go on."""
    FAIL = "fail"
    """Fail before anything is sent."""


class Exhausted(StrEnum):
    """Choose what a run does with a dead row: one that was refused or has used up its attempts."""

    RECORD = "record"
    """Leave it in the failures table."""
    REVIEW = "review"
    """Also put it into the review table, where people answer it."""


class WriteMode(StrEnum):
    """Choose how answers meet the rows of the target table."""

    MERGE = "merge"
    """Keep one row per key: insert it or update it."""
    APPEND = "append"
    """Keep one row per key and run."""


class SchemaChange(StrEnum):
    """Choose what a run does with an answer column that the target table does not have."""

    APPEND_NEW_COLUMNS = "append_new_columns"
    """Add the column to the table."""
    IGNORE = "ignore"
    """Leave the column out."""
    FAIL = "fail"
    """Fail before anything is sent."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Request(Settings):
    """Set what each request carries besides the prompt."""

    template_fields: ClassVar[tuple[str, ...]] = ("extra_body", "endpoint")

    max_tokens: Count | None = 1024
    """The most tokens of one answer. Default: 1,024. None: the model's own limit."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request's body, in the provider's own words, such as `{"temperature": 0}`. Default: none."""
    endpoint: str | None = None
    """The API path, for providers that have more than one. Default: the provider's own default."""
    cache_system_prompt: CacheChoice = Caching.AUTO
    """Ask the vendor to cache the part that all requests share: `auto`, where it pays, `on` or `off`. Default: `auto`."""
    rows_per_request: RowsPerRequest = 1
    """The most rows that one request asks about, up to 100. Rows in one request can influence each other. Default: 1."""
    upload_attachments: Uploads = Uploads.AUTO
    """Give attachments to the vendor as files: `auto`, where it pays, `always` or `never`. Default: `auto`."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Shape(Settings):
    """Set the layout of the target table and of the failures table."""

    template_fields: ClassVar[tuple[str, ...]] = ("failures_target", "review_target", "staging_schema")

    failures_target: str | None = None
    """The table for rows without a good answer. Default: the target's name with `__failures` at its end."""
    review_target: str | None = None
    """The table for rows that people answer, with `on_exhausted="review"`. Default: the target's name and `__review`."""
    carry: Names = ()
    """Source columns that are copied into the target, and into the review table. Default: none."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The answer's columns by path in the answer: `{"buyer_name": "buyer.name"}`. Default: one for each property."""
    output_column: str | None = None
    """The name of the answer's only column. Default: a name that fits the output type, such as `label`."""
    write_mode: WriteMode = WriteMode.MERGE
    """Keep one row per key, or one per key and run. Default: one per key."""
    on_schema_change: SchemaChange = SchemaChange.APPEND_NEW_COLUMNS
    """Add, leave out or refuse an answer column that the target does not have. Default: add it."""
    create_target: bool = True
    """Create the two tables and add their missing columns. Default: yes. False: they must exist with all columns."""
    allow_constraints: bool = False
    """Allow a target whose UNIQUE, CHECK or FOREIGN KEY constraints use answer columns. Default: no."""
    allow_source_as_target: bool = False
    """Allow a target that the source reads. It gets all bookkeeping columns. Default: no."""
    partition_by: str | None = None
    """The carried or key column that partitions a new target. Default: no partitions."""
    cluster_by: Names = ()
    """The columns that cluster a new target. Default: none."""
    staging_schema: str | None = None
    """The schema where answers wait for the merge. Default: the target's own."""
    keep_raw_excerpt: bool = True
    """Keep the first 200 characters of a bad answer in the failures table. Default: yes."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Guards(Settings):
    """Set what a run guards before and after it spends money: limits, and the data that it leaves behind."""

    retry_dead: bool = False
    """Ask again about dead rows: rows that were refused or have used up their attempts. Default: no."""
    reuse: Reuse = REUSE_TARGET
    """Copy answers to the same input under other keys: `target`, other tables too (a list), or `none`. Default: `target`."""
    on_over_budget: OverBudget = OverBudget.FAIL
    """Fail, or send a part, when the rows would cost more than `max_cost_usd`. Default: fail."""
    on_bad_row: BadRow = BadRow.RECORD
    """Record a row that cannot be sent, or fail the run. Default: record it."""
    max_attempts: Count = 3
    """The most times that one row is asked about. Default: 3."""
    on_exhausted: Exhausted = Exhausted.RECORD
    """Record a dead row, or also put it into the review table for people to answer. Default: record it."""
    min_success_ratio: Share = 0.95
    """The least share of good answers, between 0 and 1. Below it the run fails after landing them. Default: 0.95."""
    warn_on_drift: NotNegative | None = None
    """Warn if the labels' population stability index against the last ten runs is above this: `0.2`. Default: never."""
    min_agreement: Share | None = 0.95
    """The least share of equal answers to rows asked packed and alone, per column. Below it no request is packed.

    The first run of a spec with `rows_per_request` measures it. Default: 0.95. None: pack without measuring.
    """
    delete_at_vendor: bool = False
    """Delete the vendor's copies of requests and answers once the run has ended and landed. Default: no."""
    prices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Prices by model, in dollars per million tokens. They win over the price list. Default: the price list."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Pace(Settings):
    """Set the speed of a run: batch size, batches at once, time limit and polling."""

    rows_per_batch: Count = 10_000
    """The most rows of one batch. Default: 10,000."""
    max_concurrency: Count = 100
    """The most requests that a worker asks at once in real time. Default: 100. It begins with 4."""
    max_active_batches: Count = 20
    """The most batches of a run that are open at the provider at once. Default: 20."""
    timeout: Span = None
    """The most time for the run over all tries, in seconds. Default: the provider's window and two hours."""
    min_round_time: Span = 3600.0
    """The least time left, in seconds, for another round of failed rows. Default: one hour."""
    poll_interval: NotNegative | None = None
    """Seconds between two looks at the batches. Default: often at first, less often later."""
    cancel_on_timeout: bool = True
    """Cancel batches that still run when `timeout` has passed. Default: yes."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Route(Settings):
    """Set another model, or another way to ask, for some of the rows. What is not set comes from the stage."""

    template_fields: ClassVar[tuple[str, ...]] = ("model_id", "llm_conn_id", "extra_body")

    model_id: ModelId | None = None
    """`<provider>:<model>`. Default: the stage's model."""
    llm_conn_id: str | None = None
    """The provider's connection in Airflow. Default: the stage's, or the usual one of another provider."""
    way: StageWay | None = None
    """Ask in batches, or each row in real time. Default: the stage's way."""
    max_tokens: Count | None = None
    """The most tokens of one answer. Default: as the stage's `Request` has it."""
    extra_body: Mapping[str, Any] | None = None
    """Further fields of the request's body. Default: as the stage's `Request` has it."""
    max_cost_usd: Dollars = None
    """The most dollars that this route may cost, within the run's budget. Default: only the run's budget counts."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Canary(Settings):
    """Ask a few requests before all others. The rest is sent only if their answers are good."""

    rows: Count = 50
    """The number of requests, spread over all that are to be sent. Default: 50."""
    way: StageWay | None = None
    """Choose the way in which they are asked. Default: `now`, or in batches where the provider has no other way."""
    min_success_ratio: Share | None = None
    """The least share of good answers, between 0 and 1. Default: as the stage's `Guards` has it."""


def canary_of(value: Any) -> Any:
    """Take a number for a canary of that size. 0 is none."""
    if value in (None, "", 0):
        return None
    return {"rows": value} if type(value) in (int, str) else value


def _route_name(name: str) -> str:
    if name == OWN_ROUTE or not name.strip() or name != name.strip():
        raise ValueError(
            f"has the name {name!r}; choose another, as in routes={{'urgent': Route(way='now')}}"
        )
    return name


RouteName = Annotated[str, AfterValidator(_route_name)]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Escalation(Settings):
    """Ask some rows again by another route: after failures, after answers with a low number, or before the time is over."""

    to: str
    """The name of the route that the rows take next. `default` is the stage's own."""
    of: Names = ()
    """The routes whose rows go on. Default: all but `to`."""
    on: Failures = ()
    """Outcomes such as `invalid` or `refused`, once a row's attempts on its route are spent. Default: none."""
    below: Mapping[str, float] = field(default_factory=dict)
    """Columns of the answer and numbers: `{"confidence": 0.7}`. NULL is below every number. Default: none."""
    left: Span = None
    """The time before the run's end at which batches are cancelled and their open rows go on. Default: never."""

    def __post_init__(self) -> None:
        if not self.on and not self.below and self.left is None:
            raise InputError(f"The escalation to {self.to} never happens. Give it on, below or left.")
        if self.to in self.of:
            raise InputError(
                f"The escalation to {self.to} is one of its own rows (of). Name other routes in of."
            )


@plain_dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The rows to read: a SELECT statement, or a whole table by name. Neither of the two: files."""

    sql: str | None = None
    """A SELECT statement. Default: none."""
    table: str | None = None
    """The name of a table or a view. Default: none."""
    parameters: Mapping[str, Any] | Sequence[Any] | None = None
    """Values for the placeholders of `sql`. Default: none."""
    key: tuple[str, ...] = ()
    """The columns that identify a row. Default: none."""
    within: KeyRange | None = None
    """The rows of `table` to read, for a warehouse that `ReadsRanges`. Default: all."""
    columns: tuple[str, ...] = ()
    """The columns that are needed. Others may be read with them. Default: all."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Stage(Settings):
    """Describe a stage as the user writes it: rows in, one typed answer per row out."""

    source: Source
    """The rows to ask about."""
    key: Names
    """The column, or columns, that identify a row."""
    model_id: ModelId
    """`<provider>:<model>`, such as `anthropic:claude-haiku-4-5`."""
    target: str
    """The table that the answers are merged into, with its schema: `support.ticket_labels`."""
    prompt: str | RowFunction | None = None
    """A Jinja template over the row's columns, or a function of the row. Give this or `prompt_file`."""
    prompt_file: Path | None = None
    """A file that holds the template, instead of `prompt`. A planned run no longer needs the file."""
    prompt_params: Params = field(default_factory=dict)
    """Values that are the same for all rows: `{{ params.name }}` in the template. Default: none."""
    system_prompt: str | None = None
    """The text before each prompt. Default: none."""
    attachments: Names = ()
    """The columns that hold an image or a PDF: its URI (`https`, `gs`, `s3`), or its bytes. NULL is none. Default: none."""
    examples: Annotated[Sequence[Example], BeforeValidator(examples_of)] = ()
    """Inputs with their right answers, which the model is shown before each prompt. Default: none."""
    output_type: Any = str
    """A Pydantic model, a JSON Schema, a list of labels, `Embedding`, or `str`. Default: `str`, plain text."""
    only: Only = Only.CHANGED
    """Choose the rows that the run asks about. Default: new and changed rows."""
    way: StageWay = StageWay.BATCH
    """Choose the way in which the requests are asked. Default: in batches."""
    execution: Execution = Execution.WORKER
    """Choose where rows become requests, and answers become rows: the worker, or the warehouse. Default: the worker."""
    routes: Mapping[RouteName, Route] = field(default_factory=dict)
    """Other models, or other ways to ask, by name: `{"urgent": Route(way="now")}`. Default: none."""
    route_column: str | None = None
    """The source's column that names each row's route. NULL: the stage's own model and way. Default: none."""
    route: RouteFunction | None = None
    """A function of the row that names its route, or returns None for the stage's own. Python only. Default: none."""
    escalate: Sequence[Escalation] = ()
    """Reasons to ask a row again by another route. The first that fits counts. Default: none."""
    canary: Annotated[Canary | None, BeforeValidator(canary_of)] = None
    """Ask a few requests before all others, and send the rest if they are good: `50`. Default: no canary."""
    max_rows: RowLimit = None
    """The most rows that one run sends. Default: no limit."""
    max_cost_usd: Dollars = 25.0
    """The most dollars that one run may cost. Default: 25. None or infinity: no limit."""
    budget: str | None = None
    """The name of a budget that runs share, of those in `[batch_llm] budgets`. Default: none."""
    plan_only: bool = False
    """Report what would be sent and its cost, and send nothing. Default: no."""
    keep_days: NotNegative | None = 30.0
    """Days that the workspace keeps prompts and raw answers. Default: 30. 0: until they have landed. None: for good."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels on the warehouse's jobs, for warehouses with job labels. Default: none."""
    request: Request = Request()
    """Settings of each request besides its prompt. Default: a `Request` with its own defaults."""
    shape: Shape = Shape()
    """The layout of the two tables. Default: a `Shape` with its own defaults."""
    guards: Guards = Guards()
    """The limits of the run. Default: a `Guards` with its own defaults."""
    pace: Pace = Pace()
    """The speed of the run. Default: a `Pace` with its own defaults."""

    def __post_init__(self) -> None:
        if not self.key:
            raise InputError("key names no column. Name the columns that identify a row.")
        if (self.prompt is None) == (self.prompt_file is None):
            found = "neither" if self.prompt is None else "both"
            raise InputError(f"Exactly one of prompt and prompt_file is needed, got {found}.")
        if self.attachments and self.request.rows_per_request > 1:
            raise InputError(PACKED_ATTACHMENTS)
        if self.examples and not isinstance(self.output_type, str):  # a file names a class by a text
            check_examples(self.examples, OutputType.of(self.output_type))
        if self.route_column is not None and self.route is not None:
            raise InputError("Both route_column and route choose the route of a row. Leave out one of them.")
        chooser = "route_column" if self.route_column is not None else "route"
        if not self.routes and (self.route_column is not None or self.route is not None):
            raise InputError(
                f"{chooser} is given and routes is empty. Name the routes: routes={{'urgent': Route(way='now')}}."
            )
        known = (OWN_ROUTE, *self.routes)
        for name in {name for one in self.escalate for name in (one.to, *one.of)} - set(known):
            raise InputError(
                f"escalate names {name!r}, which is not a route. The routes are {', '.join(known)}."
            )
        if self.shape.write_mode is WriteMode.APPEND and any(one.below for one in self.escalate):
            raise InputError(
                "write_mode='append' keeps the first answer of a row beside the next. Leave out `below`, or merge."
            )
        if self.shape.failures_target == self.target:
            raise InputError(
                f"failures_target is the target, {self.target}. Failures need a table of their own."
            )
        if self.review_table in (self.target, self.failures_table):
            raise InputError(
                f"review_target is {self.review_table}, which holds other rows. Name another table."
            )
        if self.review_table is not None and self.shape.write_mode is WriteMode.APPEND:
            raise InputError(
                "on_exhausted='review' needs one row per key in the target, and write_mode is 'append'. Set"
                " write_mode='merge' or on_exhausted='record'."
            )

    @property
    def provider(self) -> str:
        """The provider's name."""
        return self.model_id.partition(":")[0]

    @property
    def model(self) -> str:
        """The model's name, as the provider knows it."""
        return self.model_id.partition(":")[2]

    def rules(self) -> tuple[Rule, ...]:
        """Return what `escalate` says, with every route named."""
        known = (OWN_ROUTE, *self.routes)
        return tuple(
            Rule(
                to=one.to,
                of=tuple(one.of) or tuple(name for name in known if name != one.to),
                on=tuple(one.on),
                below=one.below,
                left=seconds(one.left),
            )
            for one in self.escalate
        )

    def via(self, route: Route) -> str:
        """Return the name of a route's own connection. Empty if the route takes the stage's."""
        provider = self.provider if route.model_id is None else route.model_id.partition(":")[0]
        return route.llm_conn_id or ("" if provider == self.provider else provider)

    def others(self) -> dict[str, Route]:
        """Return the routes that have connections of their own, by the name of the connection."""
        return {via: route for route in self.routes.values() if (via := self.via(route))}

    def under(self, route: Route) -> "Stage":
        """Return the stage as it is for the rows of a route. Another vendor gets no fields of this one's requests."""
        request = self.request
        if route.model_id is not None and route.model_id.partition(":")[0] != self.provider:
            request = replace(request, extra_body={}, endpoint=None)
        if route.max_tokens is not None:
            request = replace(request, max_tokens=route.max_tokens)
        if route.extra_body is not None:
            request = replace(request, extra_body=route.extra_body)
        return replace(
            self,
            model_id=self.model_id if route.model_id is None else route.model_id,
            way=self.way if route.way is None else route.way,
            request=request,
        )

    @property
    def failures_table(self) -> str:
        """The table for rows without a good answer."""
        return self.shape.failures_target or suffixed(self.target, "__failures")

    @property
    def review_table(self) -> str | None:
        """The table for rows that people answer. None if dead rows are only recorded."""
        match self.guards.on_exhausted:
            case Exhausted.RECORD:
                return None
            case Exhausted.REVIEW:
                return self.shape.review_target or suffixed(self.target, "__review")
            case _:
                assert_never(self.guards.on_exhausted)


def suffixed(name: str, suffix: str) -> str:
    """Lengthen a table's name. A quoted name is lengthened inside its quotes."""
    closing = name[-1] if len(name) > 1 and name[-1] in '"`]' else ""
    return name.removesuffix(closing) + suffix + closing
