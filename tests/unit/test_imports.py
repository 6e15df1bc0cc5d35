# SPDX-License-Identifier: Apache-2.0
"""The picture of the packages: which folder may use which.  Every import statement is compared with it.

A room is a folder of `devmodel` or `vfsfuse`, a module at their top level, or the whole of `ioctl_shim`.
PICTURE lists the rooms from bottom to top, and for each what it may import.  Imports within a function and
under TYPE_CHECKING count as well.  Not read: the modules of the subcommands, which vfsfuse.cli names as text
and loads on demand.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.commands import ROOT

PACKAGES = ("ioctl_shim", "devmodel", "vfsfuse")

PICTURE: Mapping[str, str] = {
    "ioctl_shim": "",
    # the emulation, from bottom to top
    "devmodel": "",
    "devmodel.calls": "",
    "devmodel.client": "",
    "devmodel.ida": "",
    "devmodel.memo": "",
    "devmodel.looks": "",
    "devmodel.uuids": "",
    "devmodel.region": "devmodel: calls",
    "devmodel.irq": "devmodel: calls",
    "devmodel.pci": "devmodel: calls memo region",
    "devmodel.topology": "devmodel: pci",
    "devmodel.iommu": "devmodel: calls client",
    "devmodel.iommufd": "devmodel: client ida iommu",
    "devmodel.device": "devmodel: calls iommu irq memo pci region",
    "devmodel.vfio": "devmodel: calls client device iommu iommufd irq looks pci region uuids",
    "devmodel.lifecycle": "devmodel: calls device ida iommu iommufd memo pci topology uuids vfio",
    "devmodel.gpu": "devmodel: calls device iommu region",
    "devmodel.models": "devmodel: calls device gpu pci region",
    "devmodel.sdk": "devmodel: device gpu iommu irq models pci region",
    # the mount, from bottom to top
    "vfsfuse": "vfsfuse: api",
    "vfsfuse.asking": "",
    "vfsfuse.mounts": "",
    "vfsfuse.caughtstderr": "",
    "vfsfuse.printable": "",
    "vfsfuse.requirements": "ioctl_shim | vfsfuse: asking",
    "vfsfuse.viewers": "vfsfuse: mounts",
    "vfsfuse.sticky": "",
    "vfsfuse.toml": "",
    "vfsfuse.ownfolder": "",
    "vfsfuse.scheduling": "",
    "vfsfuse.failures": "devmodel: device.base | vfsfuse: printable",
    "vfsfuse.capture": "devmodel: pci | vfsfuse: asking toml",
    "vfsfuse.run": "ioctl_shim | vfsfuse: asking mounts ownfolder printable requirements sticky viewers",
    "vfsfuse.ending": "vfsfuse: run.syscalls",
    "vfsfuse.unmounted": "ioctl_shim | vfsfuse: viewers",
    "vfsfuse.monitor": "vfsfuse: asking",
    "vfsfuse.trace": "ioctl_shim | vfsfuse: asking",
    "vfsfuse.recording": "ioctl_shim | devmodel: pci region "
    "| vfsfuse: asking mounts requirements run sticky trace",
    "vfsfuse.kernfs": "ioctl_shim "
    "| devmodel: calls device.tasks lifecycle.removal lifecycle.uevents looks "
    "| vfsfuse: ownfolder",
    "vfsfuse.vfio": "ioctl_shim "
    "| devmodel: calls client device iommu iommufd irq lifecycle pci region uuids vfio",
    "vfsfuse.sysfs": "ioctl_shim "
    "| devmodel: calls device iommu lifecycle memo pci region uuids vfio "
    "| vfsfuse: kernfs vfio",
    "vfsfuse.observe": "ioctl_shim "
    "| devmodel: calls device iommu.dmaspace pci region "
    "| vfsfuse: failures kernfs printable trace",
    "vfsfuse.faults": "ioctl_shim | devmodel: calls lifecycle pci region | vfsfuse: kernfs observe printable",
    "vfsfuse.replay": "devmodel: device iommu irq models pci region | vfsfuse: recording toml",
    "vfsfuse.views": "ioctl_shim "
    "| devmodel: calls device iommu.api irq lifecycle pci region vfio "
    "| vfsfuse: kernfs observe replay sysfs vfio",
    "vfsfuse.labfile": "devmodel: device lifecycle models pci topology uuids "
    "| vfsfuse: faults.inlab faults.keys faults.rule replay sysfs.cpus sysfs.kstrtox",
    "vfsfuse.reload": "ioctl_shim "
    "| devmodel: calls device.tasks lifecycle memo | vfsfuse: kernfs labfile views",
    "vfsfuse.server": "ioctl_shim | devmodel: calls lifecycle "
    "| vfsfuse: caughtstderr ending faults kernfs labfile.code mounts ownfolder reload requirements "
    "scheduling unmounted views",
    "vfsfuse.sweep": "vfsfuse: asking faults.plausible printable run trace",
    "vfsfuse.cli": "devmodel: lifecycle.spec pci.address "
    "| vfsfuse: asking capture failures faults kernfs.xattr labfile monitor mounts ownfolder printable "
    "recording replay requirements run server sticky sweep trace viewers views.models",
    "vfsfuse.api": "vfsfuse: kernfs.xattr recording sticky toml trace",
    "vfsfuse.testing": "devmodel: calls device gpu iommu irq lifecycle models pci region sdk vfio "
    "| vfsfuse: api faults sysfs.screen trace",
    "vfsfuse.__main__": "vfsfuse: cli",
}
"""By room: the rooms that it may import, or single modules of one."""


def _named(row: str) -> Iterator[str]:
    """The full names in a row of the picture."""
    for part in filter(None, map(str.strip, row.split("|"))):
        package, colon, names = part.partition(":")
        yield from (f"{package}.{name}" for name in names.split()) if colon else (package,)


MAY_USE: Mapping[str, tuple[str, ...]] = {room: tuple(_named(row)) for room, row in PICTURE.items()}

LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "ioctl_shim": ("cffi", "pyfuse3"),
    "devmodel": ("trio",),
    "vfsfuse": ("PIL", "pytest", "rich", "trio"),
}
"""By package: what it may import besides the standard library."""

FUSE_AND_ABI = ("cffi", "ioctl_shim", "pyfuse3", "vfsfuse")
"""What devmodel does without: it emulates hardware and the kernel, whatever asks it."""

NOT_INSTALLED = ("bench", "examples", "setup", "tests", "tools")
"""What a checkout has and an installation has not."""


class Import(NamedTuple):
    """`importer` has an import of the module `imported` at `place`, which is path:line."""

    place: str
    importer: str
    imported: str

    def __str__(self) -> str:
        return f"{self.place}: {self.importer} imports {self.imported}"


def room_of(module: str) -> str:
    """The room that a module of ours is in."""
    if module in MAY_USE:
        return module
    package, *inside = module.split(".")
    return package if package == "ioctl_shim" else ".".join([package, *inside[:1]])


def module_of(path: Path) -> str:
    """The name of the module in the file at `path`, which is relative to the checkout."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def sources() -> Mapping[str, Path]:
    """The files of the packages by the names of their modules."""
    found = (path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py*"))
    return {module_of(path): path for path in found if path.suffix in (".py", ".pyi")}


def imports_of(path: Path, text: str, modules: Collection[str]) -> Iterator[Import]:
    """Every import in the source `text` of the file at `path`; `modules` are all that the packages have."""
    importer = module_of(path)
    above = importer.split(".") if path.stem == "__init__" else importer.split(".")[:-1]
    for node in ast.walk(ast.parse(text)):
        names: Sequence[str] = ()
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = above[: len(above) + 1 - node.level] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            inside = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in modules else base for name in inside]
        for name in dict.fromkeys(names):
            yield Import(f"{path}:{getattr(node, 'lineno', 0)}", importer, name)


def broken_rule(found: Import) -> str | None:
    """The rule that an import breaks, as the end of a sentence; None for one that is in the picture."""
    package, top = found.importer.split(".")[0], found.imported.split(".")[0]
    if top in NOT_INSTALLED:
        return f"{package} is installed without {top}"
    if package == "devmodel" and top in FUSE_AND_ABI:
        return "devmodel knows neither FUSE nor the ABI"
    if package == "ioctl_shim" and top in PACKAGES and top != package:
        return "ioctl_shim stands alone"
    if top not in PACKAGES:
        known = top in sys.stdlib_module_names or top in LIBRARIES[package]
        return None if known else f"the libraries of {package} are {', '.join(LIBRARIES[package])}"
    room, target = room_of(found.importer), room_of(found.imported)
    if room not in MAY_USE:
        return f"{room} is not in the picture (PICTURE in tests/unit/test_imports.py)"
    if target == room or target in MAY_USE[room] or found.imported in MAY_USE[room]:
        return None
    return f"{room} may use {', '.join(MAY_USE[room]) or 'no other part of the packages'}"


def circles(uses: Mapping[str, Collection[str]]) -> Iterator[list[str]]:
    """The circles of a graph, each as the nodes in the order of use, with the first again at the end.  One
    edge of each is taken out before the next is looked for."""
    left = {node: set(targets) for node, targets in uses.items()}
    while True:
        try:
            TopologicalSorter(left).prepare()
        except CycleError as error:
            circle: list[str] = error.args[1][::-1]  # graphlib lists who is used before who uses
            yield circle
            left[circle[0]].remove(circle[1])
        else:
            return


def findings(imports: Sequence[Import]) -> Iterator[str]:
    """A sentence for each import that breaks a rule."""
    for found in imports:
        rule = broken_rule(found)
        if rule is not None:
            yield f"{found}: {rule}."
    uses: dict[str, dict[str, Import]] = {}
    for found in imports:
        uses.setdefault(found.importer, {}).setdefault(found.imported, found)
    for circle in circles({module: set(targets) - {module} for module, targets in uses.items()}):
        around = " -> ".join(circle)
        yield f"{uses[circle[0]][circle[1]]}: there is no circle of modules, and {around} is one."


def test_every_import_is_in_the_picture() -> None:
    files = sources()
    assert {"ioctl_shim.lane", "devmodel.pci.config", "vfsfuse.cli"} <= files.keys()
    imports = [
        found
        for path in files.values()
        for found in imports_of(path, (ROOT / path).read_text(encoding="utf-8"), files)
    ]
    found = list(findings(imports))
    assert not found, "\n".join(["", *found])


def test_the_picture_has_no_circle_and_no_room_that_is_not_there() -> None:
    files = sources()
    rooms = {room: [room_of(target) for target in targets] for room, targets in MAY_USE.items()}
    assert list(circles(rooms)) == []
    named = {*MAY_USE, *(target for targets in MAY_USE.values() for target in targets)}
    assert sorted(named - files.keys()) == []
    assert sorted({room_of(module) for module in files} - MAY_USE.keys()) == []


# ---- each rule finds an import that breaks it ----

KERNFS, MODULES = (
    Path("vfsfuse/kernfs/tree.py"),
    ("vfsfuse.kernfs.notify", "vfsfuse.vfio.port", "vfsfuse.vfio"),
)


def made_up(path: Path | str, text: str) -> list[str]:
    """What is found in a file with this text."""
    return list(findings(list(imports_of(Path(path), text, MODULES))))


@pytest.mark.parametrize(
    ("path", "text", "rule"),
    [
        ("devmodel/pci/config.py", "import pyfuse3", "devmodel knows neither FUSE nor the ABI."),
        (
            "devmodel/pci/config.py",
            "from ioctl_shim.abi import ROWS",
            "devmodel knows neither FUSE nor the ABI.",
        ),
        ("devmodel/client.py", "import vfsfuse.server", "devmodel knows neither FUSE nor the ABI."),
        ("ioctl_shim/lane.py", "from devmodel.client import Client", "ioctl_shim stands alone."),
        ("ioctl_shim/lane.py", "import vfsfuse", "ioctl_shim stands alone."),
        ("vfsfuse/server.py", "from tools.uapi import device", "vfsfuse is installed without tools."),
        ("devmodel/sdk.py", "import tests.unit.fakes", "devmodel is installed without tests."),
        ("devmodel/sdk.py", "import numpy", "the libraries of devmodel are trio."),
        (
            "vfsfuse/server.py",
            "from pyfuse3 import main",
            "the libraries of vfsfuse are PIL, pytest, rich, trio.",
        ),
        ("devmodel/ida.py", "import devmodel.client", "devmodel.ida may use no other part of the packages."),
        ("vfsfuse/attic/a.py", "import vfsfuse.run", "vfsfuse.attic is not in the picture (PICTURE in "),
        (
            KERNFS,
            "from vfsfuse.vfio.port import Port",
            "vfsfuse.kernfs may use ioctl_shim, devmodel.calls, ",
        ),
        (KERNFS, "from devmodel.vfio.group import Group", "vfsfuse.kernfs may use ioctl_shim, "),
        (KERNFS, "from devmodel.device.base import Device", "vfsfuse.kernfs may use ioctl_shim, "),
        ("vfsfuse/run/command.py", "from vfsfuse.kernfs import xattr", "vfsfuse.run may use ioctl_shim, "),
        ("vfsfuse/cli/mount.py", "from vfsfuse.kernfs.tree import Tree", "vfsfuse.cli may use "),
    ],
)
def test_an_import_that_breaks_a_rule_is_found(path: Path | str, text: str, rule: str) -> None:
    (sentence,) = made_up(path, text)
    start = f"{path}:1: {module_of(Path(path))} imports {text.split()[1]}"
    assert sentence.startswith(start) and f": {rule}" in sentence


@pytest.mark.parametrize(
    ("text", "place", "imported"),
    [
        ("def f():\n    from vfsfuse.vfio.port import Port\n", 2, "vfsfuse.vfio.port"),
        ("if TYPE_CHECKING:\n    from vfsfuse.vfio.port import Port\n", 2, "vfsfuse.vfio.port"),
        ("import errno, vfsfuse.vfio.port\n", 1, "vfsfuse.vfio.port"),
        ("from vfsfuse.vfio import port\n", 1, "vfsfuse.vfio.port"),
        ("from vfsfuse.vfio import Port\n", 1, "vfsfuse.vfio"),
        ("\n\nfrom ..vfio import port\n", 3, "vfsfuse.vfio.port"),
        ("from ..vfio.port import Port\n", 1, "vfsfuse.vfio.port"),
    ],
)
def test_an_import_is_found_however_it_is_written(text: str, place: int, imported: str) -> None:
    (sentence,) = made_up(KERNFS, text)
    assert sentence.startswith(
        f"{KERNFS}:{place}: vfsfuse.kernfs.tree imports {imported}: vfsfuse.kernfs may "
    )


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (KERNFS, "import errno\nimport trio\nfrom ioctl_shim.lane import Lane\nfrom . import bundle\n"),
        (KERNFS, "from devmodel.device.tasks import Task\nfrom vfsfuse.kernfs.waiting import StoreFile\n"),
        ("vfsfuse/vfio/device.py", "from devmodel.vfio.devicefile import DeviceFile\n"),
        ("vfsfuse/cli/mountpoint.py", "from vfsfuse.kernfs.xattr import XATTR_PID\n"),
        ("ioctl_shim/__init__.py", "from ioctl_shim import _native\nfrom . import _native\n"),
    ],
)
def test_an_import_in_the_picture_is_none_to_report(path: Path | str, text: str) -> None:
    assert made_up(path, text) == []


def test_a_circle_of_modules_is_found_within_a_folder_too() -> None:
    texts = {
        "a": "from vfsfuse.kernfs import b",
        "b": "\nimport vfsfuse.kernfs.c",
        "c": "from . import a",
        "d": "",
    }
    paths = {name: Path(f"vfsfuse/kernfs/{name}.py") for name in texts}
    modules = [module_of(path) for path in paths.values()]
    (sentence,) = findings([each for name in texts for each in imports_of(paths[name], texts[name], modules)])
    start, _, circle = sentence.removesuffix(" is one.").partition(": there is no circle of modules, and ")
    around = circle.split(" -> ")
    assert around[0] == around[-1] and sorted(around[1:]) == modules[:3]
    assert start.endswith(f": {around[0]} imports {around[1]}")
    assert all(after == modules[(modules.index(before) + 1) % 3] for before, after in pairwise(around))


def test_two_circles_are_two_findings() -> None:
    assert len(list(circles({"a": ["b"], "b": ["a"], "c": ["d", "a"], "d": ["c"]}))) == 2
    assert list(circles({"a": ["b", "c"], "b": ["c"], "c": []})) == []
