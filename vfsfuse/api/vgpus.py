# SPDX-License-Identifier: Apache-2.0
"""vGPUs as objects of the API: mediated devices, and virtual functions of NVIDIA's framework.

Objects keep no state; any thread.  docs/vgpu.md and docs/frameworks.md describe what they do.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from vfsfuse.api.directory import Directory, Named
from vfsfuse.api.files import Files
from vfsfuse.api.functions import FUNCTIONS, Function
from vfsfuse.api.opening import Assignable

if TYPE_CHECKING:
    from PIL.Image import Image

V = TypeVar("V", bound="Vgpu")
MDEVS = "sys/bus/mdev/devices"
PLACEMENT = "vgpu_placement"
"""The attribute that GPUs with NVIDIA's framework have, and no others."""


class Vgpu(Assignable):
    """A vGPU.  As a context manager it is removed at the end, if it is still there."""

    def __enter__(self: V) -> V:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        refused = contextlib.nullcontext() if kind is None else contextlib.suppress(OSError)
        with refused:  # an exception of the program says more
            if self._files.is_ours and self.exists():
                self.remove()

    @property
    def uuid(self) -> str | None:
        """The UUID of the VM that it belongs to; None in NVIDIA's framework, which has none."""
        raise NotImplementedError

    @property
    def type(self) -> str:
        """The name of its type: of a mediated device that of the lab file, in NVIDIA's framework its id."""
        raise NotImplementedError

    def exists(self) -> bool:
        """Whether it has not been removed."""
        raise NotImplementedError

    def remove(self) -> None:
        """Remove it.  Raises OSError: EBUSY while a client has it open, unless the lab's removals wait."""
        raise NotImplementedError

    def surprise_remove(self) -> None:
        """Take it away although clients have it open, like a pulled cable: they read all ones from then on.
        Raises OSError: ENOENT in NVIDIA's framework, where a card is pulled, and no vGPU."""
        self.set("surprise_remove", 1)

    def screenshot(self) -> Image:
        """The picture that its display shows.  Raises OSError: ENOENT if it has no display, ENODATA if it
        shows nothing."""
        from PIL import Image

        return Image.open(io.BytesIO(self._files.content(self.path / "screen.png")))


class MediatedVgpu(Vgpu):
    """A vGPU that is a mediated device, which mdev or `vgpu_create` has made."""

    @property
    def uuid(self) -> str:
        return self.attribute("vgpu_uuid")

    @property
    def instance(self) -> int:
        """The number that tells the vGPUs of one VM apart."""
        return int(self.attribute("vgpu_instance"))

    @property
    def type(self) -> str:
        return self._files.link(self.path / "mdev_type") or ""

    def exists(self) -> bool:
        return self._files.has(self.path)

    def remove(self) -> None:
        self.set("remove", 1)


class VendorVgpu(Vgpu):
    """A vGPU that is a virtual function of a GPU with NVIDIA's framework."""

    @property
    def uuid(self) -> None:
        return None

    @property
    def type(self) -> str:
        return self.attribute("nvidia/current_vgpu_type")

    def exists(self) -> bool:
        return type_of(self._files, self) != "0"

    def remove(self) -> None:
        """Take its type away.  Raises OSError: EBUSY while a client has it open."""
        self.set("nvidia/current_vgpu_type", 0)

    def attribute(self, name: str) -> str:
        """As of every object.  What vfsfuse knows of the vGPU is in the directory `vgpu`, and found too."""
        own = self.path / name
        return self._files.text(own if self._files.has(own) else self.path / "vgpu" / name)


def type_of(files: Files, function: Directory) -> str:
    """The id of the type of a virtual function, "0" if it has none or cannot have one."""
    path = function.path / "nvidia/current_vgpu_type"
    return files.text(path) if files.has(path) else "0"


def vgpus(files: Files) -> Named[Vgpu]:
    """All vGPUs of a lab, by the names of their directories."""
    return Named(lambda: _names(files), lambda name: _find(files, name), "vGPU")


def _names(files: Files) -> list[str]:
    vendors = [each.name for each in _virtual_functions(files) if each.exists()]
    return files.names(files.root / MDEVS) + vendors


def _virtual_functions(files: Files) -> list[VendorVgpu]:
    """The virtual functions that are vGPUs, or can be."""
    functions = files.root / FUNCTIONS
    names = files.names(functions)
    parents = (functions / name for name in names if files.has(functions / name / PLACEMENT))
    return [each for parent in parents for each in virtual_functions(files, parent)]


def virtual_functions(files: Files, parent: Path) -> list[VendorVgpu]:
    """The virtual functions of a GPU, whether they have a type or not."""
    return [VendorVgpu(files, each.path) for each in Function(files, parent).vfs]


def _find(files: Files, name: str) -> Vgpu | None:
    path = files.root / MDEVS / name
    if "/" not in name and name.strip(".") and files.has(path):
        return MediatedVgpu(files, path.resolve())
    return next((each for each in _virtual_functions(files) if each.name == name and each.exists()), None)
