# SPDX-License-Identifier: Apache-2.0
"""The Python modules that models of a lab's own consist of: model files, the modules beside them that they
import, and installed packages with models. They can be imported again while the lab runs.

State: :data:`FINDER` is in sys.meta_path from the first model file on. Any thread imports. Source: the import
system (docs.python.org/3/reference/import.html), section "Finders and loaders".
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType

MODULE_PREFIX = "vfsfuse_model_"
"""Names of modules that are made from the model files of a lab begin so."""
_PROJECT = frozenset({"vfsfuse", "devmodel", "ioctl_shim"})


class FreshLoader(SourceFileLoader):
    """Compiles what the file has now. Compiled code in __pycache__ would be taken for that of a file that was
    written again within the same second."""

    def get_code(self, fullname: str) -> object:  # type: ignore[override] # typeshed: CodeType | None
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class OwnFinder(MetaPathFinder):
    """Finds the modules beside model files, as Python does for a script, but none of the standard library's
    names. ``folders`` has those of the model files; ``packages`` the names of packages that have models."""

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.packages: set[str] = set()
        self.beside: dict[str, str] = {}
        """The modules that were found beside model files, by name, with the folder."""

    def add_folder(self, folder: Path) -> None:
        """Find modules in this folder from now on."""
        if str(folder) not in self.folders:
            self.folders.append(str(folder))
        self._enter()

    def add_package(self, name: str) -> None:
        """The package has models: its code is compiled from its source."""
        self.packages.add(name)
        self._enter()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        root = fullname.partition(".")[0]
        if root in _PROJECT or root in sys.stdlib_module_names:
            return None
        if root in self.packages:
            return _fresh(self._elsewhere(fullname, path, target))
        if path is not None and root not in self.beside:
            return None
        spec = PathFinder.find_spec(fullname, self.folders if path is None else path, target)
        if spec is None or spec.origin is None:
            return None
        if path is None:
            place = Path(spec.origin)
            self.beside[root] = str(place.parent.parent if spec.submodule_search_locations else place.parent)
        return _fresh(spec)

    def is_own(self, module: str) -> bool:
        """Whether a module, by its name in sys.modules, belongs to a model."""
        root = module.partition(".")[0]
        return module.startswith(MODULE_PREFIX) or root in self.beside or root in self.packages

    def _elsewhere(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        found = (each.find_spec(fullname, path, target) for each in sys.meta_path if each is not self)
        return next((spec for spec in found if spec is not None), None)

    def _enter(self) -> None:
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)


FINDER = OwnFinder()
"""Of this process, which serves one lab."""


def _fresh(spec: ModuleSpec | None) -> ModuleSpec | None:
    if spec is not None and type(spec.loader) is SourceFileLoader:
        spec.loader = FreshLoader(spec.loader.name, spec.loader.path)
    return spec


class Again:
    """Modules that are imported again. Until :meth:`keep` is called, :meth:`undo` brings the old ones back.
    Of the two only the first call has an effect. Any thread."""

    def __init__(self, folders: Iterable[str], packages: Iterable[str]) -> None:
        """Drop the modules that were found in ``folders``, and those of ``packages``."""
        importlib.invalidate_caches()
        here, roots = set(folders), set(packages)
        roots |= {name for name, folder in FINDER.beside.items() if folder in here}
        self._before = {name: each for name, each in tuple(sys.modules.items()) if FINDER.is_own(name)}
        self._lock, self._over = threading.Lock(), False
        for name in self._before:
            if name.partition(".")[0] in roots:
                sys.modules.pop(name, None)

    def keep(self) -> bool:
        """Keep the new modules. Returns whether they were not undone before."""
        return self._end(lambda: None)

    def undo(self) -> bool:
        """Bring the old modules back. Returns whether the new ones were not kept before."""
        return self._end(self._restore)

    def _end(self, how: Callable[[], None]) -> bool:
        with self._lock:
            over, self._over = self._over, True
            if not over:
                how()
            self._before = {}
            return not over

    def _restore(self) -> None:
        for name in [name for name in tuple(sys.modules) if FINDER.is_own(name)]:
            sys.modules.pop(name, None)
        sys.modules.update(self._before)


def files_of(folders: Iterable[str], packages: Iterable[str]) -> set[str]:
    """The files of the modules that were found in ``folders``, and of those of ``packages``."""
    here, roots = set(folders), set(packages)
    roots |= {name for name, folder in FINDER.beside.items() if folder in here}
    found = (
        getattr(module, "__file__", None)
        for name, module in tuple(sys.modules.items())
        if name.partition(".")[0] in roots
    )
    return {str(file) for file in found if file is not None}
