# SPDX-License-Identifier: Apache-2.0
"""Debian's QEMU, unmodified, as a child of the test: gone with its context. It starts under `vfsfuse run`, or
is given opened descriptors of a lab."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.commands import ROOT, VFSFUSE
from tests.labs import MountedLab, Vgpu
from tests.qemu import programs
from tests.qemu.channel import Channel
from tests.qemu.console import Console
from tests.qemu.guest import Guest
from tests.qemu.qmp import Qmp
from tests.qemu.qtest import Qtest

BASE = ["-smp", "1", "-m", "256", "-no-reboot"]
BARE = ["-nodefaults", "-no-user-config", "-vga", "none", "-display", "none"]
KERNEL_ARGUMENTS = "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check vt.global_cursor_default=0"
END_SECONDS = 60


def in_lab(lab: MountedLab) -> list[str]:
    """The start of a command that sees `lab`."""
    return [*VFSFUSE, "run", "--mount", str(lab.path), "--"]


def vfio(device: Vgpu | str, slot: int, **options: str) -> list[str]:
    """QEMU's options for a device of the lab (one yet to be made: by its name) at PCI address 00:`slot`.0;
    its id there is dev<slot>."""
    name = device if isinstance(device, str) else device.name
    # a display cannot be plugged out: only the device of this name has one
    driver = "vfio-pci-nohotplug" if "display" in options else "vfio-pci"
    path = f"sysfsdev=/sys/bus/mdev/devices/{name}"
    more = [f"{key.replace('_', '-')}={value}" for key, value in options.items()]
    return ["-device", ",".join([driver, path, f"id=dev{slot}", f"addr={slot:#x}", *more])]


class Machine:
    """A QEMU: with a guest it boots, without one it is paused and `qtest` drives it.

    `prefix` is the command that runs QEMU, as of `in_lab`; `options` are QEMU's, `arguments` the kernel's.
    `program` is another QEMU than the system's. QEMU takes `descriptors` over: this process has them no more.
    """

    def __init__(
        self,
        prefix: Sequence[str],
        options: Sequence[str],
        guest: Guest | None = None,
        arguments: str = "",
        *,
        program: str = "",
        accel: str = "tcg",
        descriptors: Sequence[int] = (),
    ) -> None:
        start = boot(guest, arguments) if guest else ["-S"]
        self._program = program or programs.system()
        self._command = [*prefix, self._program, "-accel", accel, *BASE, *BARE, *options, *start]
        self._descriptors = descriptors
        self._booting = guest is not None
        self._channels = {name: Channel(self.explain) for name in ("console", "qmp", "qtest")}
        self._stack = ExitStack()
        for channel in self._channels.values():
            self._stack.callback(channel.close)
        self._log = os.memfd_create("log of QEMU")
        self._stack.callback(os.close, self._log)
        self._process: subprocess.Popen[bytes] | None = None
        self.console = Console(self._channels["console"])
        self.qmp = Qmp(self._channels["qmp"])
        self.qtest = Qtest(self._channels["qtest"])

    def __enter__(self) -> Machine:
        sockets = [channel.peer.fileno() for channel in self._channels.values()]
        for name, channel in self._channels.items():
            self._command += ["-chardev", f"socket,id={name},fd={channel.peer.fileno()}"]
        self._command += ["-serial", "chardev:console", "-mon", "chardev=qmp,mode=control"]
        self._command += [] if self._booting else ["-qtest", "chardev:qtest", "-qtest-log", "none"]
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stderr=self._log,
            pass_fds=[*sockets, *self._descriptors],
            cwd=ROOT,
        )
        for descriptor in self._descriptors:
            os.close(descriptor)
        for channel in self._channels.values():
            channel.handed_over()
        try:
            self.qmp.negotiate()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End QEMU, kindly while it answers."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._stack.close()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, and the end of the process."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(END_SECONDS)

    def explain(self) -> str:
        """The state of the process and all that it has written to standard error."""
        status = self._process.poll() if self._process else None
        # not by seek(): QEMU writes where the file position is, which is ours as well
        log = os.pread(self._log, 1 << 20, 0).decode(errors="replace")
        return f"{self._program}: {'running' if status is None else f'ended with {status}'}\n{log}"

    def screendump(self, slot: int, folder: Path) -> Path:
        """The picture on the display of dev<slot>, as QEMU has it, in a PPM file in `folder`."""
        path = folder / f"dev{slot}.ppm"
        self.qmp.execute("screendump", filename=str(path), device=f"dev{slot}", head=0)
        return path


def boot(guest: Guest, arguments: str) -> list[str]:
    append = f"{KERNEL_ARGUMENTS} {arguments}"
    return ["-kernel", str(guest.kernel), "-initrd", str(guest.initramfs), "-append", append]
