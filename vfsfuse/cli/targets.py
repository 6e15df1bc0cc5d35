# SPDX-License-Identifier: Apache-2.0
"""The lab and the vGPU that the command line names, looked up through the mount.  No state.

`find` asks the lab's server, so it is called as a question (vfsfuse.asking).
"""

from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from vfsfuse.asking import SECONDS, Patience, Refusal
from vfsfuse.cli.mountpoint import State, answers, labs, locate, mount_at
from vfsfuse.cli.output import explained
from vfsfuse.monitor.processes import Place

T = TypeVar("T")

CLOSED = "the lab, or a directory above it, is another user's"
"""What a user can do nothing about: FUSE closes the lab of an ordinary user also to root."""


def add_vgpu_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of a command that acts on one vGPU: VGPU and --mount."""
    parser.add_argument("vgpu", metavar="VGPU", help="vgpu<N>, a UUID, or the name of its directory")
    add_mount(parser)


def add_mount(parser: argparse.ArgumentParser) -> None:
    """Declare the argument that names the lab: --mount."""
    parser.add_argument(
        "--mount", metavar="MNT", help="the lab mounted there (default: the only one there is)"
    )


def only_lab(instead: str = "") -> str:
    """The mountpoint of the only mounted lab of this user or of root.  `instead` is what else a user without
    a lab can do.  Raises Refusal when there is none, or several."""
    found = labs()
    if not found:
        mend = "mount one with: vfsfuse mount MNT"
        raise Refusal(f"no lab of yours or of root is mounted ({mend}{instead})")
    if len(found) > 1:
        raise Refusal(f"labs are mounted at {', '.join(found)} (say which with --mount)")
    return found[0]


def check_lab(lab: str) -> None:
    """Asks whether a lab is mounted at `lab`.  Raises Refusal unless one is that this user may enter."""
    try:
        os.stat(f"{lab}/sys/class/vgpu")
    except PermissionError as error:
        raise Refusal(why(error, lab)) from None
    except (OSError, ValueError):  # a null byte is in no path
        raise Refusal(f"{lab}: no lab is mounted there (vfsfuse mount {lab})") from None


def place_of(lab: str, patience: Patience) -> Place:
    """Where the lab at `lab` is.  Asks no lab.  Raises Refusal when there is none, and OSError."""
    found = locate(lab, patience)
    mount = mount_at(found.path) if found.state is State.LIVE else None
    if mount is None:
        raise Refusal(f"{found.path}: no lab is mounted there (vfsfuse mount {found.path})")
    return Place(found.path, mount.minor, found.pid, mount.user, mount.is_shared)


def patience_of(lab: str) -> Callable[[Callable[[], Iterable[T]]], Iterator[T]]:
    """Asks questions with many answers about a lab (`Patience.answers`), however long they take, as long as
    the lab's server answers other ones."""
    half = SECONDS / 2
    return lambda question: Patience().answers(question, lambda: answers(lab, half), half)


def why(error: OSError, lab: str) -> str:
    """The line about `error`, which a question about the lab at `lab` has raised."""
    if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
        return f"{lab}: no lab is mounted there (its server is gone)"
    if error.errno == errno.EACCES:
        return f"{lab}: {error.strerror} ({CLOSED})"
    return explained(error, lab)


def find(lab: str, name: str, functions: bool = False, what: str = "vGPU") -> str:
    """The directory of the vGPU that has this name: with `functions` also the address of a virtual function
    that is one.  Raises Refusal, which calls it `what`, unless exactly one has it."""
    check_lab(lab)
    paths = list(paths_of(lab, name))
    if functions:
        paths += functions_of(lab, name)
    found = sorted({os.path.realpath(path) for path in paths})
    if len(found) > 1:
        names = ", ".join(map(os.path.basename, found))
        raise Refusal(f"{name}: there are {names} (name one of them)")
    if not found:
        raise Refusal(f"{name}: there is no such {what} in {lab} (vfsfuse tree {lab} shows what there is)")
    return found[0]


def paths_of(lab: str, name: str) -> Iterator[str]:
    """The paths of the vGPUs that have this name: a number, a directory, or a UUID with any instance."""
    if "/" in name or not name.strip("."):
        return
    classes = f"{lab}/sys/class/vgpu"
    for vendor in os.listdir(classes):
        if os.path.isdir(f"{classes}/{vendor}/{name}"):
            yield f"{classes}/{vendor}/{name}"
    devices = f"{lab}/sys/bus/mdev/devices"
    for device in os.listdir(devices) if os.path.isdir(devices) else ():  # a lab may have no such bus
        if name.lower() in (device, uuid_of(f"{devices}/{device}")):
            yield f"{devices}/{device}"


def functions_of(lab: str, name: str) -> Iterator[str]:
    """The path of the virtual function at the address `name` if it is a vGPU."""
    function = f"{lab}/sys/bus/pci/devices/{name}"
    if "/" not in name and os.path.isdir(f"{function}/nvidia") and os.path.isdir(f"{function}/vgpu"):
        yield function


def uuid_of(directory: str) -> str:
    """The UUID of a vGPU, empty while it is being removed."""
    return text_of(f"{directory}/vgpu_uuid")


def text_of(path: str) -> str:
    """The text of an attribute, empty while its device is being removed."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
