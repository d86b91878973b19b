"""Planning: from the user's stage and the source's rows to shards in the run folder and one frozen plan.

Everything here may be thrown away and done again: nothing is bought before `plan.json` exists, and whoever creates
it first decides. A planner that comes second takes the winner's plan.
"""

import secrets
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from airflow_batch_llm.core.counted import counted, verb
from airflow_batch_llm.core.estimate import Estimate
from airflow_batch_llm.core.model import Call
from airflow_batch_llm.core.output_type import AnswerKind, Naming, OutputType
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.core.prompt import CompiledPrompt, Prompt, compile_prompt, identity
from airflow_batch_llm.core.request import LineTemplate
from airflow_batch_llm.core.selection import Reason
from airflow_batch_llm.core.settings import BadRow, OverBudget, RowFunction, Stage
from airflow_batch_llm.core.shard import Bounds
from airflow_batch_llm.core.spec import Spec, spec_hash
from airflow_batch_llm.errors import BudgetExceeded, InputError, SourceError, TargetError
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.stage.budget import Quote, affordable
from airflow_batch_llm.stage.carried import carried_schema, key_schema, restored
from airflow_batch_llm.stage.folder import RunFolder
from airflow_batch_llm.stage.landing import SAMPLES, sample_keys
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.plan import Plan, RunLimits, new_run_token
from airflow_batch_llm.stage.reading import Reading, with_known
from airflow_batch_llm.stage.registers import Registers
from airflow_batch_llm.stage.shard_files import ShardWriter
from airflow_batch_llm.stage.spool import PROBLEM, Spool, keys_schema
from airflow_batch_llm.stage.standings import read_rounds
from airflow_batch_llm.stage.tidying import register_unfinished
from airflow_batch_llm.warehouses.base import ARROW_TYPES, NamesTables, SharesFile, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The stage as written, turned into what planning needs. Made before the first row is read."""

    call: Call
    template: LineTemplate
    prompt: CompiledPrompt
    output_type: OutputType
    spec: Spec
    spec_hash: str
    prices: PriceList


def output_type_of(stage: Stage) -> OutputType:
    """The stage's output type, with the target's columns for it."""
    shape = stage.shape
    naming = Naming(
        columns=shape.columns or None, output_column=shape.output_column, taken=(*stage.key, *shape.carry)
    )
    return OutputType.of(stage.output_type, naming)


def read_prompt(stage: Stage) -> str | RowFunction:
    """Return the prompt as it stands now, from its file where it is in one."""
    if stage.prompt is not None:
        return stage.prompt
    assert stage.prompt_file is not None, "a stage has exactly one of the two"
    try:
        return stage.prompt_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(
            f"prompt_file {stage.prompt_file} cannot be read ({why}). Put the template there, or correct the path."
        ) from None


def spec_of(stage: Stage, prompt: Prompt, output_type: OutputType, provider: Provider) -> Spec:
    """What decides what is asked."""
    return Spec(
        prompt=identity(prompt),
        prompt_params=stage.prompt_params,
        system_prompt=stage.system_prompt,
        provider=provider.name,
        model=stage.model,
        schema=output_type.schema,
        params={**output_type.request_params, **stage.request.extra_body},
        max_tokens=stage.request.max_tokens,
        endpoint=stage.request.endpoint,
        host=provider.host,
    )


def resolve(stage: Stage, parts: Parts) -> Resolved:
    """Everything about the stage that can be refused without looking at a row."""
    output_type, prompt = output_type_of(stage), read_prompt(stage)
    spec = spec_of(stage, prompt, output_type, parts.provider)
    call = Call(
        model=stage.model,
        system_prompt=stage.system_prompt,
        schema=output_type.schema,
        vector=output_type.kind is AnswerKind.VECTOR,
        max_tokens=stage.request.max_tokens,
        params=spec.params,
        endpoint=stage.request.endpoint,
        cache_system_prompt=stage.request.cache_system_prompt,
    )
    return Resolved(
        call=call,
        template=parts.provider.encode(call),
        prompt=compile_prompt(prompt, stage.prompt_params),
        output_type=output_type,
        spec=spec,
        spec_hash=spec_hash(spec),
        prices=PriceList.of(parts.provider.name, stage.model, stage.guards.prices, at=parts.clock()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """One planning attempt, below its own nonce."""

    stage: Stage
    parts: Parts
    folder: RunFolder
    max_tries: int

    def plan(self) -> Plan:
        """The plan that counts: ours, or that of whoever was faster."""
        resolved = resolve(self.stage, self.parts)
        target = self._target(resolved)
        self._refuse_source_as_target()
        self._let_go()
        self.parts.target.prepare(target)
        self.parts.spool.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.parts.spool, ignore_cleanup_errors=True) as folder:
            scratch = Path(folder)
            with closing(self._read(resolved, target, scratch)) as spool:
                if not self.stage.plan_only:
                    register_unfinished(self.parts, self.folder, self.stage.keep_days)
                plan = self._write(self._draft(resolved, target), resolved, spool, scratch)
        if self.stage.plan_only:
            return plan
        registers = Registers(workspace=self.parts.workspace)
        registers.open_run(self.stage.target, self.folder)
        self.folder.create_plan(plan.to_json())
        frozen = self.folder.read_plan()
        assert frozen is not None, "a plan that was created, or lost to another, is there"
        return Plan.from_json(frozen)

    def _refuse_source_as_target(self) -> None:
        """Refuse to add bookkeeping columns to a table of the user's that the source reads."""
        source, target = self.parts.source, self.parts.target
        if self.stage.shape.allow_source_as_target or not isinstance(source, NamesTables):
            return
        # Two warehouses of one database may be two objects.
        if getattr(source, "asset_uri", None) != target.asset_uri:
            return
        for named, table in (("target", self.stage.target), ("failures_target", self.stage.failures_table)):
            if source.reads_table(self.stage.source, table):
                raise TargetError(
                    f"{named} {table} is a table that the source reads: it would get the answers and every _llm_ column. "
                    "Name another table, or set Shape(allow_source_as_target=True) to insist."
                )

    def _target(self, resolved: Resolved) -> Target:
        shape = self.stage.shape
        with closing(self.parts.source.read(self.stage.source)) as reader:
            schema: pa.Schema = reader.schema
        for name in (*self.stage.key, *shape.carry):
            if name not in schema.names:
                raise SourceError(
                    f"The source has no column {name!r}. Its columns are: {', '.join(schema.names)}."
                )
        resolved.prompt.check(schema.names)
        return Target(
            table=self.stage.target,
            failures=self.stage.failures_table,
            key=key_schema(schema, self.stage.key),
            carried=carried_schema(schema, [name for name in shape.carry if name not in self.stage.key]),
            answer=pa.schema([(c.name, ARROW_TYPES[c.type]) for c in resolved.output_type.columns]),
            write_mode=shape.write_mode,
            on_schema_change=shape.on_schema_change,
            create=shape.create_target,
            partition_by=shape.partition_by,
            cluster_by=tuple(shape.cluster_by),
            never_null=resolved.output_type.never_null,
            allow_constraints=shape.allow_constraints,
            staging_schema=shape.staging_schema,
            labels=self.stage.labels,
        )

    def _read(self, resolved: Resolved, target: Target, scratch: Path) -> Spool:
        """The source in the spool, its keys checked, and what other runs have in flight taken out."""
        columns = pa.schema([*target.key, *target.carried])
        spool = Spool(scratch, columns, self.stage.key)
        reading = Reading(
            key=tuple(self.stage.key),
            prompt=resolved.prompt,
            spec_hash=resolved.spec_hash,
            target=target,
            only=self.stage.only,
            retry_dead=self.stage.guards.retry_dead,
            max_rows=self.stage.max_rows,
            max_prompt_bytes=self.parts.provider.limits.max_request_bytes - resolved.template.overhead,
        )
        with closing(with_known(self.parts.source, self.stage.source, self.parts.target, target)) as rows:
            reading.fill(spool, rows)
        self._let_go()
        spool.finish()
        if twice := spool.duplicate_keys():
            shown = ", ".join(key for batch in twice for key in sample_keys(batch))
            raise SourceError(
                f"The key {self.stage.key} is not unique in the source: {shown} stand there more than once, for example."
                " Choose a key that is, or leave the repetitions out of the source. Nothing was sent."
            )
        self._take_out_in_flight(spool, resolved.spec_hash, scratch)
        return spool

    def _let_go(self) -> None:
        """Release databases that only one process can write at a time."""
        for part in (self.parts.source, self.parts.target):
            if isinstance(part, SharesFile):
                part.release()

    def _take_out_in_flight(self, spool: Spool, spec_hash: str, scratch: Path) -> None:
        """Rows that another run has bought, or is about to: in flight until the round that asks them is published."""
        for other in Registers(workspace=self.parts.workspace).open_runs(self.stage.target):
            for plan in read_rounds(other) if other.path != self.folder.path else ():
                if plan.spec_hash == spec_hash and other.read_published(plan.round) is None:
                    self._take_out(spool, other, plan, scratch)

    def _take_out(self, spool: Spool, other: RunFolder, plan: Plan, scratch: Path) -> None:
        for shard in plan.shards:
            local = scratch / f"{plan.nonce}-{shard.number}.keys.parquet"
            if other.get_keys(plan.nonce, shard.number, local):
                spool.take_out(local, plan.target.key)
                local.unlink()

    def _draft(self, resolved: Resolved, target: Target) -> Plan:
        nonce = secrets.token_hex(5)
        return Plan(
            round=1,
            nonce=nonce,
            run_token=new_run_token(nonce, 1),
            planned_at=self.parts.clock(),
            max_tries=self.max_tries,
            spec_hash=resolved.spec_hash,
            spec=resolved.spec.to_json(),
            provider=self.parts.provider.name,
            model=resolved.call.model,
            calls=(resolved.call,),
            output_type=resolved.output_type.to_json(),
            target=target,
            limits=RunLimits.of(self.stage),
        )

    def _write(self, draft: Plan, resolved: Resolved, spool: Spool, scratch: Path) -> Plan:
        """Count, price, and write the shards' files."""
        requests = spool.number_requests()
        problems = spool.problems()
        if problems:
            self._tell_bad_rows(spool, sum(problems.values()), draft.target)
        quote = Quote(
            provider=self.parts.provider,
            call=resolved.call,
            output_type=resolved.output_type,
            prices=resolved.prices,
        )
        guess = quote.estimate(spool.prompts(requests), requests)
        allowed = self._allowed(guess)
        writer = ShardWriter(
            folder=None if self.stage.plan_only else self.folder,
            scratch=scratch,
            nonce=draft.nonce,
            run_token=draft.run_token,
            bounds=Bounds.of(self.parts.provider.limits, rows_per_batch=self.stage.pace.rows_per_batch),
        )
        shards = writer.write_requests(resolved.template, spool.prompts(allowed))
        shards = writer.write_keys(shards, spool.keyed_rows(allowed), keys_schema(spool.columns))
        lost = writer.write_unsendable(spool.rows_with(Reason.UNSENDABLE)) if problems else ""
        why = {str(reason): count for reason, count in spool.reasons(allowed).items()}
        return replace(
            draft,
            shards=shards,
            problems=problems,
            unsendable_sha256=lost,
            why=why,
            estimate=guess.to_json(),
        )

    def _tell_bad_rows(self, spool: Spool, count: int, target: Target) -> None:
        """Warn about rows that cannot be sent, or refuse them, with some of their keys and why the first one cannot."""
        with closing(spool.rows_with(Reason.UNSENDABLE)) as reader:
            rows = reader.read_next_batch().slice(0, SAMPLES)
        problems = [str(problem).partition(": ") for problem in rows.column(PROBLEM).to_pylist()]
        keys = sample_keys(restored(rows, target.key))
        shown = ", ".join(f"{key} ({code})" for key, (code, _, _) in zip(keys, problems, strict=True))
        told = f"{counted(count, 'row')} cannot be sent"
        example = f"{shown}, for example. Of the first one: {problems[0][2]}"
        if self.stage.guards.on_bad_row is BadRow.FAIL:
            raise InputError(
                f"{told}, and on_bad_row='fail': {example} Correct them, leave them out of the source, or set"
                " on_bad_row='record'. Nothing was sent."
            )
        self.parts.warn(f"{told}: {example}")

    def _allowed(self, guess: Estimate) -> int:
        """How many of the requests are sent."""
        most, on_over_budget = self.stage.max_cost_usd, self.stage.guards.on_over_budget
        allowed = affordable(guess, most)
        if allowed == guess.requests or self.stage.plan_only or on_over_budget is OverBudget.PARTIAL:
            return allowed
        raise BudgetExceeded(
            f"{counted(guess.requests, 'request')} {verb(guess.requests, 'is', 'are')} estimated at ${guess.expected:,.4f}, above"
            f" max_cost_usd={most:g}. Nothing was sent. Raise max_cost_usd, lower max_rows, or set"
            " on_over_budget='partial' to send what fits."
        )
