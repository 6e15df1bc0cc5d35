# SPDX-License-Identifier: Apache-2.0
"""What a client asks GROUP_GET_DEVICE_FD for: a PCI function's name, perhaps with a VF token, and who it
belongs to.

State: a :class:`VfToken` is under its own lock, which comes after a group's.
Source: Documentation/PCI/pci-iov-howto.rst, <linux/vfio.h> (VFIO_DEVICE_FEATURE_PCI_VF_TOKEN), the behaviour
of vfio-pci.
"""

import errno
import threading
from typing import NamedTuple
from uuid import UUID, uuid4

from devmodel.uuids import parse_uuid

OPTION = "vf_token="
_UUID_CHARS = 36


class PciName(NamedTuple):
    """A name that is the function's; ``token`` is the VF token with it, None without."""

    token: UUID | None


class VfToken:
    """The secret that the users of a physical function with SR-IOV and of its virtual functions share."""

    __slots__ = ("_lock", "_users", "_uuid")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uuid = uuid4()
        self._users = 0

    def check(self, token: UUID | None) -> None:
        """Whether a client with ``token`` may open the physical function. While no virtual function is open,
        it may, and its token, if it has one, is the one from now on.

        Raises ``OSError(EACCES)`` when one is open and the token is not theirs.
        """
        with self._lock:
            if self._users:
                self._compare(token)
            elif token is not None:
                self._uuid = token

    def check_user(self, token: UUID | None) -> None:
        """Whether a client with ``token`` may open a virtual function; ``OSError(EACCES)`` if not."""
        with self._lock:
            self._compare(token)

    def set(self, token: UUID) -> None:
        """The physical function's user chose another; who has a virtual function open keeps it."""
        with self._lock:
            self._uuid = token

    def count(self, change: int) -> None:
        """Virtual functions that are open: one more, or one less."""
        with self._lock:
            self._users += change

    def _compare(self, token: UUID | None) -> None:
        if token != self._uuid:
            raise OSError(errno.EACCES, "a VF token is required, and this is not it")


def parse_pci_name(own: str, asked: str) -> PciName | None:
    """``asked`` as a name of the function at address ``own``; None when it is another's.

    Raises ``OSError(EINVAL)`` for an unknown or repeated option, or a token that is no UUID.
    """
    rest = asked.removeprefix(own)
    if not asked.startswith(own) or rest[:1] not in ("", " "):
        return None
    token: UUID | None = None
    while rest := rest.lstrip(" "):
        if token is not None or not rest.startswith(OPTION):
            raise OSError(errno.EINVAL, f"{rest!r} is no option of a device's name")
        rest = rest.removeprefix(OPTION)
        token, rest = _token(rest[:_UUID_CHARS]), rest[_UUID_CHARS:]
    return PciName(token)


def _token(text: str) -> UUID:
    try:
        return parse_uuid(text)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from error
