# SPDX-License-Identifier: Apache-2.0
"""libvirt's domains, unmodified: a libvirtd with QEMU's driver in a `vfsfuse run --udev` of a mounted lab
(examples/libvirt/run.sh), and a shell beside it, which runs virsh."""

from __future__ import annotations

import glob
import os
import pwd
import re
import resource
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE
from tests.labs import MountedLab
from tests.qemu import programs
from tests.qemu.channel import Channel
from tests.qemu.console import Console

SCRIPT = ROOT / "examples/libvirt/run.sh"
DRIVER = "/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so"
USER = "libvirt-qemu"
PINNED_KIB = 8192
"""What a domain without a guest locks at most, when a PCI function's IOMMU maps all of its memory."""

PORTS = "<controller type='pci' index='0' model='pcie-root'/>" + 2 * (
    "<controller type='pci' model='pcie-root-port'/>"
)
HOTPLUG = "pc-q35-6.0"
"""A machine whose ports are plugged without a guest: since 6.1, ACPI does it, which a guest has to run."""

OPEN_KVM = """
if [ -e /dev/kvm ]; then
    mount -t tmpfs -o mode=755 tests "$0"
    mknod -m 666 "$0/kvm" c 10 232
    ! mountpoint -q /dev/kvm || umount /dev/kvm  # libvirt moves each mount in /dev, and cannot do so twice
    mount --bind "$0/kvm" /dev/kvm
fi
exec "$@"
"""
"""Opens /dev/kvm to libvirt's user, as distributions do: if it can be opened by root alone, libvirt looks for
KVM anew at each call, which takes a second."""


def need() -> None:
    """Skip the test where libvirt runs no domains."""
    needs.be_root("libvirtd's system instance is root's")
    if not all(map(shutil.which, ("libvirtd", "virsh", "mdevctl"))) or not glob.glob(DRIVER):
        pytest.skip("needs mdevctl, libvirt-clients, libvirt-daemon and libvirt-daemon-driver-qemu")
    try:
        pwd.getpwnam(USER)
    except KeyError:
        pytest.skip(f"needs the user {USER}: apt-get install libvirt-daemon-system")
    programs.system()
    limit = locked_kib()
    if limit is not None and limit < PINNED_KIB:
        pytest.skip(f"root may not lock more than {limit} KiB of memory, and lacks CAP_SYS_RESOURCE")


def locked_kib() -> int | None:
    """The limit of locked memory where root may not raise it, as in a container; None elsewhere."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if limit == resource.RLIM_INFINITY or needs.has_capability("CAP_SYS_RESOURCE"):
        return None
    return limit >> 10


def domain(
    name: str, *devices: str, kind: str = "qemu", machine: str = "pc", memory: int = 4, system: str = ""
) -> str:
    """The XML of a domain with `memory` MiB, under TCG or, of the kind "kvm", under KVM.  `system` goes into
    its <os>."""
    limit = locked_kib()
    tuning = f"<memtune><hard_limit unit='KiB'>{limit}</hard_limit></memtune>" if limit is not None else ""
    return f"""<domain type='{kind}'>
      <name>{name}</name><memory unit='MiB'>{memory}</memory>{tuning}<vcpu>1</vcpu>
      <os><type arch='x86_64' machine='{machine}'>hvm</type>{system}</os><features><acpi/></features>
      <devices>
        <emulator>{shutil.which(programs.system())}</emulator>
        <controller type='usb' model='none'/><memballoon model='none'/><video><model type='none'/></video>
        {"".join(devices)}
      </devices>
    </domain>"""


def mdev(uuid: str, slot: int = 0) -> str:
    """A mediated device as an element of a domain, in this slot of the domain's PCI bus if it is given."""
    where = f"<address type='pci' bus='0' slot='{slot}'/>" if slot else ""
    source = f"<source><address uuid='{uuid}'/></source>"
    return f"<hostdev mode='subsystem' type='mdev' model='vfio-pci'>{source}{where}</hostdev>"


def pci(address: str, managed: str = "yes") -> str:
    """A PCI function as an element of a domain."""
    domain, bus, rest = address.split(":")
    slot, function = rest.split(".")
    where = f"domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'"
    source = f"<source><address {where}/></source>"
    return f"<hostdev mode='subsystem' type='pci' managed='{managed}'>{source}</hostdev>"


class Libvirt:
    """The libvirtd, as a context.  Its files are in `folder`."""

    def __init__(self, lab: MountedLab, folder: Path, *options: str) -> None:
        """`options` are further ones of `run`."""
        self.lab, self._folder, self._options = lab, folder, options
        self._log = folder / "log"
        self._channel = Channel(self._explain)
        self.shell = Console(self._channel)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Libvirt:
        kvm = self._folder / "kvm"
        kvm.mkdir()
        command = [*VFSFUSE, "run", "--udev", *self._options, "--mount", str(self.lab.path), "--"]
        command += ["sh", "-c", OPEN_KVM, str(kvm), str(SCRIPT), "sh"]
        ours = self._channel.peer.fileno()
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(command, stdin=ours, stdout=ours, stderr=log, cwd=ROOT)
        self._channel.handed_over()
        self.shell.check("true")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._channel.close()
        self._process.wait(60)

    def _explain(self) -> str:
        return self._log.read_text(errors="replace")

    def virsh(self, *arguments: str) -> str:
        """What virsh prints; it has to succeed."""
        return self.shell.check(f"virsh -q {' '.join(arguments)}").strip()

    def refused(self, *arguments: str) -> str:
        """What virsh says of a failure; it has to fail."""
        output, status = self.shell.run(f"virsh -q {' '.join(arguments)}")
        assert status, output
        return output

    def restart(self) -> None:
        """End libvirtd and start another; domains go on."""
        self.shell.check("kill $(cat /run/libvirt/pid)")
        self.shell.check("while [ -e /run/libvirt/pid ]; do sleep 0.05; done")
        self.shell.check("libvirtd --daemon --pid-file /run/libvirt/pid")

    def file(self, name: str, xml: str) -> str:
        """The path of a file with this XML."""
        path = self._folder / f"{name}.xml"
        path.write_text(xml)
        return str(path)

    def define(
        self,
        name: str,
        *devices: str,
        kind: str = "qemu",
        machine: str = "pc",
        memory: int = 4,
        system: str = "",
    ) -> None:
        """Define a domain (see `domain`)."""
        xml = domain(name, *devices, kind=kind, machine=machine, memory=memory, system=system)
        self.virsh("define", self.file(name, xml))

    def drop(self, name: str) -> None:
        """Destroy a domain if it runs, and forget it."""
        self.shell.run(f"virsh -q destroy {name}")
        self.virsh("undefine", name)

    def hostdevs(self, name: str) -> list[ElementTree.Element]:
        """The devices of the lab that a domain has."""
        return ElementTree.fromstring(self.virsh("dumpxml", name)).findall("devices/hostdev")

    def pci_ids(self, name: str) -> list[str]:
        """Vendor and device of what QEMU has on the domain's PCI buses."""
        return re.findall(r" pci id (\S+) ", self.virsh("qemu-monitor-command", name, "--hmp", "info qtree"))

    def user_of(self, name: str) -> str:
        """The user that a domain's QEMU runs as."""
        pid = self.shell.check(f"cat /run/libvirt/qemu/{name}.pid").strip()
        return pwd.getpwuid(int(self.shell.check(f"stat -c %u /proc/{pid}"))).pw_name


def driver(function: Path) -> str:
    """The driver of a PCI function, empty when it has none."""
    link = function / "driver"
    return os.path.basename(os.readlink(link)) if link.is_symlink() else ""
