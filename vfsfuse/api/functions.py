# SPDX-License-Identifier: Apache-2.0
"""PCI functions as objects of the API, and the slots that cards are in.

Objects keep no state; any thread.  docs/lab.md, docs/sysfs.md and docs/vgpu.md describe what they do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vfsfuse.api.directory import Directory, Named
from vfsfuse.api.files import Files
from vfsfuse.api.opening import Assignable

PCI = "sys/bus/pci"
FUNCTIONS = f"{PCI}/devices"
SLOTS = f"{PCI}/slots"
VFIO_PCI = "vfio-pci"


class Slot(Directory):
    """A physical slot.  The card of one without hot-plug stays: `plug` and `unplug` are ENOENT."""

    @property
    def address(self) -> str:
        """Domain, bus and device number of the card, "0000:86:00"."""
        return self.attribute("address")

    @property
    def occupied(self) -> bool:
        """Whether there is a card in it."""
        return self.attribute("adapter") == "1"

    @property
    def powered(self) -> bool:
        """Whether it has power."""
        return self.attribute("power") == "1"

    def plug(self) -> None:
        """Put the card into the slot.  Raises OSError: EBUSY if it is there, ENODEV if there is no card."""
        self.set("plug", 1)

    def unplug(self, surprise: bool = False) -> None:
        """Take the card out, with `surprise` although clients have its functions open.  Raises OSError: EBUSY
        while a client has one open, ENODEV if the slot is empty."""
        self.set("surprise_unplug" if surprise else "unplug", 1)


class Function(Assignable):
    """A PCI function, by its address."""

    def exists(self) -> bool:
        """Whether it is there: not removed, and its card in its slot."""
        return self._files.has(self.path)

    @property
    def vendor(self) -> int:
        """Its vendor id."""
        return int(self.attribute("vendor"), 16)

    @property
    def device(self) -> int:
        """Its device id."""
        return int(self.attribute("device"), 16)

    @property
    def class_code(self) -> int:
        """Its class code, of 24 bits."""
        return int(self.attribute("class"), 16)

    # ---- drivers ----

    @property
    def driver_override(self) -> str | None:
        """The only driver that may take it, None if any may that knows it."""
        text = self.attribute("driver_override")
        return None if text == "(null)" else text

    @driver_override.setter
    def driver_override(self, name: str | None) -> None:
        self.set("driver_override", "\n" if name is None else name)

    def unbind(self) -> None:
        """Take its driver away, if it has one.  Raises OSError: EBUSY while a client has it open."""
        if self.driver is not None:
            self.set("driver/unbind", self.name)

    def bind(self, driver: str | None = VFIO_PCI) -> None:
        """Have it driven by `driver` alone (`driver_override`), or with None by the driver that knows it.  A
        driver that it has is taken away first.  Raises OSError: EBUSY while a client has it open, ENODEV if
        the driver refuses it."""
        if driver is None or self.driver != driver:
            self.unbind()
        self.driver_override = driver
        if self.driver is None and driver is None:
            self._files.store(self._files.root / PCI / "drivers_probe", self.name)
        elif self.driver is None:
            self._files.store(self._files.root / PCI / "drivers" / str(driver) / "bind", self.name)

    @contextlib.contextmanager
    def bound(self, driver: str = VFIO_PCI) -> Iterator[Function]:
        """It has this driver for the time of a `with`, and then the driver and the override that it had."""
        override, before = self.driver_override, self.driver
        self.bind(driver)
        try:
            yield self
        finally:
            if self._files.is_ours and self.exists():
                self.unbind()
                self.driver_override = override
                if before is not None:
                    self._files.store(self._files.root / PCI / "drivers" / before / "bind", self.name)

    # ---- virtual functions ----

    @property
    def sriov_numvfs(self) -> int:
        """How many virtual functions are enabled.  Raises OSError: ENOENT if it cannot have any."""
        return int(self.attribute("sriov_numvfs"))

    @sriov_numvfs.setter
    def sriov_numvfs(self, count: int) -> None:
        """Raises OSError: EBUSY for a change from one number to another, or while a client has one open;
        ERANGE for too many, ENOSPC if there is no room."""
        self.set("sriov_numvfs", count)

    @property
    def sriov_totalvfs(self) -> int:
        """How many virtual functions it can have.  Raises OSError: ENOENT if it cannot have any."""
        return int(self.attribute("sriov_totalvfs"))

    @property
    def vfs(self) -> tuple[Function, ...]:
        """Its virtual functions, in the order of their numbers."""
        links = [name for name in self._files.names(self.path) if name.startswith("virtfn")]
        links.sort(key=lambda name: int(name.removeprefix("virtfn")))
        return tuple(Function(self._files, (self.path / name).resolve()) for name in links)

    @property
    def physical(self) -> Function | None:
        """The physical function of a virtual one, None for any other."""
        if self._files.link(self.path / "physfn") is None:
            return None
        return Function(self._files, (self.path / "physfn").resolve())

    # ---- its place ----

    @property
    def slot(self) -> Slot | None:
        """The slot that it is in, the nearest above it; None if it is in none."""
        all_slots = list(slots(self._files).values())
        for part in reversed(self.path.parts):
            for slot in all_slots:
                if slot.address and part.rpartition(".")[0] == slot.address:
                    return slot
        return None

    def reset(self) -> None:
        """Reset it; its configuration space stays.  Raises OSError: ENOENT if it cannot be reset."""
        self.set("reset", 1)

    def remove(self) -> None:
        """Remove it from the bus, until a rescan finds it.  Raises OSError: EBUSY while a client has it
        open."""
        self.set("remove", 1)


def functions(files: Files) -> Named[Function]:
    """The PCI functions of a lab, by address.  Bridges are functions, too."""
    return Named(lambda: files.names(files.root / FUNCTIONS), lambda name: _find(files, name), "function")


def _find(files: Files, name: str) -> Function | None:
    path = files.root / FUNCTIONS / name
    inside = "/" not in name and name.strip(".")
    return Function(files, path.resolve()) if inside and files.has(path) else None


def slots(files: Files) -> Named[Slot]:
    """The slots of a lab, by name."""
    return Named(lambda: files.names(files.root / SLOTS), lambda name: _slot(files, name), "slot")


def _slot(files: Files, name: str) -> Slot | None:
    path = files.root / SLOTS / name
    inside = "/" not in name and name.strip(".")
    return Slot(files, path) if inside and files.has(path) else None
