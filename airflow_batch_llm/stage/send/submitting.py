"""Performing the submission of one shard: each wish of the pure machine done for real.

An error here never decides anything: it becomes an answer (`NotCreated`, `Unknown`) and the machine decides.
"""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from airflow_batch_llm.core.escalation import batches_until
from airflow_batch_llm.core.journal import CLOCK_SKEW_SECONDS, Move, Searched, Terms
from airflow_batch_llm.core.model import Lease, Search, ShardFile
from airflow_batch_llm.core.submission import (
    Action,
    Answer,
    Append,
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
from airflow_batch_llm.stage.parts import Parts, stage_tables
from airflow_batch_llm.stage.plan.shard_files import fetch_requests, left_out_of
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan, PlannedShard
from airflow_batch_llm.stage.records.registers import Registers
from airflow_batch_llm.stage.records.standings import RunMemory
from airflow_batch_llm.stage.send.uploading import AttachmentUpload, UploadLog

#: A creation gets this long, and a second more for each megabyte.
LEASE_SECONDS = 120.0

#: Where a provider names no time, the next try comes after this.
_RETRY_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Submitter:
    """Brings shards of one plan to the provider, as one attempt."""

    parts: Parts
    folder: RunFolder
    memory: RunMemory
    plan: Plan
    scratch: Path
    deadline: float
    _uploads: dict[int, str] = field(default_factory=dict)
    """References of shards that were uploaded ahead, by number."""
    _log: UploadLog = field(default_factory=UploadLog)
    """The uploads of attachments."""
    _left_out: dict[int, int] = field(default_factory=dict)
    """The number of requests that are left out of shards, by the shard's number."""

    def upload(self, shard: PlannedShard) -> None:
        """Put the shard where the provider reads it, ahead of its turn. It costs nothing, and nothing is recorded."""
        self._uploads[shard.number] = (
            self._write_table(shard) if self.plan.in_warehouse else self._upload_file(self._file(shard))
        )

    def _upload_file(self, file: ShardFile) -> str:
        return self.parts.provider.upload(file) if file.requests else ""

    def _write_table(self, shard: PlannedShard) -> str:
        """Have the warehouse write the requests where the provider reads them."""
        provider, tables = self.parts.provider, stage_tables(self.parts, self.plan.target)
        assert isinstance(provider, AsksTables), "the plan was made for a provider that does"
        table = provider.requests_table(self.plan.token(shard), tables.uri)
        tables.write_requests(self.plan.nonce, shard.number, table)
        return table

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """Remove at the end of this block what was uploaded ahead and is not sent."""
        try:
            yield
        finally:
            for upload in filter(None, self._uploads.values()):
                with self.parts.cleaning("an uploaded file"):
                    self.parts.provider.discard(upload)
            self._uploads.clear()

    def submit(self, shard: PlannedShard) -> Move:
        """Go as far as can be gone now; the move says what the shard waits for."""
        attempt, action = begin(secrets.token_hex(6))
        answer: Answer = self.memory.entries(shard.number) or None
        is_known = answer is None  # its journal is empty as of the moment at which it was listed
        while not isinstance(action, Stop):
            answer = self.memory.entries(shard.number) if is_known else self._perform(shard, action)
            # A record that was created after the last one that is known tells what a look at that moment would show.
            is_known = attempt.phase is Phase.RECORDING and answer is True
            attempt, action = advance(attempt, answer, self.terms(shard), self.parts.clock())
        return action.move

    def terms(self, shard: PlannedShard) -> Terms:
        """Return the facts that decisions about this shard need."""
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
                    self._registers.add_known(
                        *vendors_id(self.parts.provider, entry.batch_id), self.folder.run_id
                    )
                return created
            case Find():
                return self._find(shard)
            case Upload():
                if shard.number not in self._uploads:
                    self.upload(shard)
                return self._uploads.pop(shard.number)
            case Send(upload=upload, expires_at=expires_at):
                return self._send(shard, upload, Lease(expires_at=expires_at))
            case CancelOwn(batch_id=batch_id):
                self.parts.provider.cancel(batch_id)
                return None
            case Stop():
                raise AssertionError("a stop is not performed")

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
        """The shard's lines on this machine, checked to be the planned ones. There are none of rows in a warehouse."""
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
        """Bring the shard's lines here as they are sent: with the vendor's names of the attachments that it has.

        Returns why requests are left out, by their numbers. That is on record before anything is sent.
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
