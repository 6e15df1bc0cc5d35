# SPDX-License-Identifier: Apache-2.0
"""`remove` and `rescan` of PCI functions on a real mount: what goes, what comes back, and what is new."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.descriptors import mappings, open_files
from tests.labs import MountedLab, described
from tests.snapshot import snapshot
from tests.test_removal import Writer
from tests.test_sriov import bind_by_override
from tests.test_uevents import hear, listening
from tests.vfio.client import Group, fails
from tests.vfio.devices import REQ, TRIGGER, eventfd, function_dir, opened, signals, vfio_pci
from tests.waiting import settled

GPU, NEIGHBOUR, OTHER, ROOT_BUS = "0000:86:00.0", "0000:86:01.0", "0000:87:00.0", "0000:00:1f.0"
VF = "0000:86:00.4"
GROUP_NUMBER = re.compile(r"groups/\d+")
LAB = f"""\
[mount]
remove = "@"

[parents."{GPU}"]
kind = "gpu"
driver = "vgpu"
memory = "256M"
vfs = 2
vf_memory = "16M"
types.vgpu-8 = {{ memory = "32M", description = "an eighth" }}

[parents."{NEIGHBOUR}"]
kind = "gpu"
driver = "vgpu"
memory = "16M"
types.vgpu-8 = {{ memory = "2M", description = "an eighth" }}

[parents."{OTHER}"]
kind = "gpu"
driver = "vgpu"
memory = "16M"
iommu = false
types.vgpu-8 = {{ memory = "2M", description = "an eighth" }}

[parents."{ROOT_BUS}"]
kind = "gpu"
driver = "integrated"
memory = "16M"
types.vgpu-8 = {{ memory = "2M", description = "an eighth" }}

[parents.mtty]
kind = "virtual"
driver = "mtty"
slots = 24
types.mtty-1 = {{ description = "a port" }}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("hotplug"), LAB.replace("@", "busy")) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("hotplug"), LAB.replace("@", "wait")) as mounted:
        yield mounted


def shape(lab: MountedLab) -> set[tuple[str, str]]:
    """What the mount shows, whatever the numbers of its IOMMU groups are."""
    return {
        (GROUP_NUMBER.sub("groups/N", path), GROUP_NUMBER.sub("groups/N", line))
        for path, line in snapshot(lab.path).items()
    }


@pytest.fixture(autouse=True)
def as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does, the lab is as it was before."""
    labs: list[MountedLab] = [
        request.getfixturevalue(name) for name in ("lab", "patient") if name in request.fixturenames
    ]
    before = [shape(each) for each in labs]
    yield
    for each, found in zip(labs, before, strict=True):
        rescan(each)
        assert shape(each).symmetric_difference(found) == set()


def pci(lab: MountedLab) -> Path:
    return lab.path / "sys/bus/pci"


def remove(lab: MountedLab, name: str) -> None:
    with (function_dir(lab, name) / "remove").open("wb", buffering=0) as file:
        file.write(b"1")


def rescan(lab: MountedLab) -> None:
    (pci(lab) / "rescan").write_text("1")


def functions(lab: MountedLab) -> list[str]:
    return sorted(os.listdir(pci(lab) / "devices"))


def driver_of(lab: MountedLab, name: str) -> str | None:
    link = function_dir(lab, name) / "driver"
    return os.path.basename(os.readlink(link)) if link.is_symlink() else None


def group_of(lab: MountedLab, name: str) -> str:
    return os.path.basename(os.readlink(function_dir(lab, name) / "iommu_group"))


def port_above(lab: MountedLab, name: str) -> str:
    """The root port above a function."""
    return function_dir(lab, name).resolve().parent.name


def mentions(lab: MountedLab, name: str) -> list[str]:
    """The paths of the mount whose last component is that name, and the links that lead below it."""
    found = []
    for top, directories, files in os.walk(lab.path):
        for each in (*directories, *files):
            path = Path(top) / each
            target = os.readlink(path) if path.is_symlink() else ""
            if name in (each, *target.split("/")):
                found.append(str(path.relative_to(lab.path)))
    return found


@contextmanager
def absent(lab: MountedLab, name: str) -> Iterator[None]:
    remove(lab, name)
    yield
    rescan(lab)


# ---- removing ----


@pytest.mark.parametrize("name", [GPU, NEIGHBOUR, OTHER, ROOT_BUS])
def test_a_function_that_is_removed_is_gone_from_everywhere(lab: MountedLab, name: str) -> None:
    before, kept = functions(lab), driver_of(lab, name)
    assert mentions(lab, name)
    with absent(lab, name):
        assert mentions(lab, name) == []
        assert functions(lab) == [each for each in before if each != name]
        for path in ("drivers_probe", f"drivers/{kept}/bind", f"drivers/{kept}/unbind"):
            fails(errno.ENODEV, (pci(lab) / path).write_text, name)
    assert functions(lab) == before and driver_of(lab, name) == kept


def test_its_driver_leaves_and_takes_what_it_has_made(lab: MountedLab) -> None:
    vgpu = lab.create("vgpu-8", GPU)
    (function_dir(lab, GPU) / "sriov_numvfs").write_text("2")
    directory = function_dir(lab, GPU).resolve()
    with Group(lab.path, vgpu.group) as group, listening(lab, os.O_NONBLOCK) as fd:
        with absent(lab, GPU):
            assert mentions(lab, vgpu.name) == [] and VF not in functions(lab)
            fails(errno.ENODEV, lambda: group.flags)
            heard = [head for head, _ in hear(fd)]
        own = f"/{directory.relative_to(lab.path / 'sys')}"
        ends = [head for head in heard if head.endswith((own, vgpu.name, VF, VF[:-1] + "5"))]
        above = os.path.dirname(own)
        assert ends == [
            f"remove@{above}/{VF}",
            f"remove@{above}/{VF[:-1]}5",
            f"unbind@{own}/{vgpu.name}",
            f"remove@{own}/{vgpu.name}",
            f"change@{own}",
            f"unbind@{own}",
            f"remove@{own}",
        ]
        heard = [head for head, _ in hear(fd)]
        assert [head for head in heard if head.endswith(own)] == [
            f"add@{own}",
            f"change@{own}",
            f"bind@{own}",
        ]


def test_what_is_no_number_removes_nothing(lab: MountedLab) -> None:
    for path in (function_dir(lab, GPU) / "remove", function_dir(lab, GPU) / "rescan", pci(lab) / "rescan"):
        for text in ("x", "-1", "1 1", f"{2**64}", "\n"):
            fails(errno.EINVAL, path.write_text, text)
        path.write_text("0")
    assert function_dir(lab, GPU).exists()


def test_modes(lab: MountedLab) -> None:
    """Those of drivers/pci/pci-sysfs.c; a virtual function has neither file."""
    modes = {
        function_dir(lab, GPU) / "remove": 0o220,
        function_dir(lab, port_above(lab, GPU)) / "remove": 0o220,
        function_dir(lab, GPU) / "rescan": 0o200,
        pci(lab) / "rescan": 0o200,
        lab.path / "sys/class/pci_bus/0000:86/rescan": 0o200,
        lab.path / "sys/class/pci_bus/0000:00/rescan": 0o200,
    }
    assert {path: path.stat().st_mode & 0o777 for path in modes} == modes
    (function_dir(lab, GPU) / "sriov_numvfs").write_text("1")
    assert not any((function_dir(lab, VF) / name).exists() for name in ("remove", "rescan"))
    (function_dir(lab, GPU) / "sriov_numvfs").write_text("0")


def test_files_that_were_open_are_of_no_use(lab: MountedLab) -> None:
    with ExitStack() as stack:
        files = {
            name: stack.enter_context((function_dir(lab, GPU) / name).open("rb", buffering=0))
            for name in ("vendor", "config", "resource0")
        }
        again = os.open(function_dir(lab, GPU) / "remove", os.O_WRONLY)
        stack.callback(os.close, again)
        with absent(lab, GPU):
            for file in files.values():
                fails(errno.ENODEV, os.pread, file.fileno(), 4, 0)
            fails(errno.ENODEV, os.write, again, b"1")
        for file in files.values():
            fails(errno.ENODEV, os.pread, file.fileno(), 4, 0)
        fails(errno.ENODEV, os.write, again, b"1")
        assert function_dir(lab, GPU).exists()


def test_many_remove_it_at_once(lab: MountedLab) -> None:
    script = f"echo 1 > {function_dir(lab, GPU)}/remove"
    writers = [
        subprocess.Popen(["sh", "-c", script], stderr=subprocess.PIPE, text=True, env={"LC_ALL": "C"})
        for _ in range(8)
    ]
    said = sorted(writer.communicate(timeout=60)[1] for writer in writers)
    assert said[0] == "" and GPU not in functions(lab)
    rescan(lab)
    # no such file to open or create, or in the words of dash a failed write to an open file of what is gone
    assert [text for text in said if not re.search("^$|No such|nonexistent|denied|I/O error", text)] == []


# ---- removing what is held ----


def held(lab: MountedLab, stack: ExitStack, what: str) -> int:
    """Hold what goes with the GPU; an eventfd by which the holder is asked to let go."""
    event = stack.enter_context(eventfd())
    if what == "vgpu":
        vgpu = lab.create("vgpu-8", GPU)
        group, name = vgpu.group, vgpu.name
    elif what == "vf":
        (function_dir(lab, GPU) / "sriov_numvfs").write_text("1")
        bind_by_override(lab, VF)
        group, name = group_of(lab, VF), VF
    else:
        group, name = vfio_pci(lab, GPU), GPU
    text = name
    if what == "function":
        text = f"{GPU} vf_token=2ab74924-c335-45f4-9b16-8569e5b08258"
    client = stack.enter_context(opened(lab, group, text))
    client.device.eventfds(REQ, TRIGGER, 0, event)
    stack.callback(client.device.close)
    return event


@pytest.mark.parametrize("what", ["vgpu", "vf", "function"])
def test_what_is_held_stays(lab: MountedLab, what: str) -> None:
    with ExitStack() as stack:
        event = held(lab, stack, what)
        before = snapshot(lab.path)
        for name in (GPU, port_above(lab, GPU)):
            fails(errno.EBUSY, remove, lab, name)
            assert signals(event) == 1
        assert snapshot(lab.path) == before
    remove(lab, GPU)
    rescan(lab)


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("what", ["vgpu", "vf", "function"])
def test_removing_waits_for_the_holder(patient: MountedLab, what: str, above: bool) -> None:
    path = function_dir(patient, port_above(patient, GPU) if above else GPU) / "remove"
    with ExitStack() as stack:
        event = held(patient, stack, what)
        with Writer(path, "1") as writer:
            assert signals(event) == 1 and writer.waits
            patient.create("mtty-1", "mtty").remove()
            if what != "function":
                fails(errno.ENODEV, patient.create, "vgpu-8", GPU)
            writer.process.send_signal(signal.SIGUSR1)
            assert writer.said() == "interrupted"
        before = snapshot(patient.path)
        with Writer(path, "1") as writer, Writer(path, "1") as second:
            assert signals(event) >= 1 and writer.waits and second.waits
            assert snapshot(patient.path) == before
            stack.close()
            assert (writer.said(), second.said()) == ("written", "written")
    assert GPU not in functions(patient)
    rescan(patient)


# ---- rescanning ----


def test_what_is_found_again_is_as_firmware_leaves_it(lab: MountedLab) -> None:
    gpu = function_dir(lab, GPU)
    resources = (gpu / "resource").read_text()
    with (gpu / "resource0").open("r+b", buffering=0) as memory:
        memory.write(b"kept")
    with (gpu / "config").open("r+b", buffering=0) as config:
        fresh = config.read()
        os.pwrite(config.fileno(), b"\x00\x00", 4)
        os.pwrite(config.fileno(), b"\x07", 0x3C)
    (gpu / "driver_override").write_text("vfio-pci")
    remove(lab, GPU)
    vgpu = lab.create("mtty-1", "mtty")  # the number of its group is taken now
    rescan(lab)
    assert (gpu / "resource").read_text() == resources
    assert (gpu / "config").read_bytes() == fresh
    with (gpu / "resource0").open("rb", buffering=0) as memory:
        assert memory.read(4) == bytes(4)
    assert (gpu / "driver_override").read_text() == "(null)\n" and driver_of(lab, GPU) == "vgpu"
    assert group_of(lab, GPU) != vgpu.group
    vgpu.remove()
    with absent(lab, GPU):
        pass
    with lab.create("vgpu-8", GPU):
        (gpu / "sriov_numvfs").write_text("2")
        assert VF in functions(lab)
        (gpu / "sriov_numvfs").write_text("0")


def test_autoprobe_decides_whether_it_is_bound(lab: MountedLab) -> None:
    autoprobe = pci(lab) / "drivers_autoprobe"
    remove(lab, GPU)
    autoprobe.write_text("0")
    rescan(lab)
    assert driver_of(lab, GPU) is None and not (function_dir(lab, GPU) / "mdev_supported_types").exists()
    as_found = {"enable": "0\n", "dma_mask_bits": "32\n"}
    assert {name: (function_dir(lab, GPU) / name).read_text() for name in as_found} == as_found
    autoprobe.write_text("1")
    rescan(lab)  # finds nothing new
    assert driver_of(lab, GPU) is None
    (pci(lab) / "drivers_probe").write_text(GPU)
    assert driver_of(lab, GPU) == "vgpu"


def test_vfio_pci_takes_it_again(lab: MountedLab) -> None:
    with absent(lab, GPU):
        pass
    group = vfio_pci(lab, GPU)
    token = f"{GPU} vf_token=2ab74924-c335-45f4-9b16-8569e5b08258"
    with opened(lab, group, token) as found:
        assert found.device.config(0) == 0x1234
    with absent(lab, GPU):
        assert not (lab.path / "dev/vfio" / group).exists()


@pytest.mark.parametrize(
    ("path", "finds"),
    [
        ("sys/bus/pci/rescan", {GPU, NEIGHBOUR, OTHER, ROOT_BUS}),
        ("sys/class/pci_bus/0000:00/rescan", {GPU, NEIGHBOUR, OTHER, ROOT_BUS}),
        ("sys/class/pci_bus/0000:86/rescan", {GPU, NEIGHBOUR}),
        ("sys/class/pci_bus/0000:87/rescan", {OTHER}),
    ],
)
def test_what_a_rescan_finds(lab: MountedLab, path: str, finds: set[str]) -> None:
    everything = functions(lab)
    for name in (GPU, NEIGHBOUR, OTHER, ROOT_BUS):
        remove(lab, name)
    left = set(functions(lab))
    (lab.path / path).write_text("1")
    assert set(functions(lab)) == left | finds
    rescan(lab)
    assert functions(lab) == everything


def test_a_function_finds_its_neighbours(lab: MountedLab) -> None:
    """And a root port what is below it: `rescan` is of the bus that the function is on."""
    ports = port_above(lab, GPU), port_above(lab, OTHER)
    for name in (GPU, OTHER):
        remove(lab, name)
    (function_dir(lab, NEIGHBOUR) / "rescan").write_text("1")
    assert GPU in functions(lab) and OTHER not in functions(lab)
    (function_dir(lab, ports[0]) / "rescan").write_text("1")
    assert OTHER in functions(lab)


# ---- root ports ----


def test_a_root_port_takes_all_that_is_below_it(lab: MountedLab) -> None:
    port = port_above(lab, GPU)
    assert port == port_above(lab, NEIGHBOUR) != port_above(lab, OTHER)
    with listening(lab, os.O_NONBLOCK) as fd:
        with absent(lab, port):
            for name in (port, GPU, NEIGHBOUR):
                assert mentions(lab, name) == []
            assert OTHER in functions(lab) and not (lab.path / "sys/class/pci_bus/0000:86").exists()
            rescan_of_nothing = [lab.path / "sys/class/pci_bus/0000:87/rescan"]
            for path in rescan_of_nothing:
                path.write_text("1")
            assert GPU not in functions(lab)
            heard = [head for head, _ in hear(fd)]
        order = [head for head in heard if re.match(r"(unbind|remove)@.*/0000:[0-9a-f:.]+$", head)]
        assert [(head.split("@")[0], head.rsplit("/", 1)[1]) for head in order] == [
            ("unbind", NEIGHBOUR),
            ("unbind", GPU),
            ("unbind", port),
            ("remove", GPU),
            ("remove", NEIGHBOUR),
            ("remove", "0000:86"),
            ("remove", port),
        ]
        found = [head for head, _ in hear(fd) if re.match(r"(add|bind)@.*/0000:[0-9a-f:.]+$", head)]
        assert [(head.split("@")[0], head.rsplit("/", 1)[1]) for head in found] == [
            ("add", port),
            ("add", "0000:86"),
            ("add", GPU),
            ("add", NEIGHBOUR),
            ("bind", port),
            ("bind", GPU),
            ("bind", NEIGHBOUR),
        ]


def test_an_absent_function_below_a_root_port_comes_back_with_it(lab: MountedLab) -> None:
    port = port_above(lab, GPU)
    remove(lab, NEIGHBOUR)
    with absent(lab, port):
        assert not {GPU, NEIGHBOUR, port} & set(functions(lab))
    assert {GPU, NEIGHBOUR, port} <= set(functions(lab))


# ---- for long ----

LIVES = 12


@pytest.mark.parametrize("name", [GPU, "port"])
def test_many_lives_leave_nothing(lab: MountedLab, name: str) -> None:
    def resources() -> tuple[int, ...]:
        return open_files(lab.pid), *mappings(lab.pid)

    own = port_above(lab, GPU) if name == "port" else name

    def live(times: int) -> None:
        for _ in range(times):
            remove(lab, own)
            rescan(lab)
            (function_dir(lab, GPU) / "sriov_numvfs").write_text("2")
            (function_dir(lab, GPU) / "resource0").read_bytes()[:4]

    live(3)
    fds, files, maps = settled(resources)
    live(LIVES)
    after = settled(resources)
    assert after[0] <= fds and after[1] <= files and after[2] < maps + LIVES
    (function_dir(lab, GPU) / "sriov_numvfs").write_text("0")


def test_a_lab_may_end_without_its_functions(tmp_path: Path) -> None:
    with described(tmp_path, LAB.replace("@", "busy")) as lab:
        remove(lab, port_above(lab, GPU))
        remove(lab, ROOT_BUS)
