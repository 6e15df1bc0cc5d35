# SPDX-License-Identifier: Apache-2.0
"""The sources of a lab file's device models: this project, installed packages, and files that it names.

State: a :class:`Models` belongs to one reading of a lab file. Every error is a ValueError whose text is for
a person. Source: the entry points specification (packaging.python.org), group ``vfsfuse.models``.
"""

import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import TypeGuard

from devmodel.device.attribute import check_attributes
from devmodel.device.pci import PciDevice
from devmodel.models.registry import MODELS, PHYSICAL
from vfsfuse.labfile.modules import FINDER, MODULE_PREFIX, FreshLoader
from vfsfuse.labfile.reasons import reason

GROUP = "vfsfuse.models"
Model = type[PciDevice]

_PLACE = re.compile(r"(?P<file>[^:]+\.py):(?P<name>[A-Za-z_][A-Za-z0-9_]*)", re.ASCII)


class Models:
    """The models that a lab file may name. ``own`` are those of the lab file, ``installed`` those of packages
    that it uses. ``files`` has the files of the first, ``packages`` the packages of the others, by the names
    of the models."""

    def __init__(self, kept: Mapping[str, Model] = MappingProxyType({})) -> None:
        """``kept`` are models that are not loaded again."""
        self.own: dict[str, Model] = {}
        self.installed: dict[str, Model] = {}
        self.files: dict[str, Path] = {}
        self.packages: dict[str, str] = {}
        self._kept = kept

    def add(self, name: str, place: str, folder: Path) -> None:
        """Add the class at ``place``, "file.py:Class", as a model of this lab file. Runs the file. A relative
        path begins at ``folder``."""
        if is_built_in(name):
            raise ValueError(f"{name!r} is a model of vfsfuse's own (choose another name)")
        found = _PLACE.fullmatch(place)
        if found is None:
            raise ValueError(f'{place!r} is not a place (write "file.py:Class")')
        path = folder / found["file"]
        self.files[name] = path.absolute()
        kept = self._kept.get(name)
        self.own[name] = _load(path, found["name"]) if kept is None else kept

    def find(self, name: str, built_in: Mapping[str, Model]) -> Model:
        """The model ``name``. The search order is: built-in models, this lab file, installed packages."""
        found = built_in.get(name) or self.own.get(name) or self.installed.get(name)
        if found is not None:
            return found
        installed = {entry.name: entry for entry in entry_points(group=GROUP)}
        if name in installed:
            entry, kept = installed[name], self._kept.get(name)
            self.packages[name] = entry.module.partition(".")[0]
            FINDER.add_package(self.packages[name])
            self.installed[name] = _installed(entry) if kept is None else kept
            return self.installed[name]
        there_is = ", ".join([*built_in, *self.own, *installed])
        raise ValueError(f"there is no model {name!r} (there is {there_is})")

    @property
    def all(self) -> Mapping[str, Model]:
        """All that can be loaded again."""
        return {**self.installed, **self.own}


def is_built_in(name: str) -> bool:
    """Whether a model is vfsfuse's own."""
    return name in MODELS or name in PHYSICAL


def _installed(entry: EntryPoint) -> Model:
    try:
        found = entry.load()
    except BaseException as error:  # also SystemExit: the code is not ours
        raise ValueError(f"{entry.value} cannot be loaded: {reason(error)} (mend that package)") from error
    return _checked(found, entry.value)


def _load(path: Path, name: str) -> Model:
    module_name = f"{MODULE_PREFIX}{path.stem}"
    FINDER.add_folder(path.absolute().parent)
    loader = FreshLoader(module_name, str(path))
    spec = importlib.util.spec_from_file_location(module_name, path, loader=loader)
    if spec is None or spec.loader is None or not os.path.isfile(path):
        raise ValueError(f"there is no file {path} (paths begin at the lab file)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look there
    try:
        spec.loader.exec_module(module)
        found = getattr(module, name, None)  # a module may have code for that, too
    except BaseException as error:  # also SystemExit: the code is not ours
        sys.modules.pop(module_name, None)
        raise ValueError(f"{path} cannot be loaded: {reason(error)} (mend it)") from error
    if found is None:
        raise ValueError(f"{path} has no class {name} (check the name)")
    return _checked(found, f"{path}:{name}")


def _checked(found: object, place: str) -> Model:
    if isinstance(found, type) and PciDevice in type.mro(found) and _has_identity(found, place):
        _check_attributes(found, place)
        return found
    raise ValueError(f"{place} is not a device model (derive it from devmodel.device.pci.PciDevice)")


def _has_identity(found: type, place: str) -> TypeGuard[Model]:
    try:
        return hasattr(found, "identity")
    except BaseException as error:  # a metaclass has code for that
        raise ValueError(f"{place} cannot be used: {reason(error)} (mend it)") from error


def _check_attributes(found: Model, place: str) -> None:
    try:
        attributes = tuple(found.ATTRIBUTES)
    except BaseException as error:  # a metaclass has code for that
        raise ValueError(f"{place}: its ATTRIBUTES cannot be read: {reason(error)} (mend it)") from error
    try:
        check_attributes(attributes)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
