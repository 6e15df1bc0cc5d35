# SPDX-License-Identifier: Apache-2.0
"""What a client asks GROUP_GET_DEVICE_FD for: a PCI function's name, perhaps with a VF token, and who it
belongs to.

State: a :class:`VfToken` is under its group's lock. Source: Documentation/PCI/pci-iov-howto.rst,
<linux/vfio.h> (VFIO_DEVICE_FEATURE_PCI_VF_TOKEN), the behaviour of vfio-pci.
"""

import errno
from typing import NamedTuple
from uuid import UUID, uuid4

from devmodel.names import parse_uuid

OPTION = "vf_token="
_UUID_CHARS = 36


class PciName(NamedTuple):
    """A name that is the function's; ``token`` is the VF token with it, None without."""

    token: UUID | None


class VfToken:
    """The secret that the users of a physical function with SR-IOV and of its virtual functions share."""

    __slots__ = ("users", "uuid")

    def __init__(self) -> None:
        self.uuid = uuid4()
        self.users = 0

    def check(self, token: UUID | None) -> None:
        """Whether a client with ``token`` may open the physical function; without users it sets the token.

        Raises ``OSError(EACCES)`` when there are users and it is not theirs.
        """
        if self.users and token != self.uuid:
            raise OSError(errno.EACCES, "a VF token is required, and this is not it")
        if not self.users and token is not None:
            self.uuid = token


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


def check_token(name: PciName, required: VfToken | None) -> None:
    """``OSError``: EINVAL for a token where there is no SR-IOV, EACCES as :meth:`VfToken.check`."""
    if required is not None:
        required.check(name.token)
    elif name.token is not None:
        raise OSError(errno.EINVAL, "a VF token, but the function has no SR-IOV")


def _token(text: str) -> UUID:
    try:
        return parse_uuid(text)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from error
