# SPDX-License-Identifier: Apache-2.0
"""Memory that waits when it is touched, wherever VFIO takes a pointer.

It is a mapping of a file that does not answer READ (shared, private) or that has not stored what was written
before (stored: only a write waits), memory of userfaultfd(2), or any memory of a process that keeps the lock
of its mappings (locked).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import needs
from tests.hostile.conftest import Lab, Place

Row = tuple[str, list[str]]
EVENTFD, GROUP, IOMMUFD = ["-d", "eventfd"], ["-d", "group"], ["-d", "iommufd"]

FETCHED: dict[str, Row] = {
    "GET_INFO": ("vgpu", ["device-info"]),
    "GET_REGION_INFO": ("vgpu", ["region-info"]),
    "GET_IRQ_INFO": ("vgpu", ["irq-info"]),
    "QUERY_GFX_PLANE": ("vgpu", ["gfx-plane"]),
    "GET_PCI_HOT_RESET_INFO": ("function", ["hot-reset-info"]),
    "PCI_HOT_RESET": ("function", ["hot-reset", *GROUP]),
    "PCI_HOT_RESET, its groups": ("function", ["hot-reset", *GROUP, "-b", "12"]),
    "SET_IRQS": ("vgpu", ["set-irqs", *EVENTFD]),
    "SET_IRQS, its eventfds": ("vgpu", ["set-irqs", *EVENTFD, "-n", "3", "-b", "20"]),
    "IOEVENTFD": ("function", ["ioeventfd", *EVENTFD]),
    "FEATURE": ("function", ["wake-up", *EVENTFD]),
    "FEATURE, its data": ("function", ["wake-up", *EVENTFD, "-b", "8"]),
    "GET_STATUS": ("vgpu", ["group-status"]),
    "SET_CONTAINER": ("vgpu", ["set-container", "-d", "container"]),
    "IOMMU_GET_INFO": ("vgpu", ["iommu-info"]),
    "MAP_DMA": ("vgpu", ["map-dma"]),
    "UNMAP_DMA": ("vgpu", ["unmap-dma"]),
    "UNMAP_DMA, its bitmap's struct": ("vgpu", ["unmap-dirty", "-b", "24"]),
    "UNMAP_DMA, its bitmap": ("vgpu", ["unmap-bitmap"]),
    "DIRTY_PAGES": ("vgpu", ["dirty-pages"]),
    "DIRTY_PAGES, its range": ("vgpu", ["dirty-pages", "-b", "8"]),
    "DIRTY_PAGES, its bitmap": ("vgpu", ["dirty-bitmap"]),
    "BIND_IOMMUFD": ("vgpu", ["bind", *IOMMUFD]),
    "BIND_IOMMUFD of a function": ("function", ["bind", *IOMMUFD]),
    "ATTACH_IOMMUFD_PT": ("vgpu", ["attach"]),
    "DETACH_IOMMUFD_PT": ("function", ["detach"]),
}
REPLIED: dict[str, Row] = {
    "GET_INFO": ("vgpu", ["device-info"]),
    "GET_PCI_HOT_RESET_INFO": ("function", ["hot-reset-info"]),
    "GET_STATUS": ("vgpu", ["group-status"]),
    "IOMMU_GET_INFO": ("vgpu", ["iommu-info"]),
    "IOMMU_GET_INFO, its capabilities": ("vgpu", ["iommu-info", "-b", "24"]),
    "UNMAP_DMA": ("vgpu", ["unmap-dma"]),
    "UNMAP_DMA, its bitmap": ("vgpu", ["unmap-bitmap"]),
    "DIRTY_PAGES, its bitmap": ("vgpu", ["dirty-bitmap"]),
    "BIND_IOMMUFD": ("vgpu", ["bind", *IOMMUFD]),
    "BIND_IOMMUFD of a function": ("function", ["bind", *IOMMUFD]),
    "ATTACH_IOMMUFD_PT": ("function", ["attach"]),
}
ANY: dict[str, Row] = {
    "GET_INFO": ("vgpu", ["device-info"]),
    "SET_CONTAINER": ("vgpu", ["set-container", "-d", "container"]),
    "MAP_DMA": ("vgpu", ["map-dma"]),
    "DIRTY_PAGES, its bitmap": ("vgpu", ["dirty-bitmap"]),
    "BIND_IOMMUFD": ("vgpu", ["bind", *IOMMUFD]),
}
MAPPED = ["private", "shared", "memfd", "locked", "userfault"]


def check(lab: Lab, place: Place, call: list[str], memory: str, user: bool = False) -> None:
    """A hot reset takes a device that was opened through its group."""
    run = call[0] == "hot-reset"
    lab.check(lab.hostile(place, call[0], *call[1:], "-m", memory, user=user, run=run), "0")


@pytest.mark.parametrize("row", FETCHED)
def test_an_argument_that_waits(hostile_lab: Lab, place: Callable[[str], Place], row: str) -> None:
    what, call = FETCHED[row]
    check(hostile_lab, place(what), call, "shared")


@pytest.mark.parametrize("row", REPLIED)
def test_an_answer_that_waits(hostile_lab: Lab, place: Callable[[str], Place], row: str) -> None:
    what, call = REPLIED[row]
    check(hostile_lab, place(what), call, "stored")


@pytest.mark.parametrize("memory", ["private", "userfault", "locked"])
@pytest.mark.parametrize("row", ANY)
def test_other_memory(hostile_lab: Lab, place: Callable[[str], Place], row: str, memory: str) -> None:
    what, call = ANY[row]
    check(hostile_lab, place(what), call, memory)


@pytest.mark.parametrize("row", ANY)
@needs.root("the other tests run as an ordinary user already")
def test_memory_of_an_ordinary_user(hostile_lab: Lab, place: Callable[[str], Place], row: str) -> None:
    what, call = ANY[row]
    check(hostile_lab, place(what), call, "shared", user=True)


@pytest.mark.parametrize("call", ["map-dma-vaddr", "ioas-map-vaddr"])
@pytest.mark.parametrize("memory", MAPPED)
@pytest.mark.parametrize("what", ["vgpu", "function"])
def test_mapping_it(
    hostile_lab: Lab, place: Callable[[str], Place], what: str, memory: str, call: str
) -> None:
    """MAP_DMA and IOAS_MAP of such memory, which a physical function pins."""
    check(hostile_lab, place(what), [call], memory)


def test_mapping_a_file_that_mountinfo_shows(hostile_lab: Lab) -> None:
    check(hostile_lab, hostile_lab.function, ["map-dma-vaddr", "-k"], "shared")
