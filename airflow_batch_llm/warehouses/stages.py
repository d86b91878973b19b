"""Run a stage inside a warehouse: its rows become requests, and answers become rows, by statements of the warehouse alone.

The worker gets counts, samples, and the rows of which no statement is sure. Every verb may be repeated after a crash.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import pyarrow as pa

from airflow_batch_llm.core.model import ResultForm, Usage
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.price import Tariff
from airflow_batch_llm.core.prompt import CompiledPrompt
from airflow_batch_llm.core.request import LineTemplate
from airflow_batch_llm.core.selection import Reason
from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.warehouses.base import Part, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The settings that select rows of a source and render their prompts."""

    name: str
    """The name of the planner, in letters and digits: its rows are in tables of that name."""
    source: Source
    prompt: CompiledPrompt
    spec_hashes: tuple[str, ...]
    """The specs whose answers are the answers of today."""
    reasons: tuple[Reason, ...]
    """The reason for each code of `Seen`."""
    max_prompt_bytes: int
    donors: tuple[str, ...] = ()
    """The tables whose answers are copied to rows with the same input. Default: none are."""
    required: tuple[str, ...] = ()
    """The carried columns that take no NULL in the target. Default: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """The rows of a source, counted."""

    problems: Mapping[str, int]
    """The rows that cannot be sent, by the code of their problem."""
    nulls: tuple[str, ...]
    """The key columns that hold NULL, and the required ones that do in a row that is to be sent."""
    requests: int
    """The different inputs of the rows that are to be sent."""
    prompt_bytes: int
    """The bytes of their prompts, encoded."""
    largest_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbering:
    """The settings that turn selected rows into the requests of one plan."""

    selection: Selection
    nonce: str
    run_token: str
    template: LineTemplate
    requests: int
    """The most requests that are sent."""
    rows: int | None
    """The most rows that are sent. None: no limit."""
    per_shard: int


class SizedShard(NamedTuple):
    """A shard of a plan. The bytes are those of its prompts."""

    number: int
    requests: int
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered:
    """The shards of a plan, and its rows by the reason that they are sent or not."""

    shards: Sequence[SizedShard]
    reasons: Mapping[Reason, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """The settings that turn the answers of one shard into rows of the target."""

    nonce: str
    """The plan's."""
    part: Part
    answers: str
    """The URI of the table that the vendor has written."""
    form: ResultForm
    output_type: OutputType
    tariffs: Sequence[Tariff]
    """The prices of an answer. Empty: they are not known."""
    list_tariffs: Sequence[Tariff]
    """The same in real time."""
    stamp: Mapping[str, object]
    """The bookkeeping columns whose value is the same for all rows of the shard."""
    labelled: Sequence[str] = ()
    """The answer columns whose values are counted. Default: none."""
    trusted: bool = True
    """The statement may be sure. False: the worker judges all answers, since it has others of the same shard. Default: True."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The answers that a statement was sure of, added up."""

    rows: int
    requests: int
    usage: Usage
    output_squares: float
    """The squares of each request's output tokens, added up."""
    cost: float
    list_cost: float
    unpriced: int
    cache_answers: int
    cache_hits: int
    cache_won: float
    labels: Mapping[str, Mapping[object, int]] = field(default_factory=dict)


class StageTables(Protocol):
    """The tables that a stage has besides its target: its selected rows, its plans, requests, and judged answers."""

    @property
    def scheme(self) -> str:
        """The beginning of the URIs by which vendors know the tables: `bq://`."""

    @property
    def uri(self) -> str:
        """The URI of the place where tables are staged."""

    def select_rows(self, selection: Selection) -> None:
        """Write down each row of the source: its key, its hash, and why it is sent or is not.

        Raises `InputError` for a prompt that no statement can make, with what to do.
        """

    def count_rows(self, selection: Selection) -> Selected:
        """Count the selected rows as they are now."""

    def doubled_keys(self, selection: Selection, most: int) -> pa.RecordBatch:
        """Return some keys that the source holds more than once."""

    def sample_prompts(self, selection: Selection, most: int) -> list[str]:
        """Return the prompts of some rows that are to be sent."""

    def unsendable_rows(self, selection: Selection) -> pa.RecordBatchReader:
        """Return the rows that cannot be sent: key and carried columns, `_llm_input_hash`, `_llm_attempts`, `_llm_problem`."""

    def plan_table(self, nonce: str) -> str | None:
        """Return the URI of the table of a plan, or None if it does not exist any more."""

    def leave_out(self, selection: Selection, plan_table: str) -> None:
        """Leave out the rows that another plan asks, which may be staged elsewhere."""

    def number_requests(self, numbering: Numbering) -> Numbered:
        """Write the table of a plan: each row that is sent, by shard and number, with its request."""

    def stage_copies(self, nonce: str, part: Part, stamp: Mapping[str, object]) -> None:
        """Stage, as the part, the rows of a plan that get a copy of an answer, for `CopiesAnswers.copy`."""

    def forget_rows(self, selection: Selection) -> None:
        """Drop the selected rows. What is gone already is no error."""

    def write_requests(self, nonce: str, shard: int, table: str) -> None:
        """Write the requests of a shard of a plan into a new table, where the vendor reads them."""

    def count_answers(self, table: str, mark: str) -> int | None:
        """Count the rows of a table of answers whose custom_id begins with the mark. Returns None if there is no such table."""

    def keep_answers(self, table: str) -> None:
        """Let a table of answers vanish by itself, later than any run needs it."""

    def judge_answers(self, judging: Judging) -> Judged:
        """Stage, as the part, the rows whose answers are surely good."""

    def unsure_rows(self, judging: Judging) -> pa.RecordBatchReader:
        """Return the other rows of the shard: key, carried columns, hash, attempts, `_llm_request` and `_llm_shared`."""

    def unsure_answers(self, judging: Judging) -> pa.RecordBatchReader:
        """Return the answers of which no statement was sure: `custom_id`, `status` and `response`, as texts."""

    def drop_plan(self, nonce: str, parts: Sequence[Part]) -> None:
        """Drop the table of a plan, and the tables that judged these parts. Missing tables are not an error."""


@runtime_checkable
class RunsStages(Protocol):
    """Can plan and land a stage whose rows never leave it."""

    def source_schema(self, source: Source) -> pa.Schema:
        """Return the columns of a source, without reading a row."""

    def stage_tables(self, target: Target) -> StageTables:
        """Return the tables that a stage has besides its target."""
