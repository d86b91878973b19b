"""Upload the attachments that requests name: each once in a run, and deleted when the run has landed.

An upload costs nothing, so no lease guards it. It is written down before and after: the record before has a word with which
the names of its files begin, so that the next attempt, or the end of the run, finds what a killed one has uploaded.
"""

import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import file_digest
from pathlib import Path
from typing import Any

import orjson

from airflow_batch_llm.core.attachment import Attachment, references, with_names
from airflow_batch_llm.core.printing import counted, verb
from airflow_batch_llm.errors import BatchLLMError, Refused, StoreError
from airflow_batch_llm.providers.base import StoresFiles
from airflow_batch_llm.providers.failures import saying
from airflow_batch_llm.providers.lines import joined_lines, split_lines
from airflow_batch_llm.providers.routed import by_route
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.records.registers import Registers
from airflow_batch_llm.stage.records.standings import at_once

#: Files that one record is about.
_FILES_AT_ONCE = 100

#: An older upload is not used again: vendors delete it 30 days after it was made.
_USED_SECONDS = 25 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    """Uploads that a record announces. `word` begins the names of their files, `via` names the connection."""

    word: str
    via: str
    hashes: frozenset[str]

    def name(self, one: Attachment) -> str:
        """Return the name that a file has at the vendor."""
        return f"{self.word}-{str(one.sha256)[:32]}.{one.media_type.rpartition('/')[2]}"


@dataclass(slots=True, kw_only=True)
class UploadLog:
    """Holds what the records of a run say of its uploads. One thread at a time uploads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    open: dict[str, _Begun] = field(default_factory=dict)
    """Uploads that nobody has reported whole, by their word."""
    _names: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict)
    _stored: set[tuple[str, str]] = field(default_factory=set)
    _seen: int = 0

    def read(self, folder: RunFolder) -> None:
        """Take in the records that were not read yet."""
        for number, data in folder.uploads(after=self._seen):
            self._seen = number
            self._take(orjson.loads(data))

    def _take(self, record: Mapping[str, Any]) -> None:
        via, at = record["via"], record["at"]
        if "begun" in record:
            begun = _Begun(word=record["word"], via=via, hashes=frozenset(record["begun"]))
            self.open[begun.word] = begun
        for name, stored in record.get("names", {}).items():
            self._names[via, name] = (stored, at)
            self._stored.add((via, stored))
        self._stored -= {(via, stored) for stored in record.get("deleted", ())}
        for word in record.get("whole", ()):
            self.open.pop(word, None)

    def names(self, via: str, hashes: Iterable[str], since: float) -> dict[str, str]:
        """Return the vendor's names of attachments by their hashes, as far as they were uploaded since a moment."""
        found = {name: self._names.get((via, name), ("", 0.0)) for name in hashes}
        return {
            name: stored
            for name, (stored, at) in found.items()
            if at >= since and (via, stored) in self._stored
        }

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

    def write(self, planned: Path, path: Path) -> None:
        """Write planned requests as they are sent, after each attachment that they name was uploaded."""
        with planned.open("rb") as file:
            asked = {str(one.sha256): one for line in split_lines(file) for one in references(line)}
        if not asked:
            planned.replace(path)
            return
        with self.log.lock:
            names = self._names(asked)
        new = path.with_name(f"{path.name}.new")
        with planned.open("rb") as old, new.open("wb") as file:
            file.writelines(joined_lines(with_names(line, names) for line in split_lines(old)))
        planned.unlink()
        new.replace(path)

    def _names(self, asked: Mapping[str, Attachment]) -> Mapping[str, str]:
        """Return the vendor's names of attachments. Uploads those that have none yet."""
        self.log.read(self.folder)
        missing = asked.keys() - self._known(asked).keys()
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
        """Take over what another attempt has uploaded, and could not report."""
        at_vendor = self._vendor.find_files(begun.word)
        expected = {name: begun.name(one) for name, one in asked.items() if name in begun.hashes}
        found = {name: at_vendor[own] for name, own in expected.items() if own in at_vendor}
        if found:
            self._record(names=found)

    def _upload(self, attachments: Sequence[Attachment]) -> None:
        hashes = [str(one.sha256) for one in attachments]
        begun = _Begun(word=f"llm-{secrets.token_hex(8)}", via=self.via, hashes=frozenset(hashes))
        self._record(word=begun.word, begun=hashes)
        stored = at_once(partial(self._store, begun), attachments)
        self._record(names=dict(zip(hashes, stored, strict=True)), whole=[begun.word])

    def _store(self, begun: _Begun, one: Attachment) -> str:
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
        except Refused as error:
            told = f"An attachment could not be uploaded: {error} If this server stores no files, set upload_attachments='never'."
            raise saying(Refused(told), status=error.status, detail=error.detail) from None
        finally:
            local.unlink(missing_ok=True)

    @property
    def _vendor(self) -> StoresFiles:
        provider = by_route(self.parts.provider, self.via)
        assert isinstance(provider, StoresFiles), "the rules of another provider allow no uploads"
        return provider

    def _record(self, **facts: Any) -> None:
        record = {"at": self.parts.clock(), "via": self.via, "nonce": secrets.token_hex(6), **facts}
        self.folder.add_upload(orjson.dumps(record))
        self.log.read(self.folder)

    def delete(self) -> None:
        """Delete the files of the run at this vendor, also those that nobody has reported."""
        loose = [begun.word for begun in self.log.open.values() if begun.via == self.via]
        stored = self.log.stored(self.via).union(*(self._vendor.find_files(word).values() for word in loose))
        at_once(by_route(self.parts.provider, self.via).discard, sorted(stored))
        self._record(deleted=sorted(stored), whole=loose)


def delete_uploads(parts: Parts, folder: RunFolder, first: Plan) -> None:
    """Delete the attachments that a run has uploaded. It fails no run: the next run with the provider tries again."""
    if first.provider != parts.provider.name or not any(route.call.attachments for route in first.routes):
        return
    log = UploadLog()
    log.read(folder)
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
