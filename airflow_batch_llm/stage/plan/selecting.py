"""Draft a plan whose rows stay in the warehouse: its statements select, number and write the requests.

The worker sees counts, a few prompts to price, and the rows that cannot be sent.
"""

import secrets
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from decimal import Decimal

import orjson
import pyarrow as pa

from airflow_batch_llm.core.estimate import Estimate, RequestSize
from airflow_batch_llm.core.model import Way
from airflow_batch_llm.core.selection import Reason, table
from airflow_batch_llm.core.settings import Stage, StageWay
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.providers.base import AsksTables
from airflow_batch_llm.stage.land.landing import SAMPLES, sample_keys
from airflow_batch_llm.stage.learning import Learning
from airflow_batch_llm.stage.parts import Parts, stage_tables
from airflow_batch_llm.stage.plan.carried import stored_rows, stored_schema
from airflow_batch_llm.stage.plan.drafting import Drafting
from airflow_batch_llm.stage.plan.partitions import Outrun
from airflow_batch_llm.stage.plan.quoting import SAMPLE, Quote, with_cache
from airflow_batch_llm.stage.plan.reading import doubled_key, null_carried, null_key, required_columns
from airflow_batch_llm.stage.plan.resolved import Resolved
from airflow_batch_llm.stage.plan.spool import ATTEMPTS, INPUT_HASH, PROBLEM
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan, PlannedShard
from airflow_batch_llm.warehouses.base import Target
from airflow_batch_llm.warehouses.stages import Numbering, RunsStages, Selected, Selection, StageTables

_INSTEAD = "Leave it out, or set execution='worker'. Nothing was sent."


def check_execution(stage: Stage, resolved: Resolved, parts: Parts, target: Target) -> None:
    """Raise `InputError` if the warehouse cannot run this stage, with a message that says what to change."""
    wishes = {
        "routes": stage.routes,
        "escalate": stage.escalate,
        "canary": stage.canary,
        "attachments": stage.attachments,
        "rows_per_request": stage.request.rows_per_request > 1,
        f"way={stage.way.value!r}": stage.way is not StageWay.BATCH,
    }
    if unable := next((name for name, wish in wishes.items() if wish), None):
        raise InputError(f"execution='warehouse' cannot do {unable}. {_INSTEAD}")
    if not isinstance(parts.target, RunsStages):
        raise InputError(
            f"execution='warehouse' needs a warehouse whose statements can run a stage, and {type(parts.target).__name__}"
            " cannot. BigQuery can. Set execution='worker'. Nothing was sent."
        )
    if parts.source is not parts.target:
        raise InputError(
            "execution='warehouse' reads the source and writes the target by one connection. Give both the same"
            " connection, or set execution='worker'. Nothing was sent."
        )
    tables, provider = parts.target.stage_tables(target), parts.provider
    if not isinstance(provider, AsksTables) or provider.table_scheme != tables.scheme:
        raise InputError(
            f"execution='warehouse' needs a vendor that reads tables of the target's warehouse ({tables.scheme}), and"
            f" {provider.name} does not. Gemini on Vertex AI reads those of BigQuery. Set execution='worker'. Nothing"
            " was sent."
        )
    provider.result_form(resolved.own.call)  # refuses models whose answers no statement can read


@dataclass(slots=True, kw_only=True)
class Selecting(Drafting):
    """The work of one planner whose rows stay in the warehouse."""

    _tables: StageTables = field(init=False)
    _selection: Selection = field(init=False)
    _nonces: list[str] = field(default_factory=list, init=False)
    """The nonces of all drafts."""

    def read(self) -> None:
        """Write the source's rows to a table in the warehouse, and check their keys. The plans in flight are noted before."""
        self._note_in_flight()
        self._tables = stage_tables(self.parts, self.target)
        self._selection = Selection(
            name=secrets.token_hex(8),
            source=self.stage.source,
            prompt=self.resolved.prompt,
            spec_hashes=tuple(sorted(self.resolved.current.specs[0])),
            reasons=table(self.stage.only, retry_dead=self.stage.guards.retry_dead),
            max_prompt_bytes=self._max_prompt_bytes(),
            donors=self._reuse().donors,
            required=tuple(sorted(required_columns(self.parts.target, self.target))),
        )
        self._tables.select_rows(self._selection)
        if twice := sample_keys(self._tables.doubled_keys(self._selection, SAMPLES)):
            raise doubled_key(self.stage.key, twice)

    def draft(self) -> Plan:
        """Return a draft without the rows that other runs buy: the last one, if it has none of them."""
        self._note_in_flight()
        others = [(other, plan) for other, plan in self._not_done() if plan.shards]
        for other, plan in others:
            self._leave_out(other, plan)
        if self._draft is None or others:
            self._draft = self._numbered(self._tables.count_rows(self._selection))
            self._nonces.append(self._draft.nonce)
        return self._draft

    def _leave_out(self, other: RunFolder, plan: Plan) -> None:
        theirs = stage_tables(self.parts, plan.target)
        if (table := theirs.plan_table(plan.nonce)) is not None:
            return self._tables.leave_out(self._selection, table)
        if other.read_published(plan.round) is None:  # a run is published before its table is dropped
            raise InputError(
                f"The unfinished run {other.path} asks rows of this target, and its table of them is not in {theirs.uri}: it"
                " was dropped, or has vanished after 30 days. Nothing was sent. That run cannot end. Delete its run folder:"
                " its rows that are not in the target yet are asked, and paid, again. Then run this task again."
            )
        raise Outrun("Another run has landed while the source was read. The source is read again.")

    def samples(self, most: int) -> list[bytes]:
        """Return a few requests as they would be sent."""
        template = self.resolved.own.template
        prompts = self._tables.sample_prompts(self._selection, most)
        return [template.line("r-0001-000000", orjson.dumps(prompt)) for prompt in prompts]

    def close(self) -> None:
        """Drop the tables that no planner needs. Another planner may still freeze a stored draft that is not frozen."""
        frozen = self.folder.read_plan()
        with self.parts.cleaning("the tables of a planner"):
            if hasattr(self, "_selection"):
                self._tables.forget_rows(self._selection)
            for nonce in self._nonces:
                is_stored = frozen is None and self.folder.read_draft(nonce) is not None
                if not is_stored and (frozen is None or Plan.from_json(frozen).nonce != nonce):
                    self._tables.drop_plan(nonce, ())

    def _numbered(self, selected: Selected) -> Plan:
        """Price the selected rows, and write the table of the plan."""
        for name in selected.nulls:
            raise null_key(name) if name in self.stage.key else null_carried(name, "a row that is to be sent")
        bad = self._unsendable(selected)
        requests = min(
            [selected.requests, *([self.stage.max_rows] if self.stage.max_rows is not None else [])]
        )
        choice = self.stage.request.cache_system_prompt
        self.resolved = with_cache(self.resolved, self.parts, choice, [Way.BATCH], [requests])
        own = self.resolved.own
        guess = self._quote(selected, requests)
        (allowed,) = self._allowed([guess], Decimal(0))
        draft = self._begun((own.planned(Way.BATCH, guess),))
        numbered = self._tables.number_requests(
            Numbering(
                selection=self._selection,
                nonce=draft.nonce,
                run_token=draft.run_token,
                template=own.template,
                requests=allowed,
                rows=self.stage.max_rows,
                per_shard=self._bounds(own).requests,
            )
        )
        shards = tuple(
            PlannedShard(
                number=shard.number,
                requests=shard.requests,
                rows=shard.rows,
                bytes=shard.bytes + own.template.overhead * shard.requests,
                requests_sha256="",
                keys_sha256="",
            )
            for shard in numbered.shards
        )
        lost = "" if bad is None else self._writer(draft).write_unsendable(bad)
        return replace(
            draft,
            shards=shards,
            problems=selected.problems,
            unsendable_sha256=lost,
            donors=self._selection.donors if Reason.REUSED in numbered.reasons else (),
            why={str(reason): count for reason, count in numbered.reasons.items()},
        )

    def _unsendable(self, selected: Selected) -> pa.RecordBatchReader | None:
        """Return the rows that cannot be sent, or None if all can be."""
        if not selected.problems:
            return None
        origin = pa.schema([*self.target.key, *self.target.carried])
        own = [(INPUT_HASH, pa.string()), (ATTEMPTS, pa.int64()), (PROBLEM, pa.string())]
        schema = pa.schema([*own, *stored_schema(origin)])
        with closing(self._tables.unsendable_rows(self._selection)) as reader:
            rows = [stored_rows(batch, origin, schema) for batch in reader]
        self._tell_bad_rows(rows[0].slice(0, SAMPLES), sum(selected.problems.values()))
        return pa.RecordBatchReader.from_batches(schema, rows)

    def _quote(self, selected: Selected, requests: int) -> Estimate:
        learned, own = Learning(parts=self.parts), self.resolved.own
        share = requests / selected.requests if selected.requests else 0.0
        quote = Quote(
            provider=None if self.is_offline else self.parts.provider,
            output_type=self.resolved.output_type,
            route=own,
            way=Way.BATCH,
            measured=learned.of(own.spec_hash),
            cached=learned.cached(own.call, own.spec_hash, Way.BATCH),
        )
        size = RequestSize(
            requests=requests,
            prompt_bytes=round(selected.prompt_bytes * share),
            largest_bytes=selected.largest_bytes,
        )
        prompts: Sequence[str] = self._tables.sample_prompts(self._selection, SAMPLE) if requests else ()
        return quote.of_size(size, requests, [orjson.dumps(prompt) for prompt in prompts])
