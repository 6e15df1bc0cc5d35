# SPDX-License-Identifier: Apache-2.0
"""mbochs: the kernel's sample display, as a bochs driver in a guest knows it.

State: in each device, under its lock. Source: the sample's Kconfig help (SAMPLE_VFIO_MDEV_MBOCHS) and
QEMU's docs/specs/standard-vga.
"""

from devmodel.models.bochs import BochsDisplay


class Mbochs(BochsDisplay):
    """Memory and DISPI registers, without the legacy parts of a VGA."""

    __slots__ = ()
