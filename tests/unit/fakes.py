# SPDX-License-Identifier: Apache-2.0
"""What the unit tests share: an assertion about errnos, a client whose memory is a dictionary, and short ways
through a lab."""

import errno
from collections.abc import Callable, Hashable, Sequence

import pytest

from devmodel.device.pci import PciDevice
from devmodel.lifecycle.physical import PhysicalFunction, PhysicalParent
from devmodel.lifecycle.spec import FunctionSpec, ParentSpec, TypeSpec, VfSpec
from devmodel.models.gpu import PhysicalGpu

TOP = 2**64


def fails(number: int, call: Callable[..., object], *args: object, **kwargs: object) -> None:
    """Assert that the call raises OSError with this errno."""
    with pytest.raises(OSError) as caught:
        call(*args, **kwargs)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


class FakeClient:
    """A process whose memory is a dictionary of bytes; ``limit`` is where it ends.

    ``memlock`` is how many bytes of it may be locked, ``privileged`` says that this does not count.
    """

    def __init__(self, tgid: int = 1, limit: int = TOP, memlock: int = TOP, privileged: bool = False) -> None:
        self.tgid = tgid
        self.identity: Hashable = tgid
        self.user = 1000
        self.limit = limit
        self.memlock = memlock
        self.privileged = privileged
        self.bytes: dict[int, int] = {}

    def read(self, vaddr: int, size: int) -> bytes:
        self._check(vaddr, size)
        return bytes(self.bytes.get(vaddr + i, 0) for i in range(size))

    def write(self, vaddr: int, data: bytes) -> None:
        self._check(vaddr, len(data))
        self.bytes.update(enumerate(data, vaddr))

    def gather(self, parts: Sequence[tuple[int, int]]) -> bytes:
        return b"".join(self.read(*part) for part in parts)

    def read_parts(self, parts: Sequence[tuple[int, int]], view: memoryview) -> None:
        view[:] = self.gather(parts)

    def write_parts(self, parts: Sequence[tuple[int, int]], view: memoryview) -> None:
        for vaddr, size in parts:
            self.write(vaddr, bytes(view[:size]))
            view = view[size:]

    def pin(self, vaddr: int, size: int, write: bool) -> "FakePages":
        self._check(vaddr, size)
        return FakePages(self, vaddr)

    def memlock_limit(self) -> int:
        return self.memlock

    def locked(self) -> int:
        return 0

    def may_lock_any(self) -> bool:
        return self.privileged

    def _check(self, vaddr: int, size: int) -> None:
        if vaddr + size > self.limit:
            raise OSError(errno.EFAULT, "no such memory")


class FakePages:
    """Pinned memory of a fake client."""

    def __init__(self, client: FakeClient, vaddr: int) -> None:
        self.client, self.vaddr = client, vaddr

    def read(self, offset: int, size: int) -> bytes:
        return self.client.read(self.vaddr + offset, size)

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = self.read(offset, len(view))

    def write_from(self, offset: int, view: memoryview) -> None:
        self.client.write(self.vaddr + offset, bytes(view))


def gpu_parent(
    name: str,
    types: tuple[TypeSpec, ...],
    memory: int,
    *,
    model: type[PciDevice] = PhysicalGpu,
    slots: int | None = None,
    vf: VfSpec | None = None,
    iommu: bool = True,
) -> ParentSpec:
    """A parent that is a GPU at this address, bound to the driver vgpu."""
    hardware = FunctionSpec(name, model, "vgpu", memory, iommu=iommu, vf=vf)
    return ParentSpec(name, "gpu", "vgpu", types, memory, slots, hardware)


def parent_of(function: PhysicalFunction) -> PhysicalParent:
    """The parent that a function is."""
    assert function.parent is not None
    return function.parent


def function_spec(parent: ParentSpec) -> FunctionSpec:
    """The function that a parent is, as a spec."""
    assert parent.function is not None
    return parent.function
