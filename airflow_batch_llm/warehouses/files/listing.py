"""List the files that a URI names."""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

#: Stores that list a tree of folders at once. fsspec goes through others folder by folder, and leaves out a folder that
#: cannot be listed.
_AT_ONCE = frozenset({"gs", "gcs", "abfs", "abfss", "az"})

#: These list a whole tree at once, too, and the names in a folder that begin alike.
_AT_ONCE_OR_BY_BEGINNING = frozenset({"s3", "s3a"})

_MAGIC = re.compile(r"[*?\[]")


def is_pattern(path: str) -> bool:
    """Return whether a path may name several files."""
    return _MAGIC.search(path) is not None


def matching(system: Any, path: str) -> dict[str, Mapping[str, Any]]:
    """Return the details of the files that a path names, by their paths. A path that is not a pattern may name a folder.

    If there is a file of exactly this name, that is what is named: `report[1].csv` is itself, and not `report1.csv`.
    A folder that cannot be listed raises, since its files would be missing without a word.
    """
    system.invalidate_cache()  # a listing kept from before may not know the newest file
    magic = _MAGIC.search(path)
    if magic is None:
        found: dict[str, Mapping[str, Any]] = system.glob(path, detail=True)
        return found
    if system.isfile(path):
        return {path: system.info(path)}
    root = path[: path.rfind("/", 0, magic.start()) + 1]
    depth = math.inf if "**" in path else path.count("/", len(root)) + 1
    protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
    begins = depth == 1 and magic.start() > len(root)
    if protocols & _AT_ONCE or ((begins or depth == math.inf) and protocols & _AT_ONCE_OR_BY_BEGINNING):
        found = system.glob(path, detail=True)
    else:
        found = _walked(system, root, depth, path)
    return {name: details for name, details in found.items() if details["type"] != "directory"}


def _walked(system: Any, root: str, depth: float, pattern: str) -> dict[str, Mapping[str, Any]]:
    from fsspec.utils import glob_translate  # Dags import this module, and few of them name files

    wanted = re.compile(glob_translate(pattern))
    below = _below(system, root.rstrip("/") or root, depth)
    return {name: _followed(system, name, details) for name, details in below if wanted.match(name)}


def _below(system: Any, folder: str, depth: float) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield what is in a folder, and in its folders. Nothing is in one that is not there, or not any more."""
    try:
        listed = system.ls(folder, detail=True)
    except FileNotFoundError:
        return
    for details in listed:
        name = details["name"].rstrip("/")
        if name == folder:  # a store's entry for the folder itself
            continue
        yield name, details
        if details["type"] == "directory" and depth > 1:
            yield from _below(system, name, depth - 1)


def _followed(system: Any, name: str, details: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the details of what a link leads to, if it leads anywhere."""
    if details.get("islink"):
        with suppress(FileNotFoundError):
            found: Mapping[str, Any] = system.info(name)
            return found
    return details
