"""Run the whole stage in one task: read rows from a warehouse or files, and write one typed answer per row to a table."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.sdk import conf
from airflow.sdk import Context

from airflow_batch_llm.core.checked import Settings, names
from airflow_batch_llm.core.model import Execution
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.prompt import (
    Example,
    check_examples,
    compile_prompt,
    examples_of,
    identity,
    identity_of_examples,
)
from airflow_batch_llm.core.settings import (
    PACKED_ATTACHMENTS,
    Canary,
    Escalation,
    Guards,
    Only,
    Pace,
    Request,
    Route,
    RouteFunction,
    RowFunction,
    Shape,
    Source,
    Stage,
    StageWay,
    canary_of,
)
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.hooks.arguments import check_params, choice, number, one_of
from airflow_batch_llm.hooks.handle import RunHandle, open_parts, place_of
from airflow_batch_llm.hooks.llm import split_model_id
from airflow_batch_llm.hooks.object_storage import open_path, open_workspace
from airflow_batch_llm.operators.run import GivenUp, RunOperator, run_name
from airflow_batch_llm.warehouses import table_uri, tables_of

if TYPE_CHECKING:
    from airflow_batch_llm.stage.run import Run

S = TypeVar("S", bound=Settings)

#: Called with `context` and `jinja_env`, by name.
UriFunction = Callable[..., Sequence[str]]

#: The groups of settings, by the argument that takes each.
_GROUPS: Mapping[str, type[Settings]] = {"request": Request, "shape": Shape, "guards": Guards, "pace": Pace}


class LLMTransformOperator(RunOperator):
    """Ask a model about each row, in batches, and merge the answers into a table by key.

    The source is one of `source_sql`, `source_table` and `source_uri`. Rows that have been answered are not asked again. The four
    groups of settings may be given as objects or as mappings; Airflow renders the fields that they name as templates.

    :param prompt: a Jinja template over the row's columns, or a function of the row. Airflow does not render it; its
        values come in through `prompt_params`, as ``{{ params.x }}``
    :param prompt_file: a file next to the Dag that holds the template
    :param key: the column, or columns, that identify a row
    :param model_id: ``<provider>:<model>``, such as ``anthropic:claude-haiku-4-5``
    :param output_type: a Pydantic model, a JSON Schema, a list of labels, or str
    :param target: the table that the answers are merged into, with its schema: ``support.ticket_labels``
    :param llm_conn_id: the provider's connection; None for the one that its official hook uses
    :param source_conn_id: the source's connection; for files, that of their storage
    :param target_conn_id: the target's connection; None for the source's own
    :param source_sql: a SELECT
    :param source_table: a table's name
    :param source_uri: URIs of Parquet, CSV or JSON Lines files; patterns are allowed. Or a function that Airflow calls
        instead of rendering a template, such as `new_uris`
    :param source_parameters: values for the placeholders in `source_sql`
    :param attachments: the columns that hold an image or a PDF for the model: its URI (https, gs, s3), or its bytes
    :param attachments_conn_id: the connection that reads attachments from a bucket; None for the worker's own rights
    :param system_prompt: the text that stands before each prompt
    :param examples: inputs with their right answers, which the model is shown: ``[("I was charged twice.", "billing")]``
    :param prompt_params: values for the template that are the same for all rows
    :param way: ask in batches (``batch``), or each row in real time at the full price (``now``) or at half of it, for
        the models that have it (``flex``); or in batches unless there are few (``auto``)
    :param execution: where rows become requests, and answers become rows: in the ``worker``, or by statements of the
        ``warehouse``, so that no row passes through a worker
    :param routes: other models, or other ways to ask, by name: ``{"urgent": Route(way="now")}``
    :param route_column: the source's column that names each row's route; NULL for the stage's own model and way
    :param route: instead, a function of the row that returns the name of its route, or None
    :param escalate: reasons to ask a row again by another route: ``[Escalation(to="strong", on={"invalid"})]``
    :param canary: a number of requests, spread over all, that are asked before the others; these are sent only if the
        answers are good. `Canary(rows=50, way=…, min_success_ratio=…)` says more
    :param only: the rows that are asked about: those that are new or have changed (``changed``), also those that an older
        prompt has answered (``outdated``), only those without an answer (``new``), or ``all``
    :param max_rows: the most rows that one run sends; None for no limit
    :param max_cost_usd: the most dollars that one run may cost; None for the configured default, ``float("inf")`` for no limit
    :param budget: the name of a budget that runs share, of those in ``[batch_llm] budgets``
    :param plan_only: find out what would be sent and what it would cost, and send nothing
    :param keep_days: days for which the workspace keeps prompts and raw answers; 0: until they have landed, None: for good
    :param usage_table: the ledger: a table that gets what each run has spent; None for the configured one
    :param request: settings of each request besides its prompt: `Request(max_tokens=…, extra_body={…})`
    :param shape: the layout of the two tables: `Shape(carry=[…], columns={…})`
    :param guards: the limits of a run: `Guards(max_attempts=…, min_success_ratio=…)`
    :param pace: the speed and the time limit of a run: `Pace(rows_per_batch=…, timeout=…)`
    :param source_hook_params: parameters of the source's hook, such as a location
    :param target_hook_params: parameters of the target's hook; None for the source's, on the same connection
    :param llm_hook_params: parameters of the provider's connection, such as ``staging`` for Vertex
    """

    template_fields: Sequence[str] = (
        "source_sql",
        "source_table",
        "source_uri",
        "source_parameters",
        "source_conn_id",
        "target",
        "target_conn_id",
        "llm_conn_id",
        "model_id",
        "workspace",
        "prompt_params",
        "max_rows",
        "max_cost_usd",
        "budget",
        "usage_table",
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
        prompt: str | RowFunction | None = None,
        prompt_file: str | None = None,
        output_type: Any = str,
        llm_conn_id: str | None = None,
        source_conn_id: str | None = None,
        target_conn_id: str | None = None,
        source_sql: str | None = None,
        source_table: str | None = None,
        source_uri: str | Sequence[str] | UriFunction | None = None,
        source_parameters: Mapping[str, Any] | Sequence[Any] | None = None,
        attachments: str | Sequence[str] = (),
        attachments_conn_id: str | None = None,
        system_prompt: str | None = None,
        examples: Sequence[Any] = (),
        prompt_params: Mapping[str, object] | None = None,
        way: str = StageWay.BATCH,
        execution: str = Execution.WORKER,
        routes: Mapping[str, Route | Mapping[str, Any]] | None = None,
        route_column: str | None = None,
        route: RouteFunction | None = None,
        escalate: Sequence[Escalation | Mapping[str, Any]] = (),
        canary: int | Canary | Mapping[str, Any] | None = None,
        only: str = Only.CHANGED,
        max_rows: int | str | None = None,
        max_cost_usd: float | str | None = None,
        budget: str | None = None,
        plan_only: bool = False,
        keep_days: float | None = 30.0,
        usage_table: str | None = None,
        request: Request | Mapping[str, Any] | None = None,
        shape: Shape | Mapping[str, Any] | None = None,
        guards: Guards | Mapping[str, Any] | None = None,
        pace: Pace | Mapping[str, Any] | None = None,
        source_hook_params: Mapping[str, Any] | None = None,
        target_hook_params: Mapping[str, Any] | None = None,
        llm_hook_params: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        _refuse_fields_of_groups(kwargs)
        super().__init__(**kwargs)
        self.key = names(key)
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
        self.source_uri: Any = source_uri  # rendered to text, or to several
        self.source_parameters = source_parameters
        self.attachments = names(attachments)
        self.attachments_conn_id = attachments_conn_id
        self.system_prompt = system_prompt
        self.examples = _examples(examples)
        self.prompt_params = prompt_params
        self.way = choice("way", way, StageWay)
        self.execution = choice("execution", execution, Execution)
        self.routes = {
            name: _group(Route, given, f"routes[{name!r}]") for name, given in (routes or {}).items()
        }
        self.route_column = route_column
        self.route = route
        self.escalate = [_group(Escalation, given, "escalate") for given in escalate]
        given = canary_of(canary)
        self.canary = None if given is None else _group(Canary, given, "canary")
        self.only = choice("only", only, Only)
        self.max_rows = max_rows
        # Airflow stores the field as JSON, which has no infinity.
        self.max_cost_usd = "inf" if max_cost_usd == math.inf else max_cost_usd
        self.budget = budget
        self.plan_only = plan_only
        self.keep_days = keep_days
        self.usage_table = usage_table
        self.request = _group(Request, request)
        self.shape = _group(Shape, shape)
        self.guards = _group(Guards, guards)
        self.pace = _group(Pace, pace)
        self.source_hook_params = source_hook_params
        self.target_hook_params = target_hook_params
        self.llm_hook_params = llm_hook_params
        self._check()

    def _check(self) -> None:
        """Refuse wrong arguments while the Dag is read, as far as that needs no connection."""
        one_of(source_sql=self.source_sql, source_table=self.source_table, source_uri=self.source_uri)
        one_of(prompt=self.prompt, prompt_file=self.prompt_file)
        check_params(
            source_hook_params=self.source_hook_params,
            target_hook_params=self.target_hook_params,
            llm_hook_params=self.llm_hook_params,
        )
        if callable(self.prompt):
            compile_prompt(self.prompt)
        if self.execution == Execution.WAREHOUSE and (callable(self.prompt) or self.source_uri is not None):
            raise InputError(
                "execution='warehouse' takes rows of a table or a SELECT, and a prompt that is a template. Change source_uri or"
                " the prompt function, or set execution='worker'."
            )
        if self.attachments and self.request.rows_per_request > 1:
            raise InputError(PACKED_ATTACHMENTS)
        if self.examples:
            check_examples(self.examples, OutputType.of(self.output_type))
        if not self.key:
            raise InputError("key names no column. Name the columns that identify a row.")
        model_id: object = self.model_id  # of a task that is upstream, perhaps
        if isinstance(model_id, str) and "{{" not in model_id:
            split_model_id(model_id)
        if self.source_uri is None and not self.source_conn_id:
            raise InputError("source_conn_id is missing: it names the connection of the source's database.")
        if self.source_uri is not None and not self.target_conn_id:
            raise InputError("target_conn_id is missing: the source is files, so it cannot stand in for it.")

    def stage(self, context: Context) -> Stage:
        """Return the stage that the rendered arguments describe."""
        beside = None if self.prompt_file is None else Path(self.dag.fileloc).parent / self.prompt_file
        return Stage(
            source=Source(
                sql=self.source_sql, table=self.source_table, parameters=self.source_parameters, key=self.key
            ),
            key=self.key,
            model_id=self.model_id,
            target=self.target,
            prompt=self.prompt,
            prompt_file=beside,
            prompt_params=self.prompt_params or {},
            attachments=self.attachments,
            system_prompt=self.system_prompt,
            examples=self.examples,
            output_type=self.output_type,
            way=StageWay(self.way),
            execution=Execution(self.execution),
            routes={name: self._rendered(route, context) for name, route in self.routes.items()},
            route_column=self.route_column,
            route=self.route,
            escalate=self.escalate,
            canary=self.canary,
            only=Only(self.only),
            max_rows=self.max_rows,  # type: ignore[arg-type]  # a template renders to text, which the stage reads
            max_cost_usd=self._budget(),
            budget=self.budget or None,
            plan_only=self.plan_only,
            keep_days=self.keep_days,
            labels={"dag": self.dag_id, "task": self.task_id, "run": str(context["run_id"])},
            request=self._rendered(self.request, context),
            shape=self._rendered(self.shape, context),
            guards=self._rendered(self.guards, context),
            pace=self._rendered(self.pace, context),
        )

    def stage_of(self, context: Context, handle: RunHandle) -> Stage:  # noqa: ARG002 - for tasks with several runs
        """Return the stage of one of the task's runs."""
        return self.stage(context)

    def _budget(self) -> float | None:
        """Return the most dollars that the run may cost: as given, or as configured."""
        if self.max_cost_usd in (None, ""):
            budget = conf.getfloat("batch_llm", "default_max_cost_usd", fallback=25.0)
        else:
            budget = number("max_cost_usd", self.max_cost_usd, float)
        return None if math.isinf(budget) else budget

    def _rendered(self, settings: S, context: Context) -> S:
        """Render the fields that a group of settings names as templates."""
        given = {name: getattr(settings, name) for name in settings.template_fields}
        changes = {name: self.render_template(value, context) for name, value in given.items() if value}
        return replace(settings, **changes)

    def handles(self, context: Context) -> Sequence[RunHandle]:
        """Return the task's one run. Its handle is stored in the run folder, where other tasks find it."""
        from airflow_batch_llm.stage.run import own_name

        workspace = open_workspace(self.workspace)
        handle = self._run_handle(context, run_name(context, workspace, self._asked(context)))
        handle = replace(handle, run=own_name(workspace, handle.run, lambda: place_of(handle)))
        handle.store(workspace)
        return [handle]

    def open_run(self, context: Context, handle: RunHandle, spool: Path) -> "Run":
        """Return the run with the stage as it is written now, which counts if nothing was planned before."""
        from airflow_batch_llm.hooks.object_storage import ObjectFiles
        from airflow_batch_llm.hooks.warehouse import warehouse
        from airflow_batch_llm.stage.run import Run

        parts = replace(open_parts(context, handle, spool, self.log), find_object=self._find_object)
        if self.source_uri is not None:
            files = ObjectFiles(names(self.source_uri), self.source_conn_id, self.source_hook_params)
            parts = replace(parts, source=files)
        elif not self._is_one_database(handle):
            parts = replace(
                parts,
                source=warehouse(
                    self.source_conn_id or "", self.source_hook_params, argument="source_conn_id"
                ),
            )
        return Run(
            stage=self.stage_of(context, handle),
            parts=parts,
            name=handle.run,
            max_tries=handle.max_tries,
            is_given_up=GivenUp(workspace=parts.workspace, log=self.log),
        )

    def _find_object(self, uri: str) -> tuple[Any, str]:
        return open_path(uri, self.attachments_conn_id, "attachments_conn_id")

    def inputs(self, handle: RunHandle, run: "Run") -> tuple[str, ...]:  # noqa: ARG002 - it is the run's source
        """Return the URIs of the tables or files that the rows come from."""
        if self.source_uri is not None:
            return names(self.source_uri)
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
            others=self._others(context),
            target=self.target,
            target_conn_id=target_conn_id,
            target_hook_params=dict(target_params or {}),
            pace=asdict(self.pace),
            usage_table=self.usage_table,
            waiter=self.waiter(context),
        )

    def _others(self, context: Context) -> dict[str, dict[str, Any]]:
        """Return the routes that have connections of their own, as the handle holds them."""
        if not self.routes:
            return {}
        return {
            via: {"model_id": route.model_id or self.model_id, "llm_conn_id": route.llm_conn_id}
            for via, route in self.stage(context).others().items()
        }

    def _asked(self, context: Context) -> tuple[object, ...]:
        """Return the values that distinguish this item of a mapped task from the others."""
        asked = (name for name in self.template_fields if name not in ("budget", "usage_table"))
        rendered = tuple(getattr(self, name) for name in asked)
        prompt = None if self.prompt is None else identity(self.prompt)
        asked_of = (self.key, prompt, self.prompt_file, self.system_prompt, OutputType.of(self.output_type))
        places = (self.source_hook_params, self.target_hook_params, self.llm_hook_params)
        settings = (self._rendered(self.request, context), self._rendered(self.shape, context), self.only)
        examples = identity_of_examples(self.examples)
        return (*rendered, *asked_of, *places, *settings, *filter(None, [self.attachments, examples]))

    def _is_one_database(self, handle: RunHandle) -> bool:
        same_params = (self.source_hook_params or {}) == handle.target_hook_params
        return self.source_conn_id == handle.target_conn_id and same_params


def _examples(given: Sequence[Any]) -> tuple[Example, ...]:
    try:
        return examples_of(given)
    except ValueError as error:
        raise InputError(f"examples {error}.") from None


def _group(settings: type[S], given: S | Mapping[str, Any] | None, name: str = "") -> S:
    """Return a group of settings, which may be given as a mapping. Its name in messages is by default that of its class."""
    if isinstance(given, settings):
        return given
    if given is None or isinstance(given, Mapping):
        return settings(**(given or {}))
    raise InputError(
        f"{name or settings.__name__.lower()} must be a {settings.__name__}, got a {type(given).__name__}."
    )


def _refuse_fields_of_groups(arguments: Mapping[str, Any]) -> None:
    """Refuse an argument that is a field of a group, and name the group."""
    for argument, settings in _GROUPS.items():
        for name in {field.name for field in fields(settings)} & set(arguments):
            raise InputError(
                f"{name} is a field of {argument}: write {argument}={settings.__name__}({name}=…)."
            )
