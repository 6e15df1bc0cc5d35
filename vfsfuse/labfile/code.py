# SPDX-License-Identifier: Apache-2.0
"""The models of a mounted lab's own, which can be read again: their files and packages, and the lab file as
it was when the lab was mounted.

State: a :class:`LabCode` belongs to the thread of the lab. What it reads, other threads may read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devmodel.lifecycle.spec import LabSpec
from vfsfuse.labfile.models import Models, is_built_in
from vfsfuse.labfile.modules import Again, files_of
from vfsfuse.labfile.reader import read, source_at
from vfsfuse.labfile.source import Source


@dataclass(slots=True)
class LabCode:
    """The code of one lab. ``source`` is None for a lab without models of its own: a large lab file takes
    memory. Relative paths begin at ``base``."""

    source: Source | None
    base: Path
    models: Models

    def chosen(self, names: Sequence[str]) -> frozenset[str]:
        """The models with these names, or all without names. Raises ValueError for names of no such model."""
        known = self.models.all
        for name in names:
            if name not in known:
                why = (
                    "is a model of vfsfuse's own, whose code does not change"
                    if is_built_in(name)
                    else f"is no model of this lab's own (it has {', '.join(known) or 'none'})"
                )
                raise ValueError(f"{name!r} {why}")
        if not known:
            raise ValueError("the lab has no models of its own (docs/models.md says how it gets some)")
        return frozenset(names or known)

    def drop(self, names: frozenset[str]) -> Again:
        """Have the modules of these models be imported again."""
        return Again(*self._places(names))

    def read(self, names: frozenset[str]) -> tuple[LabSpec, Models]:
        """Run the code of these models again, and read the lab file with them. Any thread. Raises
        :class:`LabFileError`."""
        kept = {name: model for name, model in self.models.all.items() if name not in names}
        models = Models(kept)
        assert self.source is not None  # there is a name
        return read(self.source, models, self.base), models

    @property
    def files(self) -> set[str]:
        """The files that the models were read from. Any thread."""
        names = frozenset(self.models.all)
        return files_of(*self._places(names)) | {str(self.models.files[each]) for each in self.models.own}

    @property
    def folders(self) -> set[str]:
        """The folders of model files. Any thread."""
        return {str(path.parent) for path in self.models.files.values()}

    def _places(self, names: frozenset[str]) -> tuple[set[str], set[str]]:
        """Where modules of these models are: folders, and packages."""
        files = {str(path.parent) for name, path in self.models.files.items() if name in names}
        return files, {package for name, package in self.models.packages.items() if name in names}


def load_with_code(path: str | os.PathLike[str] | None = None) -> tuple[LabSpec, LabCode]:
    """Read the lab file at ``path``, as :func:`source_at`. Raises :class:`LabFileError` with all errors."""
    source, models = source_at(path), Models()
    spec = read(source, models)
    return spec, LabCode(source if models.all else None, Path.cwd(), models)
