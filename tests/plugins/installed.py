"""A plug-in as an installed distribution: its folder and its metadata on the path, as pip would leave them."""

import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).parent


@contextmanager
def installed(name: str, site: Path) -> Iterator[list[str]]:
    """Install the plug-in of this folder in this block. Yields the paths that lead another process to it, too."""
    paths = _install(FOLDER / name, site)
    sys.path[:0] = paths
    try:
        yield paths
    finally:
        for path in paths:
            sys.path.remove(path)


def _install(folder: Path, site: Path) -> list[str]:
    """Write the metadata. What is registered is read from the plug-in's own pyproject.toml."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    return [str(site), str(folder)]
