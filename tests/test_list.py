# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse list`: what is in a mounted lab, and which processes have its devices open."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, one_write, vfsfuse
from tests.labs import MountedLab
from tests.schemas import checked
from tests.waiting import wait_for
from vfsfuse.asking import Refusal
from vfsfuse.monitor.files import in_order, printable
from vfsfuse.monitor.inventory import gather, inventory
from vfsfuse.monitor.listing import Contents, as_json, lines
from vfsfuse.monitor.tables import cut, size, table

HOLD = """
import ctypes, os, sys
from tests.iommufd.bound import open_bound
ctypes.CDLL(None).prctl(15, os.fsencode(sys.argv[1]), 0, 0, 0)
held = [open_bound(path) if "/devices/" in path else os.open(path, os.O_RDWR) for path in sys.argv[2:]]
print(flush=True)
sys.stdin.read()
"""
PR_SET_NAME = 15


def listed(lab: MountedLab) -> dict[str, Any]:
    """The object, which is as its schema says."""
    done = vfsfuse("list", "--json", "--mount", lab.path)
    assert (done.returncode, done.stderr) == (0, "")
    return checked(done.stdout, "list")


def text_of(lab: MountedLab) -> str:
    done = vfsfuse("list", "--mount", lab.path)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def row(text: str, name: str) -> dict[str, str]:
    """The row of a table that begins with `name`, by the headings.  Empty without one."""
    heading = ""
    for line in text.splitlines():
        if line[:1].isupper() and line.split("  ")[0].isupper():
            heading = line
        elif line.startswith(f"{name} "):
            starts = [
                at for at in range(len(heading)) if heading[at - 1 : at] in ("", " ") and heading[at] != " "
            ]
            words = [word.strip() for word in heading.split("  ") if word.strip()]
            assert len(words) <= len(starts)
            return dict(zip(words, [cell.strip() for cell in line.split("  ") if cell.strip()], strict=True))
    return {}


@contextlib.contextmanager
def holding(comm: str, *paths: Path) -> Iterator[int]:
    """A process of this name has files open: gives its pid."""
    command = [sys.executable, "-c", HOLD, comm, *map(str, paths)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"\n"
        try:
            yield client.pid
        finally:
            client.kill()


def test_the_built_in_lab(lab: MountedLab) -> None:
    with lab.create("vgpu-4") as vgpu:
        found = listed(lab)
        assert found["lab"] == str(lab.path)
        gpu, *virtual = found["parents"]
        assert (gpu["name"], gpu["framework"], gpu["driver"], gpu["vgpus"]) == (
            "0000:86:00.0",
            "mdev",
            "vgpu",
            1,
        )
        assert gpu["memory"] - gpu["free"] == 64 << 20
        left = {each["name"]: each["left"] for each in gpu["types"]}
        assert left == {"vgpu-1": 0, "vgpu-2": 1, "vgpu-4": 3, "vgpu-8": 6}
        assert [each["name"] for each in virtual] == ["mbochs", "mdpy", "mtty"]
        (one,) = found["vgpus"]
        assert one["name"].startswith("vgpu") and one["device"] == one["uuid"] == vgpu.name
        assert (one["type"], one["parent"], one["group"]) == ("vgpu-4", "0000:86:00.0", vgpu.group)
        assert one["nodes"] == [f"dev/vfio/{vgpu.group}", f"dev/vfio/devices/{vgpu.vfio}"]
        assert all((lab.path / node).exists() for node in one["nodes"])
        assert (one["state"], one["clients"]) == ("bound", [])
        bridge, function = found["functions"]
        assert (bridge["class_code"], bridge["driver"], bridge["totalvfs"]) == ("060400", "pcieport", None)
        assert (function["address"], function["vendor"], function["device"], function["driver"]) == (
            *("0000:86:00.0", "1234", "86f0"),
            "vgpu",
        )
        assert (function["class_code"], function["vfs"], function["physfn"]) == ("030000", 0, None)
        text = text_of(lab)
        assert row(text, one["name"])["UUID"] == vgpu.name
        assert row(text, "vgpu-4") == {
            **{"TYPE": "vgpu-4", "PARENT": "0000:86:00.0", "LEFT": "3", "MEMORY": "64M"},
            "DESCRIPTION": "virtual GPU, 64 MB video memory",
        }
    assert listed(lab)["vgpus"] == []


def test_states_and_virtual_functions(fresh_lab: MountedLab) -> None:
    lab = fresh_lab
    vgpu = lab.create("vgpu-8")
    one_write(lab.path / "sys/class/vgpu/vgpu_start", vgpu.name)
    assert listed(lab)["vgpus"][0]["state"] == "online"
    one_write(lab.path / "sys/bus/mdev/drivers/vfio_mdev/unbind", vgpu.name)
    (unbound,) = listed(lab)["vgpus"]
    assert (unbound["state"], unbound["group"], unbound["nodes"]) == ("unbound", None, [])
    one_write(lab.gpu / "sriov_numvfs", "2")
    functions = {each["address"]: each for each in listed(lab)["functions"]}
    assert functions["0000:86:00.0"]["vfs"] == 2
    virtual = [each for each in functions.values() if each["physfn"] == "0000:86:00.0"]
    assert len(virtual) == 2 and all(each["driver"] is None for each in virtual)
    address = virtual[0]["address"]
    one_write(lab.path / f"sys/bus/pci/devices/{address}/driver_override", "vfio-pci")
    one_write(lab.path / "sys/bus/pci/drivers_probe", address)
    taken = {each["address"]: each for each in listed(lab)["functions"]}[address]
    assert taken["driver"] == "vfio-pci" and len(taken["nodes"]) == 2
    assert row(text_of(lab), address)["SR-IOV"] == "VF of 0000:86:00.0"


def test_a_gpu_with_the_framework_of_nvidia(tmp_path: Path) -> None:
    with MountedLab(tmp_path, "--config", str(ROOT / "examples/vendor_host.toml")) as lab:
        one_write(lab.gpu / "sriov_numvfs", "4")
        first = os.path.basename(os.readlink(lab.gpu / "virtfn0"))
        one_write(lab.gpu / "virtfn0/nvidia/current_vgpu_type", "1304")
        found = listed(lab)
        parent = next(each for each in found["parents"] if each["name"] == "0000:86:00.0")
        assert (parent["framework"], parent["vgpus"]) == ("nvidia", 1)
        assert {key: parent["types"][0][key] for key in ("name", "left", "memory")} == {
            "name": "1304",
            "left": None,
            "memory": None,
        }
        assert parent["types"][0]["description"] == "NVIDIA LABA48-4Q"
        (vgpu,) = found["vgpus"]
        assert (vgpu["name"], vgpu["device"], vgpu["type"], vgpu["parent"]) == (
            *(first, first, "1304"),
            "0000:86:00.0",
        )
        assert len(vgpu["nodes"]) == 2
        with holding("plugin", lab.path / vgpu["nodes"][1]) as pid:
            assert listed(lab)["vgpus"][0]["clients"] == [pid]


def test_slots(tmp_path: Path) -> None:
    with MountedLab(tmp_path, "--config", str(ROOT / "examples/server.toml")) as lab:
        slots = {each["name"]: each for each in listed(lab)["slots"]}
        assert slots["3"] == {"name": "3", "address": "0000:83:00", "functions": ["0000:83:00.0"]}
        assert row(text_of(lab), "3")["FUNCTIONS"] == "0000:83:00.0"
        assert vfsfuse("unplug", "--mount", lab.path, "3").returncode == 0
        slots = {each["name"]: each for each in listed(lab)["slots"]}
        assert slots["3"]["functions"] == []


def test_clients_of_a_device(lab: MountedLab) -> None:
    with lab.create() as vgpu, lab.create() as other:
        group = lab.path / "dev/vfio" / other.group
        with holding("busy one", vgpu.cdev) as pid, holding("grouped", group) as second:
            found = listed(lab)
            by_name = {each["device"]: each["clients"] for each in found["vgpus"]}
            assert by_name == {vgpu.name: [pid], other.name: [second]}
            clients = {each["pid"]: each for each in found["clients"]}
            assert clients[pid]["comm"] == "busy one" and clients[pid]["uid"] == os.getuid()
            assert clients[pid]["files"] == [f"vfio/devices/{vgpu.vfio}"]
            assert clients[second]["files"] == [f"vfio/{other.group}"]
            assert f"busy one ({pid})" in text_of(lab)
        wait_for(lambda: not listed(lab)["clients"])


def test_a_client_of_a_file_of_sysfs(lab: MountedLab) -> None:
    with lab.create("vgpu-8") as vgpu:
        fd = os.open(vgpu.path / "resource0", os.O_RDWR)
        try:
            found = listed(lab)
            assert found["vgpus"][0]["clients"] == [os.getpid()]
            assert found["clients"][0]["files"] == [f"{vgpu.name}/resource0"]
        finally:
            os.close(fd)


def test_the_name_of_a_client_is_no_code_for_a_terminal(lab: MountedLab) -> None:
    with lab.create() as vgpu, holding("a\x1b[2J\\\n\t\xff", vgpu.cdev) as pid:
        found = listed(lab)["clients"]
        assert found[0]["pid"] == pid and found[0]["comm"].startswith("a\x1b[2J\\\n\t")
        text = text_of(lab)
        assert r"a\x1b[2J\\\x0a\x09" in text and "\x1b" not in text
        assert all(character.isprintable() or character == "\n" for character in text)


def test_a_device_that_was_pulled_has_no_clients_under_its_old_name(fresh_lab: MountedLab) -> None:
    """Its file is still open when the name belongs to the next device."""
    lab = fresh_lab
    gone = lab.create("vgpu-8")
    with holding("old", gone.cdev) as pid:
        one_write(gone.path / "surprise_remove", "1")
        wait_for(lambda: not gone.cdev.exists())
        with lab.create("vgpu-8") as vgpu:
            found = listed(lab)
            assert [each["device"] for each in found["vgpus"]] == [vgpu.name]
            assert found["vgpus"][0]["clients"] == []
            assert pid not in [each["pid"] for each in found["clients"]]


def test_a_client_under_run_is_seen(lab: MountedLab) -> None:
    """It has a mount namespace of its own, where the lab is at /dev and /sys."""
    with lab.create() as vgpu:
        script = f"exec 3<>/dev/vfio/{vgpu.group}; echo; read end"
        command = [*VFSFUSE, "run", "--mount", str(lab.path), "--", "sh", "-c", script]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as client:
            assert client.stdout is not None and client.stdin is not None
            assert client.stdout.readline() == b"\n"
            (found,) = listed(lab)["clients"]
            assert (found["comm"], found["files"]) == ("sh", [f"vfio/{vgpu.group}"])
            client.stdin.close()


@needs.root("it becomes another user")
def test_clients_that_cannot_be_seen_are_unknown() -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # those of pytest are closed to other users
        lab = stack.enter_context(MountedLab(folder))
        vgpu = stack.enter_context(lab.create())
        pid = stack.enter_context(holding("hidden", vgpu.cdev))
        command = [sys.executable, "-m", "tests.ordinary_user", *VFSFUSE, "list", "--mount", str(lab.path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "hidden" not in done.stdout and str(pid) not in done.stdout
        lines = done.stdout.splitlines()
        assert next(line for line in lines if vgpu.name in line).endswith(" ?")
        assert lines[-1].startswith("?: ") and "cannot be looked at by this user" in lines[-1]
        command.insert(-2, "--json")
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        found = checked(done.stdout, "list")
        assert found["clients"] == [] and found["clients_unseen"] > 0


def test_devices_that_go_while_it_looks(fresh_lab: MountedLab) -> None:
    """Whatever is listed is whole, and it ends well."""
    lab = fresh_lab
    churn = """
import sys, uuid
from pathlib import Path
parent, mdevs = Path(sys.argv[1]), Path(sys.argv[2])
print(flush=True)
while True:
    names = [str(uuid.uuid4()) for _ in range(8)]
    for name in names:
        parent.write_text(name)
    for name in names:
        (mdevs / name / "remove").write_text("1")
"""
    create = lab.gpu / "mdev_supported_types/vgpu-8/create"
    command = [sys.executable, "-c", churn, str(create), str(lab.mdevs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as churning:
        assert churning.stdout is not None
        churning.stdout.readline()
        try:
            for _ in range(5):
                for vgpu in listed(lab)["vgpus"]:
                    assert vgpu["parent"] == "0000:86:00.0"
        finally:
            churning.kill()


# ---- where it is printed ----


def on_terminal(columns: int, *arguments: str | Path) -> tuple[int, str]:
    """Run the command line on a terminal of this width: the status, and what it printed."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen([*VFSFUSE, *map(str, arguments)], stdout=slave, stderr=slave, cwd=ROOT) as command:
        os.close(slave)
        printed = bytearray()
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
            while part := os.read(master, 65536):
                printed += part
    os.close(master)
    return command.returncode, printed.decode()


def of_the_lab(lines: list[str]) -> list[str]:
    """The lines without the last one on other processes, which come and go, and the empty one before it."""
    return lines[:-2] if lines[-1].startswith("?: ") else lines


def test_a_terminal_gets_lines_that_fit_and_a_pipe_gets_whole_ones(lab: MountedLab) -> None:
    with lab.create():
        whole = of_the_lab(text_of(lab).splitlines())
        assert max(map(len, whole)) > 60
        status, printed = on_terminal(60, "list", "--mount", lab.path)
        lines = of_the_lab(printed.splitlines())
        assert status == 0 and max(map(len, lines)) == 60
        assert len(lines) == len(whole)
        for shown, line in zip(lines, whole, strict=True):
            assert shown == line or (shown.endswith("...") and line.startswith(shown[:-3]))


def test_a_reader_that_closes_the_pipe_is_no_error(lab: MountedLab) -> None:
    command = f"{' '.join(VFSFUSE)} list --mount {lab.path} | head -n 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("PARENT ") and done.stderr == ""


# ---- labs that do not answer ----


def failed(*arguments: str | Path) -> str:
    """The one line on stderr."""
    done = vfsfuse(*arguments)
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("\n") == 1, done
    return done.stderr


def test_where_no_lab_is_mounted(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", Path("/proc")):
        assert failed("list", "--mount", path) == (
            f"vfsfuse: list: {path}: no lab is mounted there (vfsfuse mount {path})\n"
        )


@pytest.mark.parametrize("command", [["list"], ["list", "--json"]])
def test_a_stopped_and_a_dead_server(tmp_path: Path, command: Sequence[str]) -> None:
    lab = MountedLab(tmp_path, umount=False)
    lab.__enter__()
    assert lab.server is not None
    try:
        os.kill(lab.pid, signal.SIGSTOP)
        line = failed(*command, "--mount", lab.path)
        assert f"the server (pid {lab.pid}) is stopped (kill -CONT {lab.pid} continues it" in line
        lab.server.kill()
        lab.server.wait()
        assert "no lab is mounted there" in failed(*command, "--mount", lab.path)
    finally:
        lab.server.kill()
        lab.server.wait()
        lab.api.kill()


# ---- parts ----


def test_tables_and_sizes() -> None:
    assert [size(each) for each in (None, 0, 1023, 1024, 1536, 64 << 20, 9 << 40)] == [
        *(None, "0", "1023", "1K", "1.5K"),
        *("64M", "9T"),
    ]
    assert list(table(("A", "NUMBER"), [])) == []
    assert list(table(("A", "NUMBER"), [("long", 1), (None, 100)], right="NUMBER")) == [
        *("A     NUMBER", "long       1"),
        "-        100",
    ]
    assert (cut("abcdef", None), cut("abcdef", 6), cut("abcdef", 5), cut("abcdef", 2)) == (
        *("abcdef", "abcdef", "ab..."),
        "..",
    )
    assert sorted(["vgpu10", "vgpu9", "mtty", "vgpu1"], key=in_order) == ["mtty", "vgpu1", "vgpu9", "vgpu10"]


def test_text_of_others_is_made_printable() -> None:
    odd = b"\xff".decode("utf-8", "surrogateescape")
    assert printable(f"a\\b\x1b\x7f{odd}\u20ac\U0001f600") == r"a\\b\x1b\x7f\xff\u20ac\U0001f600"


# ---- what a strange server may show ----


def strange(folder: Path) -> Path:
    """A tree as a server could show it that is not ours."""
    lab = folder / "lab"
    for path in (
        "sys/class/vgpu/odd",
        "sys/bus/pci/devices/0000:00:01.0",
        "sys/bus/pci/slots/s",
        "sys/class/vfio-dev",
    ):
        (lab / path).mkdir(parents=True)
    function = lab / "sys/bus/pci/devices/0000:00:01.0"
    (function / "uevent").write_bytes(b"PCI_ID=\xff\x1b[2J\nPCI_CLASS\n=\nDRIVER=" + b"x" * 10_000)
    (function / "vgpus").write_text("9" * 5000)
    (function / "sriov_totalvfs").write_text("-1")
    (function / "iommu_group").symlink_to("iommu_group")
    os.mkfifo(function / "physfn")
    os.mkfifo(lab / "sys/bus/pci/slots/s/address")
    (lab / "sys/class/vfio-dev/vfio0").symlink_to("x")
    (lab / "sys/class/vgpu/odd/vgpu0").symlink_to("../../../../../../..")
    (lab / "sys/class/vgpu/odd/vgpu1").symlink_to("nowhere")
    (lab / "sys/class/vgpu/odd/\x1b[2J").symlink_to(".")
    return lab


def test_a_strange_tree_is_shown_as_it_is_or_left_out(tmp_path: Path) -> None:
    found = gather(inventory(str(strange(tmp_path))))
    assert found.parents == () and [each.address for each in found.functions] == ["0000:00:01.0"]
    (function,) = found.functions
    assert (function.group, function.physfn, function.totalvfs) == ("iommu_group", None, None)
    contents = Contents("/lab", found, [], 0)
    text = "\n".join(lines(contents))
    assert "\x1b" not in text and r"\x1b[2j" in text
    json.dumps(as_json(contents))


def test_a_directory_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = strange(tmp_path)
    monkeypatch.setattr("vfsfuse.monitor.files.MOST_NAMES", 2)
    with pytest.raises(Refusal, match="it has more than 2 names"):
        list(inventory(str(lab)))
