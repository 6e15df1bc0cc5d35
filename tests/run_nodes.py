# SPDX-License-Identifier: Apache-2.0
"""Nodes of a lab as a program of `vfsfuse run` sees them, and what clients/stat_ways.c says of them."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.commands import ROOT, run, vfsfuse
from tests.labs import MountedLab, Vgpu

OVERFLOW = Path("/proc/sys/kernel/overflowuid").read_text().strip()
"""Of who has no number in a user namespace."""
REGULAR, CHARACTER = f"{stat.S_IFREG:o}", f"{stat.S_IFCHR:o}"


class Nodes(NamedTuple):
    """Two vGPUs of a lab, one for its own file, the other for its group."""

    lab: MountedLab
    alone: Vgpu
    grouped: Vgpu

    @property
    def numbers(self) -> Mapping[str, str]:
        """The `dev` of each node that sysfs shows, by its path."""
        root = self.lab.path / "sys"
        shown = {
            "/dev/vfio/vfio": root / "class/misc/vfio",
            "/dev/iommu": root / "class/misc/iommu",
            f"/dev/vfio/{self.grouped.group}": root / "class/vfio" / self.grouped.group,
            f"/dev/vfio/devices/{self.alone.vfio}": root / "class/vfio-dev" / self.alone.vfio,
        }
        return {path: (folder / "dev").read_text().strip() for path, folder in shown.items()}

    def run(self, *command: str | Path, options: tuple[str, ...] = ()) -> str:
        """What a program says that ends well."""
        done = vfsfuse("run", *options, "--mount", self.lab.path, "--", *command)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def python(self, script: str, *arguments: str, options: tuple[str, ...] = ()) -> None:
        """A script that has to end well."""
        assert self.run(sys.executable, "-c", script, *arguments, options=options) == ""


@contextlib.contextmanager
def two_vgpus(lab: MountedLab) -> Iterator[Nodes]:
    """Nodes of a lab, with two vGPUs that are made for it."""
    with lab.create() as alone, lab.create() as grouped:
        yield Nodes(lab, alone, grouped)


class Said(NamedTuple):
    """What the C client got, asking in one way: an errno's name or "OK", and the members."""

    errno: str
    members: dict[str, str]

    @property
    def inside(self) -> dict[str, str]:
        """The members as they are under `run`: an ordinary user is 0 there, and others have no number."""
        if not os.geteuid():
            return self.members
        own = {"uid": str(os.geteuid()), "gid": str(os.getegid())}
        return {
            key: ("0" if value == own[key] else OVERFLOW) if key in own else value
            for key, value in self.members.items()
        }


def ways(output: str) -> dict[tuple[str, str], Said]:
    """What the C client has said, by the file and the way in which it asked."""
    found = {}
    for line in output.splitlines():
        file, way, errno, *members = line.split()
        found[file, way] = Said(errno, dict(member.split("=") for member in members))
    return found


def outside(client: Path, *paths: str) -> dict[tuple[str, str], Said]:
    """What it says outside of any run."""
    done = run(["env", "-C", ROOT, client, *paths])
    assert (done.returncode, done.stderr) == (0, "")
    return ways(done.stdout)


def others(nodes: Nodes, folder: Path) -> list[str]:
    """Files that are no nodes, also of the lab; those of `folder` are made."""
    (folder / "file").write_text("text")
    paths = [folder, folder / "file", Path("/dev/null"), Path("/proc/version"), nodes.lab.path]
    paths += [nodes.lab.gpu / name for name in ("vendor", "config", "resource", "sriov_numvfs")]
    paths += [nodes.lab.path / name for name in ("dev", "dev/vfio", "uevents")]
    return [str(path) for path in paths if os.access(path, os.R_OK)]
