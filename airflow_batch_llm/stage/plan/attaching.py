"""Attach images and PDFs to the prompts of rows: read those that the vendor does not, and refuse those that no request can carry.

The worker reads only objects of a bucket, with its own rights: a row could name any address of the network, or a file
of the worker. So the vendor fetches http(s) URIs, and the worker never does. No message holds a URI or bytes.
"""

import os
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import file_digest, sha256
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import orjson
import pyarrow as pa

from airflow_batch_llm.core.attachment import (
    Attachment,
    AttachmentRules,
    Unattachable,
    Uploads,
    common_rules,
    kind_of,
    measured,
    media_type_of,
    parted,
    with_attachments,
)
from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.core.settings import Stage
from airflow_batch_llm.errors import InputError, SourceError, StoreUnavailable
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.plan.resolved import Resolved
from airflow_batch_llm.stage.plan.shard_files import prompt_blocks
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.store.remote import KINDS

#: The objects that are read in parallel, which are in memory together, and the objects whose size and etag are asked in parallel.
ATTACHED_AT_ONCE = 8
_LOOKED_AT_ONCE = 32

#: The most bytes that an attachment adds to a request besides its own.
ATTACHMENT_BYTES = 200

#: A smaller attachment is never worth a file of its own at the vendor.
_WORTH_UPLOADING = 100_000

_TEXTS = frozenset({pa.string(), pa.large_string(), pa.string_view()})
_BYTES = frozenset({pa.binary(), pa.large_binary(), pa.binary_view()})

_SCHEMES = {"gcs": "gs", "s3a": "s3"}


class _Facts(NamedTuple):
    """The facts that the storage has about an object."""

    size: int
    etag: str
    media_type: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """Keeps attachments that may be uploaded in files on this machine, each once, by the hash of its bytes."""

    folder: Path
    least: int
    """The bytes from which an attachment is kept."""
    is_sure: bool
    """All kept attachments are uploaded. False: only those that a request cannot carry, or that several rows share."""

    def name(self) -> Path:
        """Return a free name for a file that is about to be kept."""
        return self.folder / f"new-{uuid4().hex}"

    def keep(self, new: Path) -> str:
        """Keep a file, and return the hash of its bytes."""
        with new.open("rb") as file:
            name = file_digest(file, "sha256").hexdigest()
        try:
            os.link(new, self.path(name))
        except FileExistsError:
            self._shared(name).touch()
        return name

    def path(self, name: str) -> Path:
        return self.folder / name

    def is_shared(self, name: str) -> bool:
        """Return whether several rows have this attachment."""
        return self._shared(name).exists()

    def _shared(self, name: str) -> Path:
        return self.folder / f"{name}.shared"

    def publish(self, name: str, run: RunFolder) -> None:
        """Put an attachment into a run folder, where each submitter finds it, once."""
        done = self.folder / f"{name}.put"
        if not done.exists():
            run.put_attachment(name, self.path(name))
            done.touch()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attaching:
    """Reads the attachments of one source. `rules` hold for every route."""

    columns: Sequence[str]
    rules: AttachmentRules
    find: Callable[[str], tuple[Any, str]]
    aside: Aside | None = None
    """Keeps attachments that may be uploaded. None: nothing is uploaded."""
    at_once: tuple[int, RunFolder] | None = None
    """The size of a prompt at most, and the run folder, for a task that reads a part of the source: it decides row by row
    what is uploaded, because no one has the files later. Default: the planner decides when it has seen all rows."""
    _systems: dict[str, Any] = field(default_factory=dict, init=False)

    def check(self, schema: pa.Schema) -> None:
        """Refuse columns that hold neither texts nor bytes, or whose names in the hash of a row are taken."""
        if len(self.columns) > self.rules.most:
            raise InputError(
                f"attachments names {counted(len(self.columns), 'column')}, and a request takes {self.rules.most}."
            )
        for name in self.columns:
            if name not in schema.names:
                raise SourceError(
                    f"The source has no column {name!r}, which attachments names. Its columns are:"
                    f" {', '.join(schema.names)}."
                )
            if _hashed_as(name) in schema.names:
                raise InputError(
                    f"The source has a column {_hashed_as(name)!r}, which is the name of the attachment {name!r} in the hash of"
                    " a row. Give that column another name in the source."
                )
            if not (_is_text(schema.field(name).type) or _is_bytes(schema.field(name).type)):
                raise InputError(
                    f"attachments names the column {name!r}, whose type is {schema.field(name).type}. It must hold URIs"
                    " as text, or bytes."
                )

    def of(self, batch: pa.RecordBatch) -> "BatchAttachments":
        """Read the attachments of all rows of a batch."""
        uris = {
            uri
            for name in self.columns
            if _is_text(batch.schema.field(name).type)
            for uri in batch.column(name).to_pylist()
            if uri is not None and _scheme(uri) in KINDS
        }
        for uri in {_scheme(uri): uri for uri in uris}.values():
            self._system(uri)  # opened here: Airflow looks connections up in the task's own thread
        with ThreadPoolExecutor(_LOOKED_AT_ONCE) as pool:
            return BatchAttachments(self, batch, dict(zip(uris, pool.map(self._look, uris), strict=True)))

    def _look(self, uri: str) -> _Facts | Unattachable:
        try:
            if "@" in uri.partition("://")[2].partition("/")[0]:
                raise Unattachable("attachment_uri", "names a connection; its URI must begin with the bucket")
            system = self._system(uri)
            info = _asked(partial(system.info, system._strip_protocol(uri)))
        except Unattachable as error:
            return error
        etag = next((info[name] for name in ("ETag", "etag", "md5Hash") if info.get(name)), "")
        media_type = info.get("contentType") or info.get("ContentType")
        return _Facts(int(info.get("size") or 0), str(etag), media_type)

    def _system(self, uri: str) -> Any:
        """Return the file system of a URI. No value of a row names the connection that opens it."""
        scheme = _scheme(uri)
        if scheme not in self._systems:
            self._systems[scheme], _ = self.find(f"{scheme}://any")
            self._systems[scheme].invalidate_cache()  # a listing of before may not know the newest object
        return self._systems[scheme]

    def by_uri(self, uri: str, facts: _Facts | Unattachable | None) -> Attachment:
        """Return the attachment that a URI names: only the URI if the vendor reads it, and the bytes if not."""
        scheme = _scheme(uri)
        if isinstance(facts, Unattachable):
            raise facts.with_traceback(None)
        if facts is None:
            media_type = kind_of(uri)
            if media_type not in self.rules.by_uri.get(scheme, {}):
                raise self._unreadable(scheme, media_type)
            return Attachment(media_type, uri=_usual(uri))
        known = facts.media_type in self.rules.inline
        named = (facts.media_type if known else media_type_of(uri)) or ""
        fetched = self.rules.by_uri.get(_scheme(_usual(uri)), {})
        if named in fetched:
            _check_size(facts.size, fetched[named], named)
            return Attachment(named, uri=_usual(uri))
        if not facts.size:
            raise Unattachable("attachment_type", "is empty")
        _check_size(facts.size, self._most(named), named)
        system = self._system(uri)
        path = system._strip_protocol(uri)
        if (aside := self._aside(facts.size)) is None:
            return self.by_bytes(_asked(partial(system.cat_file, path)))
        new = aside.name()
        _asked(partial(system.get_file, path, str(new)))
        return self._kept(new, aside)

    def _most(self, media_type: str) -> int:
        """Return the most bytes of an attachment, if its type is known."""
        most = {name: self._most_of(name) for name in self.rules.inline}
        return most.get(media_type, max(most.values(), default=0))

    def _most_of(self, media_type: str) -> int:
        uploaded = self.rules.uploaded.get(media_type, 0) if self.aside is not None else 0
        return max(self.rules.inline[media_type], uploaded)

    def _aside(self, size: int) -> Aside | None:
        """Return the `Aside` that keeps an attachment of this size, or None if it is sent within its request."""
        return self.aside if self.aside is not None and size >= self.aside.least else None

    def _unreadable(self, scheme: str, media_type: str) -> Unattachable:
        if scheme != "https":
            shown = "http" if scheme == "http" else "no scheme that is known"
            return Unattachable("attachment_uri", f"has {shown}; use https, gs, s3 or abfs")
        if not any(media_type in types for types in (self.rules.inline, *self.rules.by_uri.values())):
            return _no_such_type(media_type, self.rules)
        return Unattachable(
            "attachment_uri",
            f"is {media_type} at an https URI, which the model does not fetch, nor does the worker. Put it into a bucket"
            " (gs, s3), or give its bytes",
        )

    def by_bytes(self, data: bytes) -> Attachment:
        """Return an attachment with its bytes, or with their hash if it may be uploaded."""
        if (aside := self._aside(len(data))) is not None:
            new = aside.name()
            new.write_bytes(data)
            return self._kept(new, aside)
        return self._checked(data)._replace(data=b64encode(data).decode())

    def _kept(self, new: Path, aside: Aside) -> Attachment:
        """Return the attachment that a file of this machine holds. The file is not read into memory."""
        try:
            if not new.stat().st_size:
                raise Unattachable("attachment_type", "is empty")
            with new.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
                found = self._checked(content)
                if found.media_type not in self.rules.uploaded:
                    return found._replace(data=b64encode(content).decode())
            return found._replace(sha256=aside.keep(new))
        finally:
            new.unlink(missing_ok=True)

    def _checked(self, data: bytes | mmap) -> Attachment:
        found = measured(data)
        if found is None:
            raise Unattachable("attachment_type", "is not an image or a PDF of a known kind")
        if found.media_type not in self.rules.inline:
            raise _no_such_type(found.media_type, self.rules)
        _check_size(len(data), self._most_of(found.media_type), found.media_type)
        most = self.rules.most_pixels
        if most is not None and max(found.width, found.height) > most:
            raise Unattachable(
                "attachment_size",
                f"has {found.width:,} by {found.height:,} pixels; the model takes {most:,} a side",
            )
        return found

    def check_pages(self, attachments: Iterable[Attachment]) -> None:
        """Refuse a row whose PDFs have too many pages together, as far as they show them."""
        pages, most = sum(one.pages for one in attachments), self.rules.most_pages
        if most is not None and pages > most:
            raise Unattachable(
                "attachment_pages",
                f"has {pages:,} pages, with those of the row's other PDFs, and the model takes {most:,}: leave pages out",
            )

    def joined(self, prompt: bytes, attachments: Sequence[Attachment]) -> bytes:
        """Return an encoded prompt with its attachments."""
        whole = with_attachments(prompt, attachments)
        if self.at_once is None or self.aside is None:
            return whole
        return self._settled(self.aside, *self.at_once, whole)

    def settled(
        self, prompts: Iterable[pa.BinaryArray], room: int, run: RunFolder | None
    ) -> Iterator[pa.BinaryArray]:
        """Yield the prompts as they are planned, with the bytes of attachments that are not uploaded.

        The others go into the run folder.

        `room` is the size of a prompt at most.
        """
        if self.aside is None or self.at_once is not None:
            return iter(prompts)
        settle = partial(self._settled, self.aside, room, run)
        return prompt_blocks(settle(prompt) for block in prompts for prompt in block.to_pylist())

    def _settled(self, aside: Aside, room: int, run: RunFolder | None, prompt: bytes) -> bytes:
        if b'"sha256":' not in prompt:
            return prompt
        text, attachments = parted(prompt)
        left, planned = room - len(prompt), []
        for one in attachments:
            if (name := one.sha256) is not None:
                path = aside.path(name)
                size = path.stat().st_size
                fits = size <= self.rules.inline[one.media_type] and size * 4 // 3 + 4 <= left
                if fits and not aside.is_sure and not aside.is_shared(name):
                    one = one._replace(data=b64encode(path.read_bytes()).decode(), sha256=None)
                    left -= len(str(one.data))
                elif run is not None:
                    aside.publish(name, run)
            planned.append(one)
        return with_attachments(orjson.dumps(text), planned)


@dataclass(frozen=True, slots=True)
class BatchAttachments:
    """The attachments of the rows of one batch of the source."""

    attaching: Attaching
    batch: pa.RecordBatch
    facts: Mapping[str, _Facts | Unattachable]

    def hashed(self) -> dict[str, list[str | None]]:
        """Return the value of each attachment in the hash of its row, by a name that no column of the source has."""
        return {
            _hashed_as(name): [self._hashed(value.as_py()) for value in self.batch.column(name)]
            for name in self.attaching.columns
        }

    def _hashed(self, value: str | bytes | None) -> str | None:
        if isinstance(value, bytes):
            return f"sha256:{sha256(value).hexdigest()}"
        if value is None or value not in self.facts:
            return value
        facts = self.facts[value]
        return f"{value} {facts.etag if isinstance(facts, _Facts) else facts.code}"

    def of_rows(self, rows: Iterable[int]) -> list[list[Attachment] | Unattachable]:
        """Return the attachments of some rows, or why a row cannot have its own."""
        if not self.facts:
            return list(map(self._of_row, rows))
        with ThreadPoolExecutor(ATTACHED_AT_ONCE) as pool:
            return list(pool.map(self._of_row, rows))

    def _of_row(self, row: int) -> list[Attachment] | Unattachable:
        attached = []
        for name in self.attaching.columns:
            value = self.batch.column(name)[row].as_py()
            try:
                if isinstance(value, bytes):
                    attached.append(self.attaching.by_bytes(value))
                elif value is not None:
                    attached.append(self.attaching.by_uri(value, self.facts.get(value)))
                self.attaching.check_pages(attached)
            except Unattachable as error:
                return Unattachable(error.code, f"The attachment in the column {name!r} {error.message}.")
        return attached


def _asked(ask: Callable[[], Any]) -> Any:
    """Ask the storage about an object. An outage ends the plan. A fault of the object only fails its row."""
    try:
        return ask()
    except FileNotFoundError:
        lacking, why = "attachment_missing", "does not exist"
    except PermissionError:
        lacking, why = "attachment_forbidden", "may not be read with the rights of the worker's connection"
    except Exception as error:  # noqa: BLE001 - clients of storages have no common error, and theirs quote the URI
        lacking, why = "", type(error).__name__
    if lacking:
        raise Unattachable(lacking, why)
    raise StoreUnavailable(
        f"The storage of an attachment cannot be read ({why}). Nothing was sent. Check that the bucket exists and that the"
        " worker may read it, then try again."
    )


def _hashed_as(name: str) -> str:
    """Return the name that the attachment of a column has in the hash of its row."""
    return f"attachment {name}"


def _scheme(uri: str) -> str:
    return uri.partition("://")[0].lower() if "://" in uri else ""


def _usual(uri: str) -> str:
    """Return a URI with its scheme as vendors know it."""
    scheme = _scheme(uri)
    return f"{_SCHEMES.get(scheme, scheme)}://{uri.partition('://')[2]}"


def _is_text(type_: pa.DataType) -> bool:
    return type_ in _TEXTS


def _is_bytes(type_: pa.DataType) -> bool:
    return type_ in _BYTES or pa.types.is_fixed_size_binary(type_)


def _check_size(size: int, most: int, media_type: str) -> None:
    if size > most:
        kind = media_type or "attachment"
        raise Unattachable(
            "attachment_size",
            f"has {size:,} bytes, and the model takes {most:,} of an {kind}: make it smaller",
        )


def _no_such_type(media_type: str, rules: AttachmentRules) -> Unattachable:
    return Unattachable(
        "attachment_type", f"is {media_type}; the model takes {', '.join(sorted(rules.inline))}"
    )


def attaching_of(
    stage: Stage,
    resolved: Resolved,
    parts: Parts,
    scratch: Path | None = None,
    at_once: tuple[int, RunFolder] | None = None,
) -> Attaching | None:
    """Return the reader of a stage's attachments, with rules that hold for all routes, or None if it has none.

    Attachments that may be uploaded are kept in the folder `scratch`. Without one, all are sent within the requests.
    """
    routes = [route.attachments for route in resolved.routes if route.attachments is not None]
    if not routes:
        return None
    rules, aside = common_rules(routes), None
    if rules.uploaded and scratch is not None:
        is_sure = stage.request.upload_attachments is Uploads.ALWAYS
        aside = Aside(
            folder=scratch / "attachments", least=1 if is_sure else _WORTH_UPLOADING, is_sure=is_sure
        )
        aside.folder.mkdir()
    return Attaching(
        columns=stage.attachments, rules=rules, find=parts.find_object, aside=aside, at_once=at_once
    )
