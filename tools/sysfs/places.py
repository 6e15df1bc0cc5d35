# SPDX-License-Identifier: Apache-2.0
"""What no class declares: the entries that vfsfuse/views adds, and the words that paths are written in.

State: none, constant.  tests/test_docs_sysfs.py compares it with a mount.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfsfuse.views.machine import OF_THE_MACHINE

DIRECTORY, LINK = "directory", "link"


@dataclass(frozen=True, slots=True)
class Word:
    """A word in angle brackets: the pattern of what it stands for, which has such words, and its meaning."""

    pattern: str
    meaning: str


WORDS = {
    "function": Word(
        "sys/devices/pci<domain>:<number>(?:/<bdf>)*/<bdf>",
        "the directory of a PCI function. `sys/bus/pci/devices/<bdf>` is a link to it",
    ),
    "parent": Word(
        "(?:<function>|sys/devices/virtual/<driver>/<name>)",
        "the directory of an mdev parent. `sys/class/mdev_bus/<name>` is a link to it",
    ),
    "vgpu": Word(
        "<uuid>(?:-<N>)?", "the name of a vGPU. `sys/bus/mdev/devices/<vgpu>` is a link to its directory"
    ),
    "device": Word(
        "(?:<function>(?:/vgpu)?|<parent>/<vgpu>)", "the directory of a PCI function or of a vGPU"
    ),
    "bridge": Word(
        "(?:sys/devices/pci<domain>:<number>|<function>)",
        "the directory of a host bridge or of another bridge",
    ),
    "interface": Word(
        "(?:<function>/net/<ifname>|sys/devices/virtual/net/lo)",
        "the directory of a network interface. `sys/class/net/<ifname>` is a link to it",
    ),
    "ifname": Word(r"[\w.-]{1,15}", "the name of a network interface"),
    "unit": Word("(?:dmar|ivhd)<N>", "the name of an IOMMU unit, `dmar<N>` unless the lab file names it"),
    "any": Word(
        "(?:<device>|<parent>|<bridge>|<bridge>/pci_bus/<domain>:<number>|<device>/vfio-dev/<cdev>"
        "|sys/devices/virtual/iommu/<unit>|sys/devices/virtual/vfio/<group>|<interface>"
        "|sys/devices/system/<system>|sys/devices/system/<system>/<system><N>)",
        "the directory of a device of any kind",
    ),
    "bdf": Word(
        r"<domain>:<number>:<number>\.[0-7]", "the address of a PCI function, such as `0000:86:00.0`"
    ),
    "domain": Word("[0-9a-f]{4}", "a PCI domain"),
    "number": Word("[0-9a-f]{2}", "a PCI bus"),
    "bus": Word("(?:pci|mdev|<system>)", "a bus"),
    "system": Word("(?:cpu|node)", "what the lab's machine has, if the lab file describes its NUMA nodes"),
    "driver": Word(r"[\w.-]+", "the name of a driver"),
    "slot": Word(
        "[0-9]+(?:-[0-9]+)?", "the name of a physical slot: its number, with `-1` and so on for others of it"
    ),
    "module": Word(r"\w+", "the name of a module: that of its driver, with underscores for dashes"),
    "class": Word(
        r"(?!(?:iommu|mdev_bus|misc|net|pci_bus|vfio|vfio-dev|vgpu)/)[\w.-]+",
        "the driver of a virtual parent",
    ),
    "name": Word(r"[\w.:-]+", "the name of an mdev parent"),
    "type": Word(r"[\w.-]+", "the name of a type of vGPU"),
    "vendor": Word(r"[\w.-]+", "the vendor of the lab file"),
    "uuid": Word("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", "a UUID"),
    "group": Word(
        "(?:noiommu-)?<N>", "the name of a group's file: its number, behind `noiommu-` without an IOMMU"
    ),
    "cdev": Word(
        "(?:noiommu-)?vfio<N>",
        "the name of a device's own file: `vfio` and a number, behind `noiommu-` without an IOMMU",
    ),
    "N": Word("[0-9]+", "a number"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """An entry that no class declares.  `kind` is DIRECTORY, LINK or the mode of a file."""

    path: str
    kind: str
    reading: str
    writing: str = ""


MACHINES = "Empty. `vfsfuse run` mounts the machine's own directory here."
"""What a directory of the machine is."""
OF_A_LAB_WITH_INTERFACES = {
    "sys/class/net": "The network interfaces of a lab that has some. Otherwise it is empty, and `vfsfuse run`"
    " mounts the machine's own directory here.",
    "sys/devices/virtual/net": "The loopback of a lab that has network interfaces. Otherwise it is empty, and"
    " `vfsfuse run` mounts the machine's own directory here.",
}
"""Directories that are the machine's own only where a lab has no network interfaces."""

PLACES = (
    Place(
        "uevents",
        "0444",
        "Waits for the next event and reads it whole, as from a netlink socket (poll works).",
    ),
    Place(
        "counters",
        "0400",
        "A line of JSON with how often each device was called since the open, and what DMA it did."
        " [docs/monitor.md](monitor.md) describes it.",
    ),
    Place(
        "log",
        "0400",
        "Waits for what goes wrong in the server, such as an exception in a device model, and reads it, one"
        " record a read (poll works). The first line says what happened; the others begin with a space.",
    ),
    Place(
        "trace",
        "0600",
        "Waits for calls on the lab and reads them, each as one line of JSON (poll works)."
        " [docs/trace.md](trace.md) describes them.",
        "A line of JSON before the first read says what is wanted. EINVAL: anything else; EBUSY: it has been"
        " read.",
    ),
    Place(
        "reload",
        "0600",
        "The outcome of the last reload of models, as text: that of the last write through the same open"
        " file, if there was one.",
        "Reads the code of the lab's own models again, of those that are named or of all, and makes new"
        " devices of it. ENOENT: a name of no such model; ETIMEDOUT: the import does not end; EINVAL: an"
        " error in the code, and nothing has changed.",
    ),
    Place(
        "faults",
        "0600",
        "The fault rules, each as one line with how often it has hit. After a write through the same open"
        " file: what that has changed, or why it has changed nothing. [docs/faults.md](faults.md) describes"
        " it.",
        "Each line is a command: `add` and the keys of a rule, `clear` or `release` and names of rules, or"
        " `list`. All of them are carried out, or none. EINVAL: there can be no such rule or command; ENOENT:"
        " a name of no rule; EEXIST: a name that is taken; ENOSPC: there are too many rules.",
    ),
    Place(
        "dev/iommu",
        "device_mode",
        "An iommufd: open(2) makes one. [docs/iommufd.md](iommufd.md) has its ioctls.",
    ),
    Place("dev/vfio/vfio", "0666", "A container: open(2) makes one. [docs/vfio.md](vfio.md) has its ioctls."),
    Place("dev/vfio/<group>", "device_mode", "A group: [docs/vfio.md](vfio.md) has its ioctls."),
    Place(
        "dev/vfio/devices/<cdev>",
        "device_mode",
        "A device, once VFIO_DEVICE_BIND_IOMMUFD has bound it: read(2) reads its regions. Before, all else is"
        " EINVAL. [docs/vfio.md](vfio.md) has its ioctls.",
        "Writes its regions.",
    ),
    Place("sys/bus/pci/devices/<bdf>", LINK, "To the directory of the function."),
    Place("sys/bus/pci/drivers/<driver>/<bdf>", LINK, "To a function that is bound to the driver."),
    Place("sys/bus/pci/slots", DIRECTORY, "The physical slots of the machine."),
    Place("sys/bus/mdev/devices/<vgpu>", LINK, "To the directory of the vGPU."),
    Place("sys/bus/mdev/drivers/vfio_mdev/<vgpu>", LINK, "To a vGPU that is bound to the driver."),
    Place("sys/class/iommu/<unit>", LINK, "To the directory of the IOMMU unit."),
    Place("sys/devices/virtual/iommu/<unit>/devices/<bdf>", LINK, "To a function behind the IOMMU unit."),
    Place("sys/class/misc/iommu", LINK, "To the character device of iommufd."),
    Place("sys/class/misc/vfio", LINK, "To the character device of containers."),
    Place("sys/class/mdev_bus/<name>", LINK, "To the parent, while it has its host driver."),
    Place("sys/class/<class>/<name>", LINK, "To a parent that is no PCI function."),
    Place("sys/class/net/<ifname>", LINK, "To the directory of the network interface."),
    Place("<function>/net", DIRECTORY, "The network interfaces that the host driver has registered."),
    Place("sys/class/vfio/<group>", LINK, "To the character device of the group."),
    Place("sys/class/vfio-dev/<cdev>", LINK, "To the character device of the device."),
    Place("sys/class/vgpu/<vendor>", LINK, "To `sys/devices/virtual/vgpu/<vendor>`."),
    Place("sys/dev/block", DIRECTORY, "Empty."),
    Place("sys/dev/char/10:196", LINK, "To the character device of containers."),
    Place("sys/dev/char/10:256", LINK, "To the character device of iommufd."),
    Place("sys/dev/char/511:<N>", LINK, "To the character device of a group."),
    Place("sys/dev/char/510:<N>", LINK, "To the character device of a device."),
    Place("sys/devices/virtual/vgpu/<vendor>/vgpu<N>", LINK, "To the directory of the vGPU."),
    Place("sys/bus/<system>/devices/<system><N>", LINK, "To the directory of the CPU or the node."),
    Place("sys/devices/system/cpu/cpu<N>/node<N>", LINK, "To the node of the CPU."),
    Place("sys/devices/system/node/node<N>/cpu<N>", LINK, "To a CPU of the node."),
    *(Place(f"sys/devices/system/{name}", DIRECTORY, MACHINES) for name in OF_THE_MACHINE),
    Place("<bridge>/pci_bus", DIRECTORY, "The buses below the bridge."),
    Place("sys/class/pci_bus/<domain>:<number>", LINK, "To the directory of the bus."),
    Place("sys/kernel/iommu_groups/<N>/devices/<bdf>", LINK, "To a function of the group."),
    Place("sys/kernel/iommu_groups/<N>/devices/<vgpu>", LINK, "To the vGPU of the group."),
    Place("sys/module/<driver>", LINK, "To the module of a driver with a dash in its name, for driverctl."),
    Place("sys/module/<module>/drivers/<bus>:<driver>", LINK, "To a driver of the module."),
    Place("sys/module/<module>/holders", DIRECTORY, "The modules that use the module."),
    Place("sys/module/<module>/holders/<module>", LINK, "To a module that uses the module."),
    Place("<parent>/mdev_supported_types/<type>/devices/<vgpu>", LINK, "To a vGPU of the type."),
    Place("<function>/link", DIRECTORY, "Empty: no link has power management (ASPM)."),
    Place("<function>/msi_irqs/<N>", "0444", "`msi` or `msix`: an interrupt that a client of vfio-pci has."),
    Place("<function>/virtfn<N>", LINK, "To a virtual function."),
)
