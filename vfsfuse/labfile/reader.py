# SPDX-License-Identifier: Apache-2.0
"""Lab files: TOML to :class:`LabSpec`. An error names the file, the key, the reason and a remedy.

State: none; called once, before a lab is made. The built-in lab is ``lab.toml`` beside this module;
docs/lab.md documents every key. Each part of a lab file has a module of its own; this one puts them together.
"""

import os
from pathlib import Path

from devmodel.lifecycle.bridge import place_functions
from devmodel.lifecycle.spec import IommuSpec, LabSpec, ParentSpec
from vfsfuse.labfile.faults import LabFileError
from vfsfuse.labfile.mount import read_iommu, read_top
from vfsfuse.labfile.nodes import check_near, read_nodes
from vfsfuse.labfile.parents import read_parents
from vfsfuse.labfile.reading import Reading
from vfsfuse.labfile.schema import LAB
from vfsfuse.labfile.source import read_source

__all__ = ["BUILT_IN", "LabFileError", "load"]

BUILT_IN = Path(__file__).with_name("lab.toml")


def load(path: str | os.PathLike[str] | None = None) -> LabSpec:
    """Read the lab file at ``path``, or the built-in one. Raises :class:`LabFileError` with all errors."""
    reading = Reading(read_source(BUILT_IN if path is None else Path(path)))
    spec = reading.attempt(_lab, reading)
    reading.faults.check()
    assert spec is not None  # a part that was left has noted why
    return spec


def _lab(reading: Reading) -> LabSpec:
    top, _ = reading.partial(reading.source.content, LAB, ())
    settings = read_top(reading, top)
    iommu = IommuSpec(**read_iommu(reading, top.get("iommu", {})))
    nodes = read_nodes(reading, top.get("nodes", {}))
    parents = read_parents(reading, top.get("parents", {}))
    near = ((("parents", parent.name, "numa_node"), parent.numa_node) for parent in parents)
    check_near(reading, nodes, near)
    reading.faults.check()
    _check_places(reading, parents)
    return LabSpec(parents=parents, iommu=iommu, nodes=nodes, **settings)


def _check_places(reading: Reading, parents: tuple[ParentSpec, ...]) -> None:
    """Whether all buses have room. This needs all parents."""
    try:
        place_functions(tuple(filter(None, (parent.function for parent in parents))))
    except ValueError as error:
        reading.fail(("parents",), f"{error} (give fewer, or another address)")
