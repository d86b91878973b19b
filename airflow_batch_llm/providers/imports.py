"""Import an SDK without the modules that this package does not use.

Anthropic's SDK has 2,900 modules and OpenAI's 1,900, nearly all of them types of endpoints that no batch touches. Their
packages import them only to pass their names on. Here such a package imports a name's module when the name is asked
for. A name that the package defines itself runs the package as usual, so that other code in the process finds the whole
SDK. The SDK does not read its logging variable before that.
"""

import ast
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec
from threading import get_ident
from types import ModuleType
from typing import Any


def import_sparingly(name: str) -> ModuleType:
    """Import an SDK, unless it is imported already."""
    if name not in sys.modules and not any(
        isinstance(finder, _Finder) and finder.name == name for finder in sys.meta_path
    ):
        sys.meta_path.insert(0, _Finder(name))
    return import_module(name)


class _Finder(MetaPathFinder):
    """Finds the packages of one SDK. Its other modules are found as usual."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self.name:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or not spec.submodule_search_locations or type(spec.loader) is not SourceFileLoader:
            return None
        spec.loader = _Sparing(spec.loader)
        return spec


class _Sparing(Loader):
    """Loads a package that runs when it is asked for a name of its own."""

    def __init__(self, loader: SourceFileLoader) -> None:
        self._loader = loader

    def exec_module(self, module: ModuleType) -> None:
        package = ast.parse(self._loader.get_data(self._loader.path))
        own = frozenset(_bound_by(package))
        passed_on = {name: place for name, place in _passed_on(package) if name not in own}
        running: set[int] = set()
        has_run = False

        def find(name: str) -> Any:
            nonlocal has_run
            if name in passed_on:
                return vars(module).setdefault(name, _imported(module.__name__, *passed_on[name]))
            if name not in own and find_spec(f"{module.__name__}.{name}") is not None:
                return import_module(f"{module.__name__}.{name}")
            # No lock: a thread that waits for it may hold the lock of a module that the package imports. Running a
            # package twice makes the same names.
            if not has_run and get_ident() not in running:
                running.add(get_ident())
                try:
                    self._loader.exec_module(module)
                finally:
                    running.discard(get_ident())
                has_run = True
            if name in vars(module):
                return vars(module)[name]
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        vars(module)["__getattr__"] = find

    def __getattr__(self, name: str) -> Any:
        """Answer for the source and the resources of the package, as its usual loader does."""
        if name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)


def _passed_on(package: ast.Module) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """Yield the names that a package imports from its own modules, each with the module and its name there."""
    for node in package.body:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            for alias in node.names:
                place = (alias.name, None) if node.module is None else (node.module, alias.name)
                yield alias.asname or alias.name, place


def _bound_by(package: ast.Module) -> Iterator[str]:
    """Yield the names that a package binds in any other way."""
    for node in ast.walk(package):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Import(names=names) | ast.ImportFrom(names=names, level=0 | 2 | 3):
                yield from (alias.asname or alias.name.partition(".")[0] for alias in names)
            case _:
                pass


def _imported(package: str, module: str, name: str | None) -> Any:
    found = import_module(f"{package}.{module}")
    return found if name is None else getattr(found, name)
