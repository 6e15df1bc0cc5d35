# SPDX-License-Identifier: Apache-2.0
"""Memory that mappings of an IOAS share: copies (IOAS_COPY), and files (IOAS_MAP_FILE).

A copy reaches the same pages as its source as long as these are pinned, and survives it. The two address
spaces are locked one after the other, never at once: what happens to the source meanwhile does not matter,
because the copy has the memory itself.

State: none. Any thread; calls with ``may_wait`` False are the device lane's. Source: <linux/iommufd.h>,
Documentation/userspace-api/iommufd.rst; the order of checks is iommufd's.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import NamedTuple

from devmodel.client import Memory, Payer
from devmodel.iommu.api import ADDRESSES, MustWait, Prot
from devmodel.iommu.mappings import Mapping
from devmodel.iommu.sharing import PayerOfFile, SharedMemory
from devmodel.iommufd.context import Context
from devmodel.iommufd.ioas import MANY, Ioas, as_iommufd
from devmodel.iommufd.mapflags import MapFlags, access_of, check_map

_WRITE = int(Prot.WRITE)


class SharedPiece(NamedTuple):
    """``size`` bytes at ``address`` of ``memory``, for a mapping of their own."""

    memory: SharedMemory
    address: int
    size: int


def check_copy(flags: int, length: int, dst_iova: int, src_iova: int) -> None:
    """The checks of IOAS_COPY that come before its source is looked for. Raises ``OSError``: EOPNOTSUPP
    (unknown flag), EOVERFLOW (the largest number), EINVAL (no right)."""
    check_map(flags, 0, max(dst_iova, src_iova), length)


def source(ioas: Ioas, iova: int, length: int, may_wait: bool = True) -> list[SharedPiece]:
    """The memory of a range, one piece for each mapping.

    Raises ``OSError``: EINVAL (no length), EOVERFLOW (wraps around), ENOENT (not all of it is mapped).
    :class:`MustWait` if there may be very many pieces, unless it ``may_wait``.
    """
    if not length:
        raise OSError(errno.EINVAL, "a copy of no bytes")
    end = iova + length
    if end > ADDRESSES:
        raise OSError(errno.EOVERFLOW, "the source wraps around the end of the address space")
    space, pieces, position = ioas.space, [], iova
    with space.lock:
        if not may_wait and len(space.mappings) > MANY:
            raise MustWait
        found = space.mappings.within(iova, end)
        for mapping in found:
            if mapping.iova > position or not mapping.allows:
                break
            stop = min(mapping.end, end)
            address = mapping.vaddr + position - mapping.iova
            pieces.append((mapping, address, stop - position))
            position = stop
        if position < end:
            raise OSError(errno.ENOENT, f"iova {position:#x} is not mapped")
        return [SharedPiece(space.locked.share(mapping), address, size) for mapping, address, size in pieces]


def copy(ioas: Ioas, pieces: Sequence[SharedPiece], flags: int, iova: int, may_wait: bool = True) -> int:
    """Map ``pieces``, from :func:`source`, one after the other: IOAS_COPY. Returns the iova.

    Raises ``OSError``, with nothing mapped: as :meth:`Ioas.map`, and EPERM for writes to memory that was
    mapped without the right to write. Raises :class:`MustWait` as that.
    """
    allows, in_fixed = access_of(flags), bool(flags & MapFlags.FIXED_IOVA)
    space = ioas.space
    made: list[Mapping] = []
    with space.lock:
        length = sum(piece.size for piece in pieces)
        where = iova if in_fixed else None
        position = iova = ioas.place(length, pieces[0].address, where, len(pieces), may_wait)
        for memory, address, size in pieces:
            if allows & _WRITE and not memory.writable:
                raise OSError(errno.EPERM, "the memory was mapped for reading only")
            if address & (ioas.alignment - 1):
                raise OSError(errno.EINVAL, f"address {address:#x} is not aligned to {ioas.alignment}")
            made.append(Mapping(memory, position, address, size, allows))
            position += size
        for mapping in made:
            space.enter(mapping, may_wait)
    if not made[0].allows:
        with as_iommufd():
            space.finish(made, allows)
    return iova


def map_file(ioas: Ioas, memory: Memory, payer: Payer, flags: int, start: int, length: int, iova: int) -> int:
    """IOAS_MAP_FILE of ``memory``, whose addresses are offsets of the file, after :func:`check_file`. Its
    pages are charged to ``payer``. Returns the iova. Waits.

    Raises ``OSError``, with nothing mapped, as :meth:`Ioas.map`, and as :meth:`Memory.pin` while a domain is
    attached.
    """
    writable = bool(flags & MapFlags.WRITEABLE)
    shared = SharedMemory(memory, ioas.space.locked.lock, PayerOfFile(payer), writable, of_file=True)
    return copy(ioas, [SharedPiece(shared, start, length)], flags, iova)


def check_file(start: int, length: int) -> None:
    """The checks of IOAS_MAP_FILE that come before its file is looked for. Raises ``OSError``: EINVAL (no
    length), EOVERFLOW (wraps around)."""
    if not length:
        raise OSError(errno.EINVAL, "a mapping of no bytes")
    if start + length > ADDRESSES:
        raise OSError(errno.EOVERFLOW, "the range wraps around the end of the file")


def change_process(context: Context, payer: Payer, may_wait: bool = True) -> None:
    """IOAS_CHANGE_PROCESS: ``payer`` pays for all memory of the context from now on.

    Raises ``OSError``, with nothing changed: EINVAL (some memory is not that of a file), ENOMEM
    (RLIMIT_MEMLOCK). :class:`MustWait` for very many mappings, unless it ``may_wait``.
    """
    found: set[SharedMemory] = set()
    looked_at = 0
    for ioas in context.objects.all():
        if not isinstance(ioas, Ioas):
            continue
        looked_at += len(ioas.space.mappings)
        if looked_at > MANY and not may_wait:
            raise MustWait
        with ioas.space.lock:
            for mapping in ioas.space.mappings:
                memory = mapping.client
                if not isinstance(memory, SharedMemory) or not memory.of_file:
                    raise OSError(errno.EINVAL, "the memory of a process stays that of the process")
                found.add(memory)
    context.locked.change_payer(found, PayerOfFile(payer))


def set_rlimit_mode(context: Context, value: int, resource: bool) -> None:
    """OPTION_RLIMIT_MODE: charge processes (1) and not their users (0). ``resource`` is whether the caller
    has CAP_SYS_RESOURCE.

    Raises ``OSError``: EPERM, EBUSY (the context has an object), EINVAL (another value).
    """
    if not resource:
        raise OSError(errno.EPERM, "the mode is changed with CAP_SYS_RESOURCE")
    with context.objects.lock:
        if len(context.objects):
            raise OSError(errno.EBUSY, "the context has objects already")
        if value not in (0, 1):
            raise OSError(errno.EINVAL, f"a mode of {value}")
        context.locked.by_user = not value
