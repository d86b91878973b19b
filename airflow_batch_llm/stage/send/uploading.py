"""Upload the attachments that requests name: each once in a run, and deleted when the run has landed.

An upload costs nothing, so no lease guards it. It is recorded before and after. The first record has a prefix of the
names of its files, so that the next attempt, or the end of the run, finds the uploads of a killed one.
"""

import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import file_digest
from pathlib import Path
from typing import Any

import orjson

from airflow_batch_llm.core.attachment import Attachment, references, with_names
from airflow_batch_llm.core.printing import counted, verb
from airflow_batch_llm.errors import BatchLLMError, FileRefused, Refused, StoreError
from airflow_batch_llm.providers.base import StoresFiles
from airflow_batch_llm.providers.failures import saying
from airflow_batch_llm.providers.incoming import joined_lines, split_lines
from airflow_batch_llm.providers.routed import by_route
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.records.registers import Registers
from airflow_batch_llm.store import at_once

#: Files that one record is about.
_FILES_AT_ONCE = 100

#: Seconds after which an upload is not used again, because vendors delete it 30 days after it was made.
_USED_SECONDS = 25 * 86_400.0

#: Seconds after which the vendors have deleted an upload.
_KEPT_SECONDS = 30 * 86_400.0

_FORBIDDEN = 403

#: The prefix of the names of all uploads.
_MARK = "llm-"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """Uploads that a record announces. `word` is the prefix of their files' names, `via` names the connection."""

    word: str
    via: str
    hashes: frozenset[str]

    def name(self, one: Attachment) -> str:
        """Return the name that a file has at the vendor."""
        return f"{self.word}-{str(one.sha256)[:32]}.{one.media_type.rpartition('/')[2]}"


@dataclass(slots=True, kw_only=True)
class UploadLog:
    """Holds the records of a run's uploads. One thread at a time uploads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    open: dict[str, _Begun] = field(default_factory=dict)
    """Uploads that no record reports as whole, by their word."""
    words: dict[str, str] = field(default_factory=dict)
    """The connection of all uploads, by their word."""
    at: float = 0.0
    """The time of the last record."""
    conn_id: str = ""
    """The stage's own connection, as the last record names it."""
    _names: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict)
    _refused: dict[tuple[str, str], str] = field(default_factory=dict)
    _stored: set[tuple[str, str]] = field(default_factory=set)
    _seen: int = 0

    def read(self, folder: RunFolder) -> None:
        """Take in the records that were not read yet."""
        for number, data in folder.uploads(after=self._seen):
            self._seen = number
            self._take(orjson.loads(data))

    def _take(self, record: Mapping[str, Any]) -> None:
        via, at = record["via"], record["at"]
        self.at, self.conn_id = at, record.get("conn_id", "")
        if "begun" in record:
            begun = _Begun(word=record["word"], via=via, hashes=frozenset(record["begun"]))
            self.open[begun.word], self.words[begun.word] = begun, via
        # The first record of a name or of a refusal counts, so that all attempts send the same requests of a shard.
        for name, stored in record.get("names", {}).items():
            self._stored.add((via, stored))
            if (via, name) not in self._refused:
                self._names[via, name] = (stored, at)
        for name, told in record.get("refused", {}).items():
            if not self.names(via, [name], at - _USED_SECONDS):
                self._refused.setdefault((via, name), told)
        self._stored -= {(via, stored) for stored in record.get("deleted", ())}
        for word in record.get("whole", ()):
            self.open.pop(word, None)

    def names(self, via: str, hashes: Iterable[str], since: float) -> dict[str, str]:
        """Return the vendor's names of attachments that were uploaded since this time, by their hashes."""
        found = {name: self._names.get((via, name), ("", 0.0)) for name in hashes}
        return {
            name: stored
            for name, (stored, at) in found.items()
            if at >= since and (via, stored) in self._stored
        }

    def refused(self, via: str, hashes: Iterable[str]) -> dict[str, str]:
        """Return why the vendor does not store attachments, by the hashes of those that it has refused."""
        return {name: self._refused[via, name] for name in hashes if (via, name) in self._refused}

    def connections(self) -> list[str]:
        """Return the connections that may have files of the run."""
        return sorted({via for via, _ in self._stored} | {begun.via for begun in self.open.values()})

    def stored(self, via: str) -> set[str]:
        """Return the vendor's names of the files that a connection has."""
        return {stored for one, stored in self._stored if one == via}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentUpload:
    """Uploads the attachments of a run's requests to the vendor of one connection."""

    parts: Parts
    folder: RunFolder
    scratch: Path
    log: UploadLog
    via: str

    def write(self, planned: Path, path: Path, already: Mapping[int, str]) -> Mapping[int, str]:
        """Write planned requests as they are sent, after each attachment that they name was uploaded.

        A request whose attachment the vendor refuses is left out. Returns why, by the number of the request. `already`
        says it of those that another attempt has left out.
        """
        with planned.open("rb") as file:
            asked = {str(one.sha256): one for line in split_lines(file) for one in references(line)}
        if not (asked or already):
            planned.replace(path)
            return {}
        with self.log.lock:
            names, refused = self._names(asked), self.log.refused(self.via, asked)
        new, left_out = path.with_name(f"{path.name}.new"), dict(already)
        with planned.open("rb") as old, new.open("wb") as file:
            file.writelines(joined_lines(_as_sent(split_lines(old), names, refused, left_out)))
        planned.unlink()
        new.replace(path)
        return left_out

    def _names(self, asked: Mapping[str, Attachment]) -> Mapping[str, str]:
        """Return the vendor's names of attachments. Uploads those that have none yet."""
        self.log.read(self.folder)
        missing = asked.keys() - self._known(asked).keys() - self.log.refused(self.via, asked).keys()
        for begun in [one for one in self.log.open.values() if one.via == self.via and one.hashes & missing]:
            self._adopt(begun, asked)
        left = sorted(missing - self._known(asked).keys())
        if left:
            told = (
                f"{counted(len(left), 'attachment')} {verb(len(left), 'is', 'are')} uploaded to the vendor."
            )
            self.parts.log(told)
        for first in range(0, len(left), _FILES_AT_ONCE):
            self._upload([asked[name] for name in left[first : first + _FILES_AT_ONCE]])
        return self._known(asked)

    def _known(self, asked: Mapping[str, Attachment]) -> dict[str, str]:
        return self.log.names(self.via, asked, self.parts.clock() - _USED_SECONDS)

    def _adopt(self, begun: _Begun, asked: Mapping[str, Attachment]) -> None:
        """Take over the uploads that another attempt has made and could not record."""
        at_vendor = self._vendor.find_files(begun.word)
        expected = {name: begun.name(one) for name, one in asked.items() if name in begun.hashes}
        found = {name: at_vendor[own][0] for name, own in expected.items() if own in at_vendor}
        if found:
            self._record(names=found)

    def _upload(self, attachments: Sequence[Attachment]) -> None:
        hashes = [str(one.sha256) for one in attachments]
        begun = _Begun(word=f"{_MARK}{secrets.token_hex(8)}", via=self.via, hashes=frozenset(hashes))
        self._record(word=begun.word, begun=hashes)
        ends = dict(zip(hashes, at_once(partial(self._store, begun), attachments), strict=True))
        names = {name: end for name, end in ends.items() if isinstance(end, str)}
        refused = {name: end for name, end in ends.items() if isinstance(end, FileRefused)}
        if not names and not self.log.stored(self.via):  # perhaps the key may store nothing
            for error in refused.values():
                if error.status == _FORBIDDEN:
                    raise _unstored(error) from None
        self._record(
            names=names, refused={name: str(error) for name, error in refused.items()}, whole=[begun.word]
        )
        for error in {str(error): error for error in refused.values()}.values():
            self.parts.warn(f"Rows are not sent, because the vendor refuses an attachment. {error.in_full}")

    def _store(self, begun: _Begun, one: Attachment) -> str | FileRefused:
        name, local = str(one.sha256), self.scratch / begun.name(one)
        try:
            if not self.folder.get_attachment(name, local):
                raise StoreError(
                    "An attachment is gone from the run folder. Clear the task to plan again. Nothing was sent twice."
                )
            with local.open("rb") as content:
                if file_digest(content, "sha256").hexdigest() != name:
                    raise StoreError(
                        "An attachment in the run folder is not the planned one. Restore it, or clear the task."
                    )
            return self._vendor.store_file(local, begun.name(one), one.media_type)
        except FileRefused as error:
            return error
        except Refused as error:
            raise _unstored(error) from None
        finally:
            local.unlink(missing_ok=True)

    @property
    def _vendor(self) -> StoresFiles:
        provider = by_route(self.parts.provider, self.via)
        assert isinstance(provider, StoresFiles), "the rules of another provider allow no uploads"
        return provider

    def _record(self, **facts: Any) -> None:
        by = {"conn_id": self.parts.by.conn_id, "nonce": secrets.token_hex(6)}
        record = {"at": self.parts.clock(), "via": self.via, **by, **facts}
        self.folder.add_upload(orjson.dumps(record))
        self.log.read(self.folder)

    def delete(self) -> None:
        """Delete the files of the run at this vendor, also those that no record reports.

        They are found by name, because an upload with a lost reply has left a second file.
        """
        words = tuple(word for word, via in self.log.words.items() if via == self.via)
        at_vendor = self._vendor.find_files(words[0] if len(words) == 1 else _MARK).items()
        found = [stored for name, ids in at_vendor if name.startswith(words) for stored in ids]
        stored = sorted(self.log.stored(self.via).union(found))
        at_once(by_route(self.parts.provider, self.via).discard, stored)
        self._record(deleted=stored, whole=sorted(self.log.open.keys() & set(words)))


def _as_sent(
    lines: Iterable[bytes], names: Mapping[str, str], refused: Mapping[str, str], left_out: dict[int, str]
) -> Iterator[bytes]:
    """Yield planned requests with the vendor's names. One whose attachment is refused is noted and left out."""
    for number, line in enumerate(lines):
        why = [refused[name] for one in references(line) if (name := str(one.sha256)) in refused]
        if why:
            left_out.setdefault(number, why[0])
        if number not in left_out:
            yield with_names(line, names)


def _unstored(error: Refused) -> Refused:
    told = f"An attachment could not be uploaded: {error} If this server stores no files, set upload_attachments='never'."
    return saying(Refused(told), status=error.status, detail=error.detail)


def delete_uploads(parts: Parts, folder: RunFolder, first: Plan) -> None:
    """Delete the attachments that a run has uploaded.

    A failure does not fail the run: the next run with the provider tries again. Another key than the run's own does not see
    the files, so only a run with the same connection deletes them.
    """
    if not any(route.call.attachments for route in first.routes):
        return
    log = UploadLog()
    log.read(folder)
    if first.provider != parts.provider.name or log.conn_id not in ("", parts.by.conn_id):
        if log.connections() and parts.clock() < log.at + _KEPT_SECONDS:
            Registers(workspace=parts.workspace).add_loose(first.provider, folder)
        return
    failed: list[BatchLLMError] = []
    for via in log.connections():
        try:
            AttachmentUpload(parts=parts, folder=folder, scratch=parts.spool, log=log, via=via).delete()
        except BatchLLMError as error:
            failed.append(error)
    if failed:
        Registers(workspace=parts.workspace).add_loose(first.provider, folder)
        parts.warn(
            f"Attachments that {folder.path} has uploaded could not be deleted, and stay at the vendor until the next run"
            f" tries again: {failed[0].in_full}"
        )
