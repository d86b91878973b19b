"""Turn the user's stage and the source's rows into shards in the run folder and one frozen plan.

Everything here may be repeated: nothing is bought before `plan.json` exists. The first planner that creates it decides,
and a later planner takes its plan. A resumed run is told which arguments have changed since.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from airflow_batch_llm.core.model import Execution
from airflow_batch_llm.core.printing import verb
from airflow_batch_llm.core.request import canonical
from airflow_batch_llm.core.settings import Stage, StageWay
from airflow_batch_llm.core.spec import Spec, changed_fields, spec_hash
from airflow_batch_llm.core.value import plain
from airflow_batch_llm.errors import InputError, SourceError, TargetError, raise_alone
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.providers.routed import by_route
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.plan.attaching import attaching_of
from airflow_batch_llm.stage.plan.carried import carried_schema, key_schema
from airflow_batch_llm.stage.plan.drafting import Drafting
from airflow_batch_llm.stage.plan.partitions import REREAD, Opening, Outrun, opening_of
from airflow_batch_llm.stage.plan.planners import Planners
from airflow_batch_llm.stage.plan.quoting import settled
from airflow_batch_llm.stage.plan.reading import let_go
from airflow_batch_llm.stage.plan.resolved import Resolved, output_type_of, read_prompt, resolve, spec_of
from airflow_batch_llm.stage.plan.reviewing import ReviewMerge
from airflow_batch_llm.stage.plan.selecting import Selecting, check_execution
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan, RunLimits
from airflow_batch_llm.stage.records.registers import Registers
from airflow_batch_llm.stage.tidying import register_unfinished
from airflow_batch_llm.warehouses.base import NamesTables, SweepsStaging, Target, answer_schema
from airflow_batch_llm.warehouses.side_tables import prepare_tables
from airflow_batch_llm.warehouses.stages import RunsStages

#: Staged rows are left alone for this long after their plan, longer than any run lasts with its retries.
_STAGED_FOR = timedelta(days=30)

#: Fields of a spec that have another name among the user's arguments.
_ARGUMENTS = {"schema": "output_type", "params": "extra_body"}


def described(plan: Plan, stage: Stage, provider: Provider) -> str:
    """Return a line for people about changed arguments. Empty if none has changed."""
    try:
        names = changes(plan, stage, provider)
    except Exception as error:  # noqa: BLE001 - whatever a user's type raises, a run that is paid for goes on
        why = str(error) if isinstance(error, InputError) else type(error).__name__
        return f"The run goes on as it was planned. The stage as it is written now would be refused: {why}"
    if not names:
        return ""
    listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    verbs = verb(len(names), "has", "have"), verb(len(names), "counts", "count")
    return f"The run goes on as it was planned: {listed} {verbs[0]} changed since, and {verbs[1]} from the next plan on."


def changes(plan: Plan, stage: Stage, provider: Provider) -> list[str]:
    """Return the arguments that differ. Raises the errors of planning if today's arguments cannot be compared."""
    output_type = output_type_of(stage)
    now = spec_of(stage, read_prompt(stage), output_type, provider)
    fields = changed_fields(Spec.from_json(plan.spec), now)
    names = [_ARGUMENTS.get(name, name) for name in fields]
    if "output_type" not in names and plan.output_type["columns"] != output_type.to_json()["columns"]:
        names.append("columns")
    planned, asked = _planned(plan), _asked(stage)
    names += [name for name in asked if _spelled(planned[name]) != _spelled(asked[name])]
    routes = []
    for name, route in stage.routes.items():
        one = stage.under(route)
        spec = spec_of(one, read_prompt(one), output_type, by_route(provider, stage.via(route)))
        routes.append((name, one.way, spec_hash(spec)))
    before = [(route.name, route.way, route.spec_hash) for route in plan.routes[1:] if route.is_own]
    # A change of the stage's own spec also changes the specs of its routes.
    parts = 2 if fields else 3
    if [one[:parts] for one in before] != [one[:parts] for one in routes]:
        names.append("routes")
    if plan.rules != stage.rules():
        names.append("escalate")
    return names


def _planned(plan: Plan) -> dict[str, object]:
    target = plan.target
    return {
        "key": target.key.names,
        "carry": target.carried.names,
        "target": target.table,
        "failures_target": target.failures.removeprefix(target.table),
        "review_target": target.review and target.review.removeprefix(target.table),
        "write_mode": target.write_mode,
        "on_schema_change": target.on_schema_change,
        "create_target": target.create,
        "partition_by": target.partition_by,
        "cluster_by": target.cluster_by,
        "staging_schema": target.staging_schema,
        "way": plan.routes[0].way,
        "execution": plan.execution,
        **asdict(plan.limits),
    }


def _asked(stage: Stage) -> dict[str, object]:
    shape = stage.shape
    return {
        "key": stage.key,
        "carry": [name for name in shape.carry if name not in stage.key],
        "target": stage.target,
        "failures_target": stage.failures_table.removeprefix(stage.target),
        "review_target": stage.review_table and stage.review_table.removeprefix(stage.target),
        "write_mode": shape.write_mode,
        "on_schema_change": shape.on_schema_change,
        "create_target": shape.create_target,
        "partition_by": shape.partition_by,
        "cluster_by": shape.cluster_by,
        "staging_schema": shape.staging_schema,
        "execution": stage.execution,
        **({} if stage.way is StageWay.AUTO else {"way": stage.way}),
        **asdict(RunLimits.of(stage)),
    }


def _spelled(value: object) -> bytes:
    """Return the value as it is stored, where a tuple is a list and 25 is 25.0."""
    return canonical(plain(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """One planning attempt, below its own nonce."""

    stage: Stage
    parts: Parts
    folder: RunFolder
    max_tries: int
    opening: Opening | None = None
    """The partitions that other tasks have read, after they had prepared the tables. Default: this task does both."""

    def plan(self) -> Plan:
        """Return the plan that counts: this planner's, or that of a faster attempt at the same run."""
        resolved, target = self._looked_at() if self.opening is not None else self._prepared()
        opening = self.opening
        while True:
            try:
                return self._planned(resolved, target, opening)
            except Outrun as error:
                self.parts.warn(str(error))
                opening, (resolved, target) = None, self._prepared()

    def open(self, most: int) -> Opening:
        """Prepare the tables, and divide the source among tasks that read it. No row is read yet."""
        if self._in_warehouse:
            raise InputError(
                "plan_partitions spreads what workers read, and with execution='warehouse' none reads the source. Leave out"
                " one of the two. Nothing was sent."
            )
        resolved, target = self._prepared()
        with self._drafting(resolved, target) as drafting:
            # The order matters: a plan that is frozen between the two is in flight, or has a later ticket.
            settled_tickets = Registers(workspace=self.parts.workspace).settled_tickets(str(drafting.place))
            in_flight, rules = drafting.in_flight(), drafting.rules
        opening = opening_of(
            self.stage, self.parts, target, most=most, settled=settled_tickets, in_flight=in_flight
        )
        opening = replace(opening, rules=rules)
        register_unfinished(self.parts, self.folder, self.stage.keep_days)
        self.folder.create_opening(opening.nonce, opening.to_json())
        return opening

    def read_partition(self, number: int) -> int:
        """Read a partition into the run folder. Returns the number of its rows. Raises `Outrun` if the stage has changed."""
        assert self.opening is not None, "the source was divided before"
        resolved, target = self._looked_at()
        with self._drafting(resolved, target) as drafting:
            self.opening.check(drafting.rules)
            try:
                return drafting.read_partition(self.opening, number)
            except InputError as error:
                raise_alone(SourceError(f"{error}{REREAD}"))

    def _looked_at(self) -> tuple[Resolved, Target]:
        """Refuse faults that can be found before a row is read."""
        resolved = settled(resolve(self.stage, self.parts), self.stage, self.parts)
        target = self._target(resolved)
        self._refuse_source_as_target()
        self._check_execution(resolved, target)
        let_go(self.parts)
        return resolved, target

    def _prepared(self) -> tuple[Resolved, Target]:
        """Make the tables ready, and merge what people have answered."""
        resolved, target = self._looked_at()
        prepare_tables(self.parts.target, target)
        self._sweep_staging(target)
        self._merge_reviews(resolved, target)
        return resolved, target

    def look(self, samples: int) -> tuple[Plan, list[bytes]]:
        """Return the plan that would be made, and its first requests. Makes no table, and does not ask the provider."""
        resolved = resolve(self.stage, self.parts)
        target = self._target(resolved)
        self._refuse_source_as_target()
        self._check_execution(resolved, target)
        let_go(self.parts)
        with self._drafting(resolved, target, is_offline=True) as drafting:
            drafting.read()
            plan = drafting.draft()
            return plan, drafting.samples(samples)

    @property
    def _in_warehouse(self) -> bool:
        return self.stage.execution is Execution.WAREHOUSE

    def _check_execution(self, resolved: Resolved, target: Target) -> None:
        if self._in_warehouse:
            check_execution(self.stage, resolved, self.parts, target)

    def _merge_reviews(self, resolved: Resolved, target: Target) -> None:
        """Merge what people have answered."""
        if target.review is not None and not self.stage.plan_only:
            output_type = resolved.output_type
            ReviewMerge(parts=self.parts, folder=self.folder, target=target, output_type=output_type).run()

    def _sweep_staging(self, target: Target) -> None:
        """Drop rows that killed workers have staged, and that no run will publish any more."""
        if isinstance(self.parts.target, SweepsStaging):
            before = datetime.fromtimestamp(self.parts.clock(), UTC) - _STAGED_FOR
            with self.parts.cleaning("old staged rows of killed workers"):
                self.parts.target.sweep(target, before)

    @contextmanager
    def _drafting(
        self,
        resolved: Resolved,
        target: Target,
        *,
        opening: Opening | None = None,
        is_offline: bool = False,
    ) -> Iterator[Drafting]:
        """The work of this attempt, in a folder of its own for as long as it takes."""
        self.parts.spool.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.parts.spool, ignore_cleanup_errors=True) as scratch:
            drafting = (Selecting if self._in_warehouse else Drafting)(
                stage=self.stage,
                parts=self.parts,
                folder=self.folder,
                max_tries=self.max_tries,
                resolved=resolved,
                target=target,
                place=self.parts.target.place(self.stage.target),
                scratch=Path(scratch),
                is_offline=is_offline,
                opening=opening,
            )
            with closing(drafting):
                yield drafting

    def _planned(self, resolved: Resolved, target: Target, opening: Opening | None) -> Plan:
        with self._drafting(resolved, target, opening=opening) as drafting:
            if self.stage.plan_only:
                drafting.read()
                return drafting.draft()
            register_unfinished(self.parts, self.folder, self.stage.keep_days)
            return Planners(parts=self.parts, folder=self.folder, drafting=drafting).take_turn()

    def _refuse_source_as_target(self) -> None:
        """Refuse to add bookkeeping columns to a table of the user's that the source reads."""
        source, target = self.parts.source, self.parts.target
        if self.stage.shape.allow_source_as_target or not isinstance(source, NamesTables):
            return
        # Two warehouses of one database may be two objects.
        if getattr(source, "asset_uri", None) != target.asset_uri:
            return
        written = {
            "target": self.stage.target,
            "failures_target": self.stage.failures_table,
            "review_target": self.stage.review_table,
        }
        for named, table in written.items():
            if table is not None and source.reads_table(self.stage.source, table):
                raise TargetError(
                    f"{named} {table} is a table that the source reads: it would get the answers and every _llm_ column. "
                    "Name another table, or set Shape(allow_source_as_target=True) to insist."
                )

    def _source_schema(self) -> pa.Schema:
        if self._in_warehouse and isinstance(self.parts.target, RunsStages):
            return self.parts.target.source_schema(self.stage.source)
        with closing(self.parts.source.read(self.stage.source)) as reader:
            return reader.schema

    def _target(self, resolved: Resolved) -> Target:
        shape = self.stage.shape
        schema = self._source_schema()
        for name in (*self.stage.key, *shape.carry, *filter(None, [self.stage.route_column])):
            if name not in schema.names:
                raise SourceError(
                    f"The source has no column {name!r}. Its columns are: {', '.join(schema.names)}."
                )
        resolved.prompt.check(schema.names, has_attachments=bool(self.stage.attachments))
        if (attaching := attaching_of(self.stage, resolved, self.parts)) is not None:
            attaching.check(schema)
        return Target(
            table=self.stage.target,
            failures=self.stage.failures_table,
            review=self.stage.review_table,
            key=key_schema(schema, self.stage.key),
            carried=carried_schema(schema, [name for name in shape.carry if name not in self.stage.key]),
            answer=answer_schema(resolved.output_type.columns),
            write_mode=shape.write_mode,
            on_schema_change=shape.on_schema_change,
            create=shape.create_target,
            partition_by=shape.partition_by,
            cluster_by=tuple(shape.cluster_by),
            never_null=resolved.output_type.never_null,
            allow_constraints=shape.allow_constraints,
            staging_schema=shape.staging_schema,
            labels=self.stage.labels,
            has_route=True,
            has_reused=True,
            has_packed=True,
        )
