"""Tell new files from those that a watcher has reported, and keep what it has reported for the next triggerer."""

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from airflow_batch_llm.core.request import canonical, digest
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.hooks.arguments import deployment

if TYPE_CHECKING:
    from airflow_batch_llm.stage.records.registers import Registers


#: The fields of a listing that change with a file's content, the best first. Each kind of storage has its own.
_VERSIONS = ("generation", "etag", "ETag", "mtime", "last_modified", "LastModified", "updated", "created")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """The marks of files: a hash of all that a file is known by."""

    reported: frozenset[str] = frozenset()
    """Files that are there and were reported."""
    found: frozenset[str] = frozenset()
    """Files that the last look found."""

    def after(self, files: Mapping[str, str]) -> "tuple[list[str], Arrivals]":
        """Return the URIs to report, and the marks after that. `files` has the URI of each mark.

        A file is reported once two looks in a row have found it unchanged: until then it may still be growing.
        """
        new = (files.keys() & self.found) - self.reported
        known = Arrivals(reported=(self.reported & files.keys()) | new, found=frozenset(files))
        return sorted(files[mark] for mark in new), known


def list_files(uri: str, conn_id: str | None) -> dict[str, str]:
    """Return the URI of each file that a URI or pattern names now, by its mark. It blocks."""
    from airflow_batch_llm.hooks.object_storage import open_path, split_connection

    system, path = open_path(uri, conn_id)
    system.invalidate_cache()  # a listing kept from before may not know the newest file
    listed = system.glob(path, detail=True)
    if path in listed and listed[path].get("type") == "directory":
        raise InputError(f"{uri} is a folder. Name its files by a pattern, such as /*.parquet at the end.")
    named, _ = split_connection(uri)
    files = {}
    for found, details in listed.items():
        if details.get("type") == "directory":
            continue
        whole = str(system.unstrip_protocol(found))
        whole = whole.replace("://", f"://{named}@", 1) if named else whole
        files[_mark(whole, details)] = whole
    return files


def refuse_password(uri: str) -> None:
    """Refuse a URI that holds a password. A URI may name a connection: s3://conn_id@bucket/folder."""
    place = uri.partition("://")[2].partition("/")[0]
    if ":" in place.rpartition("@")[0]:
        raise InputError(
            "uri holds a user and a password, which others could read in the trigger's arguments. Put them into a"
            " connection, and name it as conn_id."
        )


def _mark(uri: str, details: Mapping[str, Any]) -> str:
    version = next((details[name] for name in _VERSIONS if details.get(name) is not None), None)
    return hashlib.blake2b(repr((uri, details.get("size"), str(version))).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermark:
    """The memory of one watcher, which is known by its class and all of its arguments."""

    workspace: str | None
    watcher: str

    @classmethod
    def of(cls, workspace: str | None, classpath: str, arguments: Mapping[str, Any]) -> "Watermark":
        """Return the watermark of a trigger. Airflow runs equal triggers as one, so they have one watermark."""
        watcher = digest(canonical([deployment(), classpath, dict(arguments)]))
        return cls(workspace=workspace, watcher=watcher[:16])

    def read(self) -> dict[str, Any]:
        """Return what was written last. Returns an empty mapping if nothing was. It blocks."""
        written = self._registers().watermark(self.watcher)
        return {} if written is None else dict(orjson.loads(written))

    def write(self, memory: Mapping[str, Any]) -> bool:
        """Replace what was written before. It blocks. Returns True."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "watermark.json")
            file.write_bytes(orjson.dumps(memory))
            self._registers().write_watermark(self.watcher, file)
        return True

    def _registers(self) -> "Registers":
        from airflow_batch_llm.hooks.object_storage import open_workspace
        from airflow_batch_llm.stage.records.registers import Registers

        return Registers(workspace=open_workspace(self.workspace))
