# SPDX-License-Identifier: Apache-2.0
"""Lab files: TOML to :class:`LabSpec`. An error names the file, the key, the reason and a remedy.

State: none; called once, before a lab is made. The built-in lab is ``lab.toml`` beside this module;
docs/lab.md documents every key. Each part of a lab file has a module of its own; this one puts them together.
"""

import os
from pathlib import Path

from devmodel.lifecycle.spec import LabSpec
from vfsfuse.labfile.checks import check_lab
from vfsfuse.labfile.faultrules import check_faults, read_faults
from vfsfuse.labfile.functions import read_functions
from vfsfuse.labfile.include import read_with_includes
from vfsfuse.labfile.machine import read_roots
from vfsfuse.labfile.mistakes import LabFileError
from vfsfuse.labfile.models import Models
from vfsfuse.labfile.mount import read_iommu, read_modules, read_top
from vfsfuse.labfile.nodes import read_nodes
from vfsfuse.labfile.parents import read_parents
from vfsfuse.labfile.reading import Reading
from vfsfuse.labfile.schema import LAB
from vfsfuse.labfile.source import STDIN, Source
from vfsfuse.labfile.vgpus import read_vgpus

__all__ = ["BUILT_IN", "LabFileError", "load"]

BUILT_IN = Path(__file__).with_name("lab.toml")
FROM_STDIN = "-"
"""The path by which a command line names standard input as its lab file."""
SCHEMA = Path(__file__).with_name("lab.schema.json")
"""The JSON schema of lab files, which tools/lab_schema.py writes."""


def load(path: str | os.PathLike[str] | None = None) -> LabSpec:
    """Read the lab file at ``path``, as :func:`source_at`. Raises :class:`LabFileError` with all errors."""
    return read(source_at(path))


def source_at(path: str | os.PathLike[str] | None = None) -> Source:
    """The lab file at ``path``, "-" for standard input, or the built-in one, with what it includes. Raises
    :class:`LabFileError`."""
    if path is None:
        return read_with_includes(BUILT_IN)
    return read_with_includes(STDIN if path == FROM_STDIN else Path(path))


def read(source: Source, models: Models | None = None, base: Path = Path()) -> LabSpec:
    """Read what a lab file says, whose path begins at ``base``. ``models`` gets the models of its own.

    Raises :class:`LabFileError` with all errors.
    """
    reading = Reading(source, models, base)
    spec = reading.attempt(_lab, reading)
    reading.mistakes.check()
    assert spec is not None  # a part that was left has noted why
    return spec


def _lab(reading: Reading) -> LabSpec:
    top, _ = reading.partial(reading.source.content, LAB, ())
    settings = read_top(reading, top)
    iommu, units = read_iommu(reading, top.get("iommu", {}))
    nodes = read_nodes(reading, top.get("nodes", {}))
    roots = read_roots(reading, top.get("roots", {}))
    functions = read_functions(reading, top.get("functions", {}))
    parents = read_parents(reading, top.get("parents", {}))
    modules = read_modules(reading, top.get("modules", {}))
    vgpus = read_vgpus(reading, top.get("vgpus", []), parents, top.get("parents", {}))
    faults = read_faults(reading, top.get("faults", []))
    reading.mistakes.check()
    spec = LabSpec(
        parents,
        iommu=iommu,
        functions=functions,
        roots=roots,
        nodes=nodes,
        units=units,
        modules=modules,
        vgpus=vgpus,
        faults=faults,
        source=str(reading.source.path),
        **settings,
    )
    check_lab(reading, spec)
    check_faults(reading, spec)
    return spec
