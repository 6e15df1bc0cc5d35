# SPDX-License-Identifier: Apache-2.0
"""A program that hears uevents by plain netlink sockets, for tests of `vfsfuse run --udev`.

`heard_by(BODY)` is the text of a Python program: it listens to both groups, runs BODY, in which `kernel` and
`udev` are the listeners, and prints as JSON what BODY puts into `result`.  Source: netlink(7).
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.commands import vfsfuse

UUID = "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e0a"
GPU = "/sys/bus/pci/devices/0000:86:00.0"
LISTENER = f"""
import json, os, select, socket, struct, subprocess, sys, time
UUID, GPU = {UUID!r}, {GPU!r}
class Listener:
    def __init__(self, group, room=8 << 20):
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind((0, group))
    def hear(self, flags=0):
        "One datagram, its sender, its groups and the user that it comes from."
        data, (credentials,), _, (sender, groups) = self.socket.recvmsg(1 << 16, 64, flags)
        return data, sender, groups, struct.unpack('3i', credentials[2])[1]
    def waiting(self):
        "All that has come."
        heard = []
        while select.select([self.socket], [], [], 0)[0]:
            heard.append(self.hear()[0])
        return heard
    def until(self, *wanted):
        "What comes up to the event that has all of these texts."
        heard = []
        while not heard or not all(text.encode() in heard[-1] for text in wanted):
            assert select.select([self.socket], [], [], 60)[0], (wanted, heard)
            heard.append(self.hear()[0])
        return heard
def properties(datagram):
    begin = struct.unpack_from('I', datagram, 16)[0] if datagram.startswith(b'libudev') else 0
    lines = datagram[begin:].decode().rstrip('\\0').split('\\0')
    return dict(line.split('=', 1) for line in lines if '=' in line)
def write(path, text):
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, text.encode())
    os.close(fd)
def create():
    write(GPU + '/mdev_supported_types/vgpu-8/create', UUID)
def remove():
    write(GPU + '/' + UUID + '/remove', '1')
kernel, udev, result = Listener(1), Listener(2), None
"""


def program(body: str) -> str:
    """The text of the program."""
    return f"{LISTENER}{body}\nprint(json.dumps(result))\n"


def heard_by(body: str, *options: str) -> Any:
    """What the program finds, which is run with `options` of `vfsfuse run`."""
    return found(vfsfuse("run", "--udev", *options, "--", sys.executable, "-c", program(body)))


def found(done: subprocess.CompletedProcess[str]) -> Any:
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)
