# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse run --udev`: a lab's uevents reach programs as the kernel's and as udev's, in that run alone."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, run, vfsfuse
from tests.labs import MountedLab
from tests.tool import SYSTEM_PYTHON, need, need_pyudev
from tests.uevents import GPU, UUID, found, heard_by, program

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
    head, *rest = heard_by(body)
    assert head.startswith("change@/devices/pci") and head.endswith("/0000:86:00.0")
    assert rest == [0, 1, 0, True, 2, 0, b"libudev\0".hex() + "feedcafe", True, "0" * 16]


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
    device = monitor.poll(timeout=60)  # None for an event of another subsystem, too
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
subprocess.run(["udevadm", "settle", "--timeout=60"], check=True)
result = len(kernel.waiting()), len(udev.waiting())
"""
    assert heard_by(body) == [300, 300]


def test_udevadm_triggers_and_waits() -> None:
    need("udevadm", "udev")
    script = f"""
echo {UUID} >{GPU}/mdev_supported_types/vgpu-8/create
udevadm wait --timeout=60 {GPU} {GPU}/{UUID} /sys/class/misc/vfio /sys/class/iommu/dmar0
udevadm trigger --settle --subsystem-match=pci
udevadm control --ping --timeout=60
udevadm info -q property -p {GPU}/{UUID} | grep USEC_INITIALIZED
"""
    done = vfsfuse("run", "--udev", "--", "sh", "-euc", script)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout.split("=")[1]) > 0


def test_udev_finds_devices_by_their_nodes_with_stat_paths() -> None:
    need("udevadm", "udev")
    script = f"""
echo {UUID} >{GPU}/mdev_supported_types/vgpu-8/create
group=$(basename $(readlink {GPU}/{UUID}/iommu_group))
udevadm wait --timeout=60 /dev/iommu /dev/vfio/$group
udevadm info -q property -n /dev/vfio/$group | grep -x DEVNAME=/dev/vfio/$group
udevadm info -q path -n /dev/iommu
"""
    done = vfsfuse("run", "--udev", "--stat-paths", "--", "sh", "-euc", script)
    assert (done.returncode, done.stderr) == (0, "")
    name, path = done.stdout.splitlines()
    assert name.startswith("DEVNAME=/dev/vfio/") and path == "/devices/virtual/misc/iommu"


def test_the_network_is_the_programs_own() -> None:
    script = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(socket.if_nameindex());"
    script += "socket.create_connection(s.getsockname())"
    done = vfsfuse("run", "--udev", "--", sys.executable, "-c", script)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "[(1, 'lo')]\n")


def test_sys_shows_the_interfaces_of_that_network() -> None:
    done = vfsfuse("run", "--udev", "--", "ls", "/sys/class/net", "/sys/devices/virtual/net")
    if os.path.ismount("/sys/class/net"):
        pytest.skip("/sys/class/net is covered here, so Linux refuses another sysfs")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["/sys/class/net:", "lo", "/sys/devices/virtual/net:", "lo"]


def test_events_of_that_network_are_heard_as_well() -> None:
    need("ip", "iproute2")
    body = """
for words in (["down"], ["name", "other"]):
    subprocess.run(["ip", "link", "set", "lo", *words], check=True)
result = [properties(listener.until("ACTION=move")[-1]) for listener in (kernel, udev)]
"""
    for event in heard_by(body):
        assert event["INTERFACE"] == "other" and event["DEVPATH_OLD"] == "/devices/virtual/net/lo"


# ---- nobody else hears, and nobody else is heard ----


@needs.root("a device of the machine gets a uevent from root")
def test_no_event_of_the_machine_is_heard() -> None:
    body = """
print(flush=True)
sys.stdin.readline()
write(GPU + "/uevent", "change")
result = [properties(each)["DEVPATH"] for each in (*kernel.until("SYNTH_UUID"), *udev.until("SYNTH_UUID"))]
"""
    with running(body) as process:
        Path("/sys/class/mem/null/uevent").write_text("change")
        assert {os.path.basename(path) for path in told(process)} == {"0000:86:00.0"}


def test_no_event_of_the_lab_is_heard_outside() -> None:
    body = """
print(flush=True)
sys.stdin.readline()
create()
subprocess.run(["udevadm", "settle", "--timeout=60"], check=True)
result = len(kernel.waiting()), len(udev.waiting())
"""
    need("udevadm", "udev")
    outside = [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15) for _ in range(2)]
    for group, listener in enumerate(outside, 1):
        listener.bind((0, group))
        listener.setblocking(False)
    with running(body) as process:
        assert told(process) == [4, 4]
    for listener in outside:
        with contextlib.suppress(BlockingIOError):
            while True:  # the machine may have events of its own
                assert UUID.encode() not in listener.recv(1 << 16)
        listener.close()


OWN_NAMESPACE = """
import os
from vfsfuse.run import syscalls, ueventsocket
syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNET)
try:
    ueventsocket.UeventSocket(ueventsocket.open_socket())
except ueventsocket.OtherNamespace:
    print("refused")
"""


def test_no_event_is_sent_in_ones_own_network_namespace() -> None:
    done = run([sys.executable, "-c", OWN_NAMESPACE], PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "refused\n")


@needs.open_fuse
def test_an_ordinary_user_hears_the_same() -> None:
    body = """
create(); remove()
result = [[len(listener.until("remove@" if listener is kernel else "ACTION=remove", UUID + "\\0")),
           listener is kernel] for listener in (kernel, udev)]
"""
    prefix = [] if os.geteuid() else [sys.executable, "-m", "tests.ordinary_user"]
    command = [*prefix, *VFSFUSE, "run", "--udev", "--", sys.executable, "-c", program(body)]
    assert found(run(command, PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1")) == [[8, True], [8, False]]


# ---- /run/udev ----

WITHOUT_RUN_UDEV = """
mount -t tmpfs tmpfs /run
mkdir /run/kept
echo text >/run/kept/file
ln -s kept /run/link
"""


def test_a_machine_without_udev_gains_nothing() -> None:
    """What else is in /run stays.  A newer libmount makes /run/mount, for notes of its own."""
    script = "ls -I mount /run; echo =; cat /run/link/file; ls /run/udev; ls /run/udev/data | grep ^c; echo ="
    inner = shlex.join([*VFSFUSE, "run", "--udev", "--", "sh", "-euc", script])
    outer = f"{WITHOUT_RUN_UDEV}{inner}; ls -I mount /run"
    done = run(["unshare", "-m" if os.geteuid() == 0 else "-rm", "sh", "-euc", outer], PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stderr) == (0, "")
    inside, shown, outside = (part.split() for part in done.stdout.split("="))
    assert (inside, outside) == (["kept", "link", "udev"], ["kept", "link"])
    assert shown == ["text", "control", "data", "c10:196", "c10:256"]


def test_data_has_the_devices_that_the_lab_has() -> None:
    body = """
def data(): return sorted(os.listdir("/run/udev/data"))
before = data()
create(); udev.until("ACTION=bind")
during = data()
remove(); udev.until("ACTION=remove", "SUBSYSTEM=mdev")
result = before, sorted(set(during) - set(before)), data() == before
"""
    before, new, same = heard_by(body)
    assert {"+pci:0000:86:00.0", "+iommu:dmar0", "+mtty:mtty", "c10:196", "n1"} <= {*before}
    assert new == [f"+mdev:{UUID}", "c510:0", "c511:2"] and same
    assert not [name for name in before if name.startswith(("+misc:", "+mdev_bus:", "+vgpu:"))]


# ---- listeners, clients and servers that do not do their part ----


def test_a_slow_listener_loses_its_own_events_alone() -> None:
    body = """
slow = Listener(2, room=1)
for _ in range(500):
    write(GPU + "/uevent", "change")
    udev.hear()
result = 0
try:
    while True:
        slow.hear(socket.MSG_DONTWAIT)
except OSError as error:
    result = error.errno
"""
    assert heard_by(body) == errno.ENOBUFS


def test_more_events_than_wait_in_the_lab_do_not_stop_the_relay() -> None:
    body = """
fd = os.open(GPU + "/uevent", os.O_WRONLY)
for _ in range(6000):
    os.pwrite(fd, b"change", 0)
write(GPU + "/uevent", "move")
for listener in (kernel, udev):
    try:
        listener.until("ACTION=move")
    except OSError:  # it has lost some
        listener.until("ACTION=move")
result = True
"""
    assert heard_by(body, "--quiet")  # it may say that some are lost


def test_settle_is_answered_whatever_others_do_at_the_control_socket() -> None:
    need("udevadm", "udev")
    body = """
def talk():
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.connect("/run/udev/control")
    return made
silent, broken, large, gone = [talk() for _ in range(4)]
broken.send(b"x")
large.send(b"udev-252".ljust(16, b"\\0") + struct.pack("II", 0xdeadbeef, 7) + bytes(30000))
gone.close()
def refused():
    try:
        return talk().recv(1) == b""
    except OSError:
        return True
talks = [talk() for _ in range(60)]
subprocess.run(["udevadm", "settle", "--timeout=60"], check=True)
result = broken.recv(1) == b"", select.select([silent, large], [], [], 0)[0]
"""
    assert heard_by(body) == [True, []]


def test_an_event_that_the_kernel_refuses_is_left_out(tmp_path: Path) -> None:
    """Linux takes 2,048 bytes of a program, and the first line of the event is among them."""
    body = f"""
write(GPU + "/uevent", "change {UUID} A=1")
(event,), _ = [listener.until("SYNTH_ARG_A") for listener in (kernel, udev)]
variables = event.split(b"\\0", 1)[1]
write(GPU + "/uevent", "change {UUID} A=" + "1" * (2048 - len(variables) - 9))
write(GPU + "/uevent", "move")
result = [properties(listener.hear()[0])["ACTION"] for listener in (kernel, udev)]
"""
    assert heard_by(body, "--log", str(tmp_path / "log")) == ["move", "move"]
    assert "udev: the kernel does not send an event: Invalid argument" in (tmp_path / "log").read_text()


def test_a_server_that_dies_leaves_the_rest(tmp_path: Path) -> None:
    need("udevadm", "udev")
    log = tmp_path / "log"
    script = f"""
grep -o 'pid [0-9]*' {log} | cut -d' ' -f2 | xargs kill -9
until ! ls /sys 2>/dev/null; do sleep 0.02; done
udevadm settle --timeout=60 2>/dev/null && echo settled
"""
    done = vfsfuse("run", "--udev", "--log", log, "--", "sh", "-c", script)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["settled"]), done.stderr


FAILING = """
import sys
from vfsfuse.cli import main
from vfsfuse.run import udev
udev.to_libudev = lambda properties: properties["NO_SUCH"]
sys.exit(main())
"""


def test_a_relay_that_fails_says_so() -> None:
    script = f"echo change >{GPU}/uevent; read line"
    command = [sys.executable, "-c", FAILING, "run", "--udev", "--", "sh", "-c", script]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stderr=pipe, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        process.communicate("\n", timeout=60)
    assert line == "vfsfuse: run: KeyError: 'NO_SUCH': no uevent of the lab comes from now on\n"


def test_no_network_namespace_is_one_line() -> None:
    command = shlex.join([*VFSFUSE, "run", "--udev", "--", "true"])
    script = f"echo 0 >/proc/sys/user/max_net_namespaces; {command}"
    done = run(["unshare", "-rm", "sh", "-euc", script], PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("vfsfuse: run: making a network namespace for --udev: ")
    assert "user.max_net_namespaces" in done.stderr and done.stderr.count("\n") == 1


# ---- with other options ----


def test_each_run_in_a_mounted_lab_hears(fresh_lab: MountedLab) -> None:
    body = """
print(flush=True)
sys.stdin.readline()
result = len(udev.until("ACTION=bind", UUID))
"""
    options = ("--mount", str(fresh_lab.path))
    with running(body, *options) as one, running(body, *options) as two:
        (fresh_lab.gpu / "mdev_supported_types/vgpu-8/create").write_text(UUID)
        assert (told(one), told(two)) == (4, 4)


@pytest.mark.parametrize("words", [("run", "--trace"), ("trace", "-o")], ids=["run", "trace"])
def test_a_program_that_is_traced_hears_as_well(words: tuple[str, str], tmp_path: Path) -> None:
    text = program("create(); result = len(udev.until('ACTION=bind'))")
    done = vfsfuse(*words, tmp_path / "trace", "--udev", "--", sys.executable, "-c", text)
    assert found(done) == 4
    assert "create" in (tmp_path / "trace").read_text()


@contextlib.contextmanager
def running(body: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The program, which has printed a line, and waits for one."""
    command = [*VFSFUSE, "run", "--udev", *options, "--", sys.executable, "-c", program(body)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stdout.readline() == "\n"
        try:
            yield process
        finally:
            process.kill()


def told(process: subprocess.Popen[str]) -> Any:
    """What it finds when it may go on."""
    out, err = process.communicate("\n", timeout=60)
    return found(subprocess.CompletedProcess(process.args, process.returncode, out, err))
