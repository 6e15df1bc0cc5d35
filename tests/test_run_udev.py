# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse run --udev`: a lab's uevents reach programs as the kernel's and as udev's, in that run alone."""

from __future__ import annotations

import os
import sys

import pytest

from tests.commands import vfsfuse
from tests.tool import SYSTEM_PYTHON, need, need_pyudev
from tests.uevents import GPU, UUID, heard_by

LIFE = ["add", "add", "add", "bind", "remove", "remove", "unbind", "remove"]


@pytest.fixture(scope="module")
def life() -> dict[str, list[dict[str, str]]]:
    """The events of the life of a vGPU, as both groups are told of them."""
    body = """
create(); remove()
result = {"kernel": kernel.until("remove@", UUID + "\\0"), "udev": []}
while len(result["udev"]) < len(result["kernel"]):
    result["udev"].append(udev.hear()[0])
result = {name: [properties(each) for each in heard] for name, heard in result.items()}
"""
    heard: dict[str, list[dict[str, str]]] = heard_by(body)
    return heard


def test_the_life_of_a_vgpu_is_heard_in_order(life: dict[str, list[dict[str, str]]]) -> None:
    for group in ("kernel", "udev"):
        assert [event["ACTION"] for event in life[group]] == LIFE
        kinds = [event["SUBSYSTEM"] for event in life[group]]
        assert kinds == ["mdev", "vfio", "vfio-dev", "mdev", "vfio-dev", "vfio", "mdev", "mdev"]
        assert life[group][0]["DEVPATH"].endswith(f"/0000:86:00.0/{UUID}")
        numbers = [int(event["SEQNUM"]) for event in life[group]]
        assert numbers == sorted(set(numbers))


def test_udev_adds_to_what_the_kernel_says(life: dict[str, list[dict[str, str]]]) -> None:
    for kernel, udev in zip(life["kernel"], life["udev"], strict=True):
        assert int(udev.pop("USEC_INITIALIZED")) > 0
        if "DEVNAME" in kernel:
            assert kernel["DEVNAME"].startswith("vfio/")
            kernel["DEVNAME"] = f"/dev/{kernel['DEVNAME']}"
        assert udev == kernel


def test_each_group_has_its_sender_and_its_form() -> None:
    """Programs trust the port 0 in the kernel's group, and root in both."""
    body = """
write(GPU + "/uevent", "change")
(first, *of_kernel), (second, *of_udev) = kernel.hear(), udev.hear()
result = [first.split(b"\\0")[0].decode(), *of_kernel, of_udev[0] != 0, *of_udev[1:], second[:12].hex()]
result += struct.unpack_from("III", second, 12) == (40, 40, len(second) - 40), second[32:40].hex()
"""
    path = os.path.realpath(GPU).removeprefix("/sys")
    found = heard_by(body)
    assert found[0].startswith("change@/devices/pci") and found[0].endswith("/0000:86:00.0"), path
    assert found[1:] == [0, 1, 0, True, 2, 0, b"libudev\0".hex() + "feedcafe", True, "0" * 16]


def test_a_synthetic_event_arrives_with_what_it_says() -> None:
    body = f"""
write(GPU + "/uevent", "change {UUID} A=1")
result = [properties(listener.hear()[0]) for listener in (kernel, udev)]
"""
    for event in heard_by(body):
        assert event["SYNTH_UUID"] == UUID and event["SYNTH_ARG_A"] == "1" and event["ACTION"] == "change"


def test_udevadm_monitor() -> None:
    need("udevadm", "udev")
    script = f"""
udevadm monitor --kernel --udev --subsystem-match=mdev >"$1" &
until grep -q KERNEL "$1"; do sleep 0.02; done
echo {UUID} >{GPU}/mdev_supported_types/vgpu-8/create
echo 1 >{GPU}/{UUID}/remove
until grep -q '^UDEV.* remove' "$1"; do sleep 0.02; done
kill $!
cat "$1"
"""
    done = vfsfuse("run", "--udev", "--", "sh", "-euc", f'set -- "$(mktemp)"\n{script}rm "$1"')
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.replace("[", " ").splitlines() if f"/{UUID}" in line]
    for group in ("KERNEL", "UDEV"):
        told = [(line[2], line[4]) for line in lines if line[0] == group]
        assert told == [(action, "(mdev)") for action in ("add", "bind", "unbind", "remove")]


PYUDEV = f"""
import pyudev, sys
monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source=sys.argv[1])
monitor.filter_by(subsystem=sys.argv[2])
monitor.start()
for action, file in (("{UUID}", "mdev_supported_types/vgpu-8/create"), ("1", "{UUID}/remove")):
    with open(f"{GPU}/{{file}}", "w") as store:
        store.write(action)
while True:
    device = monitor.poll(timeout=20)  # None for an event of another subsystem, too
    if device is not None:
        print(device.action, device.sys_name, device.device_node)
        if device.action == "remove":
            break
"""


@pytest.mark.parametrize("source", ["udev", "kernel"])
@pytest.mark.parametrize("subsystem", ["mdev", "vfio-dev"])
def test_pyudev_hears_what_it_filters_by(source: str, subsystem: str) -> None:
    """The filter of udev's events is the kernel's work, by the hash of the subsystem."""
    need_pyudev()
    command = (SYSTEM_PYTHON, "-W", "ignore", "-c", PYUDEV, source, subsystem)
    done = vfsfuse("run", "--udev", "--", *command)
    assert (done.returncode, done.stderr) == (0, "")
    heard = [line.split() for line in done.stdout.splitlines()]
    if subsystem == "mdev":
        assert heard == [[action, UUID, "None"] for action in ("add", "bind", "unbind", "remove")]
    else:
        assert heard == [[action, "vfio0", "/dev/vfio/devices/vfio0"] for action in ("add", "remove")]


def test_settle_waits_for_all_events() -> None:
    need("udevadm", "udev")
    body = """
for _ in range(300):
    write(GPU + "/uevent", "change")
subprocess.run(["udevadm", "settle", "--timeout=20"], check=True)
result = len(kernel.waiting()), len(udev.waiting())
"""
    assert heard_by(body) == [300, 300]


def test_udevadm_triggers_and_waits() -> None:
    need("udevadm", "udev")
    script = f"""
echo {UUID} >{GPU}/mdev_supported_types/vgpu-8/create
udevadm wait --timeout=20 {GPU} {GPU}/{UUID} /sys/class/misc/vfio /sys/class/iommu/dmar0
udevadm trigger --settle --subsystem-match=pci
udevadm control --ping --timeout=20
udevadm info -q property -p {GPU}/{UUID} | grep USEC_INITIALIZED
"""
    done = vfsfuse("run", "--udev", "--", "sh", "-euc", script)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout.split("=")[1]) > 0


def test_the_network_is_the_programs_own() -> None:
    script = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(socket.if_nameindex());"
    script += "socket.create_connection(s.getsockname())"
    done = vfsfuse("run", "--udev", "--", sys.executable, "-c", script)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "[(1, 'lo')]\n")
