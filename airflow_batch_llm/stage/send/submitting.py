"""Submit one shard: perform each action of the pure machine.

An error here becomes an answer to the machine (`NotCreated`, `Unknown`), which decides.
"""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from airflow_batch_llm.core.escalation import batches_until
from airflow_batch_llm.core.journal import CLOCK_SKEW_SECONDS, Move, Searched, Terms
from airflow_batch_llm.core.model import Lease, Search, ShardFile
from airflow_batch_llm.core.submission import (
    Action,
    Answer,
    Append,
    Attempt,
    CancelOwn,
    Created,
    Find,
    NotCreated,
    Phase,
    Read,
    Send,
    Stop,
    Unknown,
    Upload,
    advance,
    begin,
)
from airflow_batch_llm.errors import Later, Refused, Unavailable, UnknownFate
from airflow_batch_llm.providers.base import AsksTables
from airflow_batch_llm.providers.routed import by_route, vendors, vendors_id
from airflow_batch_llm.stage.parts import Parts, planned_tables
from airflow_batch_llm.stage.plan.shard_files import fetch_requests, left_out_of
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan, PlannedShard
from airflow_batch_llm.stage.records.registers import Registers
from airflow_batch_llm.stage.records.standings import RunMemory
from airflow_batch_llm.stage.send.uploading import AttachmentUpload, UploadLog
from airflow_batch_llm.store import at_once

#: The seconds of a creation's lease, to which each megabyte adds one.
LEASE_SECONDS = 120.0

#: Batches whose names are registered in parallel, because each write to object storage takes time.
_REGISTERED_AT_ONCE = 16

#: Seconds until the next try if a provider names no time.
_RETRY_SECONDS = 60.0


class Prepared(NamedTuple):
    """An attempt at a shard, and its next action."""

    shard: PlannedShard
    attempt: Attempt
    action: Action


def _has_its_turn(attempt: Attempt, action: Action) -> bool:
    """Return whether an action is performed for one shard at a time: creations, searches, and long leases."""
    return isinstance(action, Send | Find | CancelOwn) or (isinstance(action, Append) and not attempt.upload)


@dataclass(frozen=True, kw_only=True)
class Submitter:
    """Brings shards of one plan to the provider, as one attempt."""

    parts: Parts
    folder: RunFolder
    memory: RunMemory
    plan: Plan
    scratch: Path
    deadline: float
    _prepared: dict[int, Prepared] = field(default_factory=dict)
    """Shards whose intents were written ahead, by number, until their turn."""
    _recorded: list[str] = field(default_factory=list)
    """Batches that are recorded and not yet registered."""
    _log: UploadLog = field(default_factory=UploadLog)
    """The uploads of attachments."""
    _left_out: dict[int, int] = field(default_factory=dict)
    """The number of requests that are left out of shards, by the shard's number."""

    def _upload(self, shard: PlannedShard) -> str:
        """Put the shard where the provider reads it. This costs nothing."""
        return self._write_table(shard) if self.plan.in_warehouse else self._upload_file(self._file(shard))

    def _upload_file(self, file: ShardFile) -> str:
        return self.parts.provider.upload(file) if file.requests else ""

    def _write_table(self, shard: PlannedShard) -> str:
        """Have the warehouse write the requests where the provider reads them."""
        provider = self.parts.provider
        assert isinstance(provider, AsksTables), "the plan was made for a provider that does"
        tables = planned_tables(self.parts, self.plan.target, self.plan.nonce, self.folder.path)
        table = provider.requests_table(self.plan.token(shard), tables.uri)
        tables.write_requests(self.plan.nonce, shard.number, table)
        return table

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Register at the end of this block the batches that were created in it, and release intents that were not used."""
        try:
            yield
        finally:
            try:
                self._register()
            finally:
                for prepared in self._prepared.values():
                    self._take_back(prepared)
                self._prepared.clear()

    def prepare(self, shard: PlannedShard) -> Prepared:
        """Prepare a shard up to its intent, in parallel with other shards.

        The intent is the last record before its turn. If the creation itself holds the requests, it may take long, and no
        intent is written ahead: its lease would expire while other shards are sent.
        """
        attempt, action = begin(secrets.token_hex(6))
        prepared = self._go_on(Prepared(shard, attempt, action), is_ahead=True)
        if isinstance(prepared.action, Send):
            self._prepared[shard.number] = prepared
        return prepared

    def submit(self, prepared: Prepared) -> Move:
        """Submit the shard as far as possible now. The returned move says what it waits for."""
        self._prepared.pop(prepared.shard.number, None)
        action = self._go_on(prepared).action
        assert isinstance(action, Stop), "nothing else ends it"
        return action.move

    def _go_on(self, prepared: Prepared, *, is_ahead: bool = False) -> Prepared:
        shard, attempt, action = prepared
        # The journal of a shard was empty at the moment at which the shard was listed.
        is_known = attempt.phase is Phase.READING and not self.memory.entries(shard.number)
        while not (isinstance(action, Stop) or (is_ahead and _has_its_turn(attempt, action))):
            answer = self.memory.entries(shard.number) if is_known else self._perform(shard, action)
            # A record that was created after the last one that is known tells what a look at that moment would show.
            is_known = attempt.phase is Phase.RECORDING and answer is True
            attempt, action = advance(attempt, answer, self.terms(shard), self.parts.clock())
        return Prepared(shard, attempt, action)

    def _take_back(self, prepared: Prepared) -> None:
        """Record that an intent was not sent, so that nobody waits for the end of its lease."""
        shard, attempt, _ = prepared
        unsent = NotCreated(reason="the worker has ended before its turn", final=False)
        _, action = advance(attempt, unsent, self.terms(shard), self.parts.clock())
        with self.parts.cleaning("an intent and its uploaded file"):
            self._perform(shard, action)
            self.parts.provider.discard(attempt.upload)

    def terms(self, shard: PlannedShard) -> Terms:
        """Return the facts for decisions about this shard."""
        return Terms(
            token=self.plan.token(shard),
            requests=self._sent(shard),
            lease_seconds=LEASE_SECONDS + shard.bytes / 1e6,
            list_lag_seconds=by_route(
                self.parts.provider, self.plan.route(shard).call.via
            ).limits.list_lag_seconds,
            closed=self._is_cancelled or self.parts.clock() >= self._until(shard),
            way=self.plan.route(shard).way,
        )

    @cached_property
    def _is_cancelled(self) -> bool:
        return self.folder.is_cancelled()

    def _until(self, shard: PlannedShard) -> float:
        """Return the time until which the shard may be sent."""
        route = self.plan.route(shard)
        is_given_up = not route.way.in_real_time and self.plan.course(shard, is_late=True).when_late(
            route.name
        )
        return batches_until(self.plan.rules, self.deadline) if is_given_up else self.deadline

    def _perform(self, shard: PlannedShard, action: Action) -> Answer:
        match action:
            case Read():
                return self.memory.read(shard.number)
            case Append(number=number, entry=entry):
                created = self.memory.append(shard.number, number, replace(entry, by=self.parts.by))
                if created and entry.batch_id:
                    self._recorded.append(entry.batch_id)
                    if len(self._recorded) >= _REGISTERED_AT_ONCE:
                        self._register()
                return created
            case Find():
                return self._find(shard)
            case Upload():
                return self._upload(shard)
            case Send(upload=upload, expires_at=expires_at):
                return self._send(shard, upload, Lease(expires_at=expires_at))
            case CancelOwn(batch_id=batch_id):
                self.parts.provider.cancel(batch_id)
                return None
            case Stop():
                raise AssertionError("a stop is not performed")

    def _register(self) -> None:
        """Register the batches that were recorded since the last time."""
        at_once(self._add_known, self._recorded)
        self._recorded.clear()

    def _add_known(self, batch_id: str) -> None:
        self._registers.add_known(*vendors_id(self.parts.provider, batch_id), self.folder.run_id)

    @property
    def _registers(self) -> Registers:
        return Registers(workspace=self.parts.workspace)

    def _send(self, shard: PlannedShard, upload: str, lease: Lease) -> Created | NotCreated | Unknown:
        file = self._file(shard)
        if not file.requests and shard.requests:
            return NotCreated(reason="it takes none of the attachments", final=True)
        try:
            return Created(batch_id=self.parts.provider.submit(file, upload, lease))
        except Refused as error:
            self.parts.warn(f"Shard {shard.number}: {error.in_full}")
            return NotCreated(reason=str(error), final=True, detail=error.detail)
        except (Later, Unavailable) as error:
            return NotCreated(
                reason=str(error),
                final=False,
                retry_after=error.retry_after or _RETRY_SECONDS,
                detail=error.detail,
            )
        except UnknownFate as error:
            self.parts.warn(f"Shard {shard.number}: {error.in_full}")
            return Unknown()

    def _find(self, shard: PlannedShard) -> Searched:
        at = self.parts.clock()
        self._register()
        self._left_out[shard.number] = len(left_out_of(self.folder, self.plan, shard))
        known = self._registers.known(*vendors(self.parts.provider))
        search = Search(
            run_tokens=frozenset({self.plan.run_token}),
            since=self.plan.planned_at - CLOCK_SKEW_SECONDS,
            requests={self.plan.token(shard): self._sent(shard)},
            known=known,
        )
        return Searched(at=at, sightings=tuple(self.parts.provider.find(search)))

    def _file(self, shard: PlannedShard) -> ShardFile:
        """Return the shard's lines in a file on this machine, checked to be the planned ones.

        Rows in a warehouse have no lines.
        """
        path = self.scratch / f"{self.plan.nonce}-{shard.number:04d}.requests.jsonl"
        if not path.exists() and not self.plan.in_warehouse:
            self._left_out[shard.number] = len(self.fetch(shard, path))
        return ShardFile(
            path=path,
            token=self.plan.token(shard),
            call=self.plan.route(shard).asked,
            requests=self._sent(shard),
            bytes=shard.bytes,
        )

    def _sent(self, shard: PlannedShard) -> int:
        """Return the number of requests that are sent of a shard, as far as it is known."""
        return shard.requests - self._left_out.get(shard.number, 0)

    def fetch(self, shard: PlannedShard, path: Path) -> Mapping[int, str]:
        """Bring the shard's lines here as they are sent, with the vendor's names of their attachments.

        Returns why requests are left out, by their numbers. These reasons are recorded before anything is sent.
        """
        call = self.plan.route(shard).call
        if not call.attachments:
            fetch_requests(self.folder, self.plan, shard, path)
            return {}
        planned = path.with_name(f"{path.name}.planned")
        fetch_requests(self.folder, self.plan, shard, planned)
        upload = AttachmentUpload(
            parts=self.parts, folder=self.folder, scratch=self.scratch, log=self._log, via=call.via
        )
        left_out = upload.write(planned, path, self.folder.left_out(shard.number))
        if left_out:
            self.folder.note_left_out(shard.number, left_out)
        return left_out
