"""The whole stage in one task: rows in from a warehouse or files, one typed answer per row out into a table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import Context

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.hooks.arguments import choice, one_of, texts, without_secrets
from airflow_batch_llm.hooks.handle import RunHandle
from airflow_batch_llm.hooks.llm import split_model_id
from airflow_batch_llm.hooks.workspace import open_workspace
from airflow_batch_llm.operators.identity import run_name
from airflow_batch_llm.operators.lineage import tables_of
from airflow_batch_llm.operators.outcome import table_uri
from airflow_batch_llm.operators.parts import open_parts
from airflow_batch_llm.operators.run import RunOperator
from airflow_batch_llm.operators.stage import pace_of, stage_of

if TYPE_CHECKING:
    from airflow_batch_llm.stage.run import Run

Only = Literal["changed", "outdated", "new", "all"]
OnOverBudget = Literal["fail", "partial"]
OnBadRow = Literal["record", "fail"]
OnSchemaChange = Literal["append_new_columns", "ignore", "fail"]
WriteMode = Literal["merge", "append"]
Seconds = timedelta | float


class LLMTransformOperator(RunOperator):
    """Ask a model about each row, in batches, and merge the answers into a table by key.

    The source is one of `source_sql`, `source_table` and `source_uri`. What has been answered is not asked again.

    :param prompt: a Jinja template over the row's columns, or a function of the row. Airflow does not render it; its
        values come in through `prompt_params`, as ``{{ params.x }}``
    :param prompt_file: a file beside the Dag that holds the template
    :param key: the column, or columns, that tell the rows apart
    :param model_id: ``<provider>:<model>``, such as ``anthropic:claude-haiku-4-5``
    :param output_type: a Pydantic model, a JSON Schema, a list of labels, or str
    :param target: the table that the answers are merged into, with its schema: ``support.ticket_labels``
    :param llm_conn_id: the provider's connection; None for the one that its official hook uses
    :param source_conn_id: the source's connection; for files, that of their storage
    :param target_conn_id: the target's connection; None for the source's own
    :param source_sql: a SELECT
    :param source_table: a table's name
    :param source_uri: URIs of Parquet, CSV or JSON Lines files; patterns are allowed
    :param source_parameters: values for the placeholders in `source_sql`
    :param system_prompt: what stands before each prompt
    :param prompt_params: values for the template that are the same for all rows
    :param request_params: further fields of the provider's request, such as a temperature
    :param max_tokens: of one answer
    :param endpoint: of the provider, where it has several
    :param cache_system_prompt: whether the provider should keep the system prompt for the other requests
    :param only: which rows are asked about: those that are new or have changed, also those that an older prompt has
        answered (``outdated``), only those without an answer (``new``), or ``all``
    :param retry_dead: ask again about rows that were refused or have spent their attempts
    :param max_rows: how many rows one run sends at most
    :param max_cost_usd: what one run may cost; None for the configured default, ``float("inf")`` for no limit
    :param on_over_budget: fail before anything is sent, or send what fits
    :param on_bad_row: record a row that cannot be sent as a failure, or fail the run
    :param max_attempts: how often one row is asked about
    :param min_success_ratio: a run with fewer good answers fails, after these have landed
    :param plan_only: find out what would be sent and what it would cost, and send nothing
    :param carry: source columns that are copied beside the answer
    :param columns: the answer's columns by path: ``{"buyer_name": "buyer.name"}``
    :param output_column: the name of the answer's only column
    :param on_schema_change: what happens to an answer's column that the target has not
    :param create_target: whether the tables are created; otherwise they must be there
    :param failures_target: where rows without a good answer go; None for the target's name and ``__failures``
    :param keep_raw_excerpt: whether the failures keep the beginning of a bad answer
    :param staging_schema: where answers wait for the merge; None for the target's own
    :param write_mode: one row per key, or one per key and run
    :param partition_by: the column that a new target is partitioned by
    :param cluster_by: the columns that a new target is clustered by
    :param rows_per_batch: how many rows one batch holds at most
    :param max_active_batches: how many batches run at once
    :param poll_interval: seconds between two looks at the batches; None for often at first and seldom later
    :param timeout: how long the run may take, over all tries; None for the provider's window and two hours
    :param min_round_time: rows are not asked again with less time left
    :param cancel_on_timeout: whether batches that still run at the end of the time are cancelled
    :param keep_days: how long prompts and raw answers stay in the workspace; 0 for until they have landed, None for good
    :param prices: dollars by model, where the package does not know them or you pay others
    :param source_hook_params: what the source's hook takes, such as a location
    :param target_hook_params: what the target's hook takes; None for the source's, on the same connection
    :param llm_hook_params: what the provider's connection takes, such as ``staging`` for Vertex
    """

    template_fields: Sequence[str] = (
        "source_sql",
        "source_table",
        "source_uri",
        "source_parameters",
        "source_conn_id",
        "target",
        "target_conn_id",
        "failures_target",
        "llm_conn_id",
        "model_id",
        "workspace",
        "prompt_params",
        "max_rows",
        "max_cost_usd",
    )
    template_fields_renderers = {"source_sql": "sql", "source_parameters": "json", "prompt_params": "json"}  # noqa: RUF012
    template_ext: Sequence[str] = (".sql",)
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        key: str | Sequence[str],
        model_id: str,
        target: str,
        prompt: str | Callable[[Mapping[str, object]], str] | None = None,
        prompt_file: str | None = None,
        output_type: Any = str,
        llm_conn_id: str | None = None,
        source_conn_id: str | None = None,
        target_conn_id: str | None = None,
        source_sql: str | None = None,
        source_table: str | None = None,
        source_uri: str | Sequence[str] | None = None,
        source_parameters: Mapping[str, Any] | Sequence[Any] | None = None,
        system_prompt: str | None = None,
        prompt_params: Mapping[str, object] | None = None,
        request_params: Mapping[str, object] | None = None,
        max_tokens: int | None = 1024,
        endpoint: str | None = None,
        cache_system_prompt: bool = False,
        only: Only = "changed",
        retry_dead: bool = False,
        max_rows: int | None = None,
        max_cost_usd: float | None = None,
        on_over_budget: OnOverBudget = "fail",
        on_bad_row: OnBadRow = "record",
        max_attempts: int = 3,
        min_success_ratio: float = 0.95,
        plan_only: bool = False,
        carry: Sequence[str] = (),
        columns: Mapping[str, str] | None = None,
        output_column: str | None = None,
        on_schema_change: OnSchemaChange = "append_new_columns",
        create_target: bool = True,
        failures_target: str | None = None,
        keep_raw_excerpt: bool = True,
        staging_schema: str | None = None,
        write_mode: WriteMode = "merge",
        partition_by: str | None = None,
        cluster_by: Sequence[str] = (),
        rows_per_batch: int = 10_000,
        max_active_batches: int = 20,
        poll_interval: float | None = None,
        timeout: Seconds | None = None,
        min_round_time: Seconds = 3600.0,
        cancel_on_timeout: bool = True,
        keep_days: float | None = 30.0,
        prices: Mapping[str, Mapping[str, float]] | None = None,
        source_hook_params: Mapping[str, Any] | None = None,
        target_hook_params: Mapping[str, Any] | None = None,
        llm_hook_params: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.key = texts(key)
        self.model_id = model_id
        self.target = target
        self.prompt = prompt
        self.prompt_file = prompt_file
        self.output_type = output_type
        self.llm_conn_id = llm_conn_id
        self.source_conn_id = source_conn_id
        self.target_conn_id = target_conn_id
        self.source_sql = source_sql
        self.source_table = source_table
        self.source_uri = source_uri
        self.source_parameters = source_parameters
        self.system_prompt = system_prompt
        self.prompt_params = prompt_params
        self.request_params = request_params
        self.max_tokens = max_tokens
        self.endpoint = endpoint
        self.cache_system_prompt = cache_system_prompt
        self.only = choice("only", only, Only)
        self.retry_dead = retry_dead
        self.max_rows = max_rows
        self.max_cost_usd = max_cost_usd
        self.on_over_budget = choice("on_over_budget", on_over_budget, OnOverBudget)
        self.on_bad_row = choice("on_bad_row", on_bad_row, OnBadRow)
        self.max_attempts = max_attempts
        self.min_success_ratio = min_success_ratio
        self.plan_only = plan_only
        self.carry = texts(carry)
        self.columns = columns
        self.output_column = output_column
        self.on_schema_change = choice("on_schema_change", on_schema_change, OnSchemaChange)
        self.create_target = create_target
        self.failures_target = failures_target
        self.keep_raw_excerpt = keep_raw_excerpt
        self.staging_schema = staging_schema
        self.write_mode = choice("write_mode", write_mode, WriteMode)
        self.partition_by = partition_by
        self.cluster_by = texts(cluster_by)
        self.rows_per_batch = rows_per_batch
        self.max_active_batches = max_active_batches
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.min_round_time = min_round_time
        self.cancel_on_timeout = cancel_on_timeout
        self.keep_days = keep_days
        self.prices = prices
        self.source_hook_params = source_hook_params
        self.target_hook_params = target_hook_params
        self.llm_hook_params = llm_hook_params
        self._check()

    def _check(self) -> None:
        """Refuse, while the Dag is read, what can be refused without a connection."""
        one_of(source_sql=self.source_sql, source_table=self.source_table, source_uri=self.source_uri)
        one_of(prompt=self.prompt, prompt_file=self.prompt_file)
        without_secrets(
            source_hook_params=self.source_hook_params,
            target_hook_params=self.target_hook_params,
            llm_hook_params=self.llm_hook_params,
        )
        if not self.key:
            raise InputError("key names no column: name those that tell the rows apart.")
        model_id: object = self.model_id  # of a task that is upstream, perhaps
        if isinstance(model_id, str) and "{{" not in model_id:
            split_model_id(model_id)
        if self.source_uri is None and not self.source_conn_id:
            raise InputError("source_conn_id is missing: it names the connection of the source's database.")
        if self.source_uri is not None and not self.target_conn_id:
            raise InputError("target_conn_id is missing: the source is files, so it cannot stand in for it.")

    def handles(self, context: Context) -> Sequence[RunHandle]:
        """The one run of this task, named in its folder for others to find."""
        workspace = open_workspace(self.workspace)
        handle = self._run_handle(context, run_name(context, workspace, self._asked()))
        handle.store(workspace)
        return [handle]

    def open_run(self, context: Context, handle: RunHandle, spool: Path) -> "Run":
        """The run with the stage as it is written today, which counts where nothing was planned before."""
        from airflow_batch_llm.hooks.files import Files
        from airflow_batch_llm.hooks.warehouse import warehouse
        from airflow_batch_llm.stage.run import Run

        parts = open_parts(handle, spool, self.log)
        if self.source_uri is not None:
            files = Files(texts(self.source_uri), self.source_conn_id, self.source_hook_params)
            parts = replace(parts, source=files)
        elif not self._is_one_database(handle):
            parts = replace(parts, source=warehouse(self.source_conn_id or "", self.source_hook_params))
        return Run(stage=stage_of(self, context), parts=parts, name=handle.run, max_tries=handle.max_tries)

    def inputs(self, handle: RunHandle, run: "Run") -> tuple[str, ...]:  # noqa: ARG002 - it is the run's source
        """URIs of the tables or files that the rows come from."""
        if self.source_uri is not None:
            return texts(self.source_uri)
        database: str = getattr(run.parts.source, "asset_uri", "")
        tables = [self.source_table] if self.source_table else tables_of(self.source_sql or "", database)
        return tuple(table_uri(database, table) for table in tables)

    def _run_handle(self, context: Context, run: str) -> RunHandle:
        target_conn_id = self.target_conn_id or self.source_conn_id
        target_params = self.target_hook_params
        if target_params is None and self.source_uri is None and target_conn_id == self.source_conn_id:
            target_params = self.source_hook_params
        assert target_conn_id is not None, "one of the two is checked to be there"
        return RunHandle(
            workspace=self.workspace,
            run=run,
            max_tries=context["ti"].max_tries,
            model_id=self.model_id,
            llm_conn_id=self.llm_conn_id,
            llm_hook_params=dict(self.llm_hook_params or {}),
            target=self.target,
            target_conn_id=target_conn_id,
            target_hook_params=dict(target_params or {}),
            pace=asdict(pace_of(self)),
        )

    def _asked(self) -> tuple[object, ...]:
        """What tells this item of a mapped task from the others."""
        from airflow_batch_llm.core.prompt import identity

        rendered = tuple(getattr(self, name) for name in self.template_fields)
        prompt = None if self.prompt is None else identity(self.prompt)
        return (*rendered, self.key, prompt, self.prompt_file, self.system_prompt, self.request_params)

    def _is_one_database(self, handle: RunHandle) -> bool:
        same_params = (self.source_hook_params or {}) == handle.target_hook_params
        return self.source_conn_id == handle.target_conn_id and same_params
