# SPDX-License-Identifier: Apache-2.0
"""The names that clients give to GROUP_GET_DEVICE_FD, a PCI address and perhaps a VF token, and the tokens
that users of a physical function share.

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
    """A name that means the function. ``token`` is the VF token in it, None without one."""

    token: UUID | None


class VfToken:
    """The secret that the users of a physical function with SR-IOV and of its virtual functions share."""

    __slots__ = ("_lock", "_users", "_uuid")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uuid = uuid4()
        self._users = 0

    def check(self, token: UUID | None) -> None:
        """Check that a client with ``token`` may open the physical function.

        While no virtual function is open, it may; its token, if it has one, becomes the shared token. Raises
        ``OSError(EACCES)`` when a virtual function is open and ``token`` is not the shared one.
        """
        with self._lock:
            if self._users:
                self._compare(token)
            elif token is not None:
                self._uuid = token

    def check_user(self, token: UUID | None) -> None:
        """Raise ``OSError(EACCES)`` unless a client with ``token`` may open a virtual function."""
        with self._lock:
            self._compare(token)

    def set(self, token: UUID) -> None:
        """Set a token that the user of the physical function chose. Open virtual functions stay open."""
        with self._lock:
            self._uuid = token

    def count(self, change: int) -> None:
        """Add ``change`` to the number of open virtual functions."""
        with self._lock:
            self._users += change

    def _compare(self, token: UUID | None) -> None:
        if token != self._uuid:
            raise OSError(errno.EACCES, "a VF token is required, and this is not it")


def parse_pci_name(own: str, asked: str) -> PciName | None:
    """``asked`` as a name of the function at address ``own``. None for the name of another function.

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
