# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse reload` and `mount --reload` on a real mount: new devices of the new code, or none at all."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.commands import VFSFUSE, vfsfuse
from tests.iommufd.bound import open_bound
from tests.labs import MountedLab, Vgpu
from tests.needs import passthrough
from tests.waiting import settled, wait_for

FAN = """
from devmodel.sdk import Bar, DeviceAttribute, Identity, Layout, Memory, PciDevice, Register, Registers

LAYOUT = Layout(4096, [Register(0, 4, "RPM", reset=1200)])


class Fan(PciDevice):
    identity = Identity(0x1234, 0xFA11, 0x1AF4, 0x1100, class_code=0x088000, irq_pin=1)
    ATTRIBUTES = [
        DeviceAttribute("rpm", lambda fan: fan.registers["RPM"]),
        DeviceAttribute("old", lambda fan: 1),
    ]

    def bars(self):
        self.registers = Registers(LAYOUT, self)
        return {0: Bar(self.registers), 2: Bar(Memory(8192))}
"""
TYPES = """
[parents.fans]
kind = "virtual"
driver = "fand"
model = "fan"
slots = 16
types.fan-1 = { description = "a fan", model = "fan" }
"""
LAB = '[models]\nfan = "fan.py:Fan"\n' + TYPES
FUNCTION = "0000:05:00.0"
FUNCTIONS = f"""
[functions."{FUNCTION}"]
model = "fan"
driver = "fand"
vfs = 4
vf = {{ model = "fan", driver = "fand", enabled = 2 }}
"""


class FanLab(MountedLab):
    """A lab whose model is a file."""

    def __init__(self, folder: Path, *options: str, text: str = LAB) -> None:
        self.model = folder / "fan.py"
        self.model.write_text(FAN.replace("irq_pin=1", "irq_pin=0") if "[functions" in text else FAN)
        (folder / "lab.toml").write_text(text)
        super().__init__(folder, "--config", str(folder / "lab.toml"), *options)

    def __enter__(self) -> FanLab:
        super().__enter__()
        return self

    def edit(self, *pairs: tuple[str, str]) -> None:
        """Replace texts of the model file."""
        text = self.model.read_text()
        for old, new in pairs:
            assert old in text
            text = text.replace(old, new)
        self.model.write_text(text)

    def reload(self, *models: str) -> str:
        """A reload that succeeds: what it says."""
        done = vfsfuse("reload", "--mount", self.path, *models)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *models: str) -> str:
        """A reload that fails: what it says."""
        done = vfsfuse("reload", "--mount", self.path, *models)
        assert done.returncode == 1, done.stdout
        assert done.stderr.count("\n") == 1
        return done.stderr

    @property
    def function(self) -> Path:
        return (self.path / f"sys/bus/pci/devices/{FUNCTION}").resolve()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[FanLab]:
    with FanLab(tmp_path) as made:
        yield made


def rpm(path: Path) -> int:
    """The register of a fan, as its resource0 reads."""
    with open(path / "resource0", "rb", buffering=0) as file:
        return int.from_bytes(file.read(4), "little")


def reads(path: Path, value: int) -> bool:
    """Whether the register has this value. A reload may come between the open and the read."""
    try:
        return rpm(path) == value
    except OSError as error:
        assert error.errno == errno.ENODEV
        return False


def client_rpm(fd: int) -> int:
    """The register, as a client of VFIO reads it."""
    return int.from_bytes(os.pread(fd, 4, 0), "little")


def test_device_becomes_a_new_one(lab: FanLab) -> None:
    vgpu = lab.create("fan-1", "fans")
    (vgpu.path / "resource0").write_bytes((77).to_bytes(4, "little"))
    before = {
        name: (vgpu.path / name).read_text() for name in ("vgpu_uuid", "vgpu_group_id", "vgpu_instance")
    }
    lab.edit(("reset=1200", "reset=3400"), ("0xFA11", "0xFA12"))
    assert (rpm(vgpu.path), (vgpu.path / "rpm").read_text()) == (77, "77\n")
    assert lab.reload() == "1 device is reloaded\n"
    assert (rpm(vgpu.path), (vgpu.path / "rpm").read_text()) == (3400, "3400\n")
    assert (vgpu.path / "device").read_text() == "0xfa12\n"
    assert (vgpu.path / "config").read_bytes()[:4] == b"\x34\x12\x12\xfa"
    assert {name: (vgpu.path / name).read_text() for name in before} == before
    assert Vgpu(lab, vgpu.name).vfio == vgpu.vfio
    device = vgpu.open()
    assert client_rpm(device) == 3400
    os.close(device)
    assert rpm(lab.create("fan-1", "fans").path) == 3400  # a new one, too


def test_files_follow_the_model(lab: FanLab) -> None:
    vgpu = lab.create("fan-1", "fans")
    assert vgpu.path.joinpath("old").read_text() == "1\n"
    assert os.stat(vgpu.path / "resource2").st_size == 8192
    assert os.stat(vgpu.path / "config").st_size == 256
    lab.edit(
        ('DeviceAttribute("old", lambda fan: 1)', 'DeviceAttribute("new/one", lambda fan: 2)'),
        ("2: Bar(Memory(8192))", "0x4: Bar(Memory(65536))"),
        ("    def bars", "    def capabilities(self):\n        return [express()]\n\n    def bars"),
        ("import Bar,", "import Bar, express,"),
    )
    lab.reload()
    names = os.listdir(vgpu.path)
    assert "old" not in names and "resource2" not in names
    for gone in ("old", "resource2"):
        with pytest.raises(FileNotFoundError):
            os.stat(vgpu.path / gone)
    assert (vgpu.path / "new/one").read_text() == "2\n"
    lab.edit(('"new/one"', '"new/two"'))
    lab.reload()
    assert os.listdir(vgpu.path / "new") == ["two"]
    assert not (vgpu.path / "new/one").exists()
    assert os.stat(vgpu.path / "resource4").st_size == 65536
    assert os.stat(vgpu.path / "config").st_size == len((vgpu.path / "config").read_bytes()) == 4096


def test_open_attribute_reads_no_other_one(lab: FanLab) -> None:
    lab.edit(('DeviceAttribute("old", lambda fan: 1)', 'DeviceAttribute("a/old", lambda fan: 1)'))
    lab.reload()
    vgpu = lab.create("fan-1", "fans")
    with (
        open(vgpu.path / "rpm") as first,
        open(vgpu.path / "a/old") as second,
        open(vgpu.path / "device") as own,
    ):
        lab.edit(('"rpm"', '"new"'), ('"a/old"', '"a/new"'))
        lab.reload()
        for file in (first, second):
            with pytest.raises(OSError) as error:
                file.read()
            assert error.value.errno == errno.ENODEV
        assert own.read() == "0xfa11\n"
    assert ((vgpu.path / "new").read_text(), (vgpu.path / "a/new").read_text()) == ("1200\n", "1\n")


def test_open_files_of_the_old_device_are_dead(lab: FanLab) -> None:
    vgpu = lab.create("fan-1", "fans")
    with open(vgpu.path / "resource0", "rb", buffering=0) as old, open(vgpu.path / "config", "rb") as config:
        assert old.read(4)
        lab.reload()
        for file in (old, config):
            with pytest.raises(OSError) as error:
                os.pread(file.fileno(), 4, 0)
            assert error.value.errno == errno.ENODEV
        assert rpm(vgpu.path) == 1200


@passthrough
def test_mapping_of_the_old_memory_stays(lab: FanLab) -> None:
    vgpu = lab.create("fan-1", "fans")
    with open(vgpu.path / "resource2", "r+b", buffering=0) as file:
        memory = mmap.mmap(file.fileno(), 4096)
        memory[:4] = b"kept"
        lab.reload()
        with open(vgpu.path / "resource2", "r+b", buffering=0) as again:
            new = mmap.mmap(again.fileno(), 4096)  # the kernel has both memories at the same time
            assert (memory[:4], new[:4]) == (b"kept", bytes(4))
            new.close()
    memory.close()


def test_device_that_is_open_keeps_its_model(lab: FanLab) -> None:
    free, used = lab.create("fan-1", "fans"), lab.create("fan-1", "fans")
    device = used.open()
    lab.edit(("reset=1200", "reset=3400"), ('        DeviceAttribute("old", lambda fan: 1),\n', ""))
    assert lab.reload() == "1 device is reloaded, 1 when its client closes it: vgpu1\n"
    assert (rpm(free.path), client_rpm(device)) == (3400, 1200)
    assert ((used.path / "rpm").read_text(), (used.path / "old").read_text()) == ("1200\n", "1\n")
    beside = os.open(used.cdev, os.O_RDWR)  # also opens it, and shares the old one
    os.close(device)
    lab.edit(("reset=3400", "reset=5600"))
    assert lab.reload() == "1 device is reloaded, 1 when its client closes it: vgpu1\n"
    os.close(beside)
    device = used.open()  # waits for the new model
    assert client_rpm(device) == 5600
    os.close(device)
    assert not (used.path / "old").exists()


def test_only_device_is_open(lab: FanLab) -> None:
    vgpu = lab.create("fan-1", "fans")
    device = vgpu.open()
    assert lab.reload() == "1 device is reloaded when its client closes it: vgpu0\n"
    os.close(device)
    wait_for(lambda: _removes(vgpu))  # also one that waits can be removed
    assert lab.reload() == (
        "no device has such a model; those that are created from now on get the new code\n"
    )


def _removes(vgpu: Vgpu) -> bool:
    try:
        vgpu.remove()
    except OSError:
        return False
    return True


WRONG = {
    "x = (": "SyntaxError",
    "import nothing_there": "ModuleNotFoundError",
    "1 / 0": "ZeroDivisionError",
    "raise SystemExit(3)": "SystemExit",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "class E(BaseException): pass\nraise E": "E()",
}


@pytest.mark.parametrize("code", WRONG)
def test_file_that_cannot_be_imported(lab: FanLab, code: str) -> None:
    vgpu = lab.create("fan-1", "fans")
    (vgpu.path / "resource0").write_bytes((77).to_bytes(4, "little"))
    good = lab.model.read_text()
    lab.model.write_text(f"{good.replace('1200', '1')}\n{code}\n")
    line = len(good.splitlines()) + 1 + len(code.splitlines())
    said = lab.refused()
    assert WRONG[code] in said and f"{lab.model}:{line}" in said
    assert (rpm(vgpu.path), rpm(lab.create("fan-1", "fans").path)) == (77, 1200)  # nothing has changed
    lab.model.write_text(good)
    assert lab.reload() == "2 devices are reloaded\n"


UNFIT = {
    "no model": ("class Fan(PciDevice)", "class Fan", "not a device model"),
    "no class": ("class Fan(", "class Van(", "no class Fan"),
    "no identity": ("    identity =", "    other =", "not a device model"),
    "taken name": ('"old", lambda', '"vendor", lambda', "vendor"),
    "overlap": ("reset=1200)", 'reset=1), Register(2, 4, "B")', "fan.py:4"),
    "init raises": ("return {0:", "return 1 / 0, {0:", "ZeroDivisionError('division by zero') at "),
    "size": ("Memory(8192)", "Memory(8191)", "8191"),
    "attributes": (
        "class Fan(PciDevice):",
        "class Meta(type):\n    @property\n    def ATTRIBUTES(self):\n        raise KeyboardInterrupt\n\n"
        "class Fan(PciDevice, metaclass=Meta):",
        "fan.py",
    ),
    "sys.exit": ("return {0:", "raise SystemExit; return {0:", "SystemExit"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_model_that_cannot_be(lab: FanLab, what: str) -> None:
    vgpu = lab.create("fan-1", "fans")
    old, new, why = UNFIT[what]
    lab.edit((old, new))
    assert why in lab.refused()
    assert rpm(vgpu.path) == 1200
    lab.edit((new, old))
    lab.reload()


def test_hooks_of_the_old_model_that_raise(lab: FanLab) -> None:
    hook = "    def closed(self):\n        raise SystemExit\n\n"
    lab.edit(("    def bars", f"{hook}    def bars"))
    vgpu = lab.create("fan-1", "fans")
    lab.reload()
    assert rpm(vgpu.path) == 1200
    lab.edit(("1200", "3400"), (hook, ""))
    assert lab.reload() == "1 device is reloaded\n"  # the log has the traceback of the other one
    assert rpm(vgpu.path) == 3400
    wait_for(lambda: "closed() failed" in lab.log)
    lab.log_path.write_text(lab.log.replace("Traceback", "expected"))


def test_import_that_does_not_end(lab: FanLab) -> None:
    vgpu = lab.create("fan-1", "fans")
    good = lab.model.read_text()
    lab.model.write_text(f"{good}\nwhile True:\n    pass\n")
    said: list[str] = []
    answers = 0
    while answers <= 100:  # on a busy machine, once more
        thread = threading.Thread(target=lambda: said.append(lab.refused()))
        thread.start()
        while thread.is_alive():  # the lab goes on
            assert rpm(vgpu.path) == 1200
            answers += 1
            time.sleep(0.01)
    lines = len(good.splitlines())
    assert "has not ended after 10 s" in said[0]
    assert f"{lab.model}:{lines + 2}" in said[0] or f"{lab.model}:{lines + 3}" in said[0]
    wait_for(lambda: _rests(lab))  # the loop is ended
    lab.model.write_text(good.replace("1200", "3400"))
    lab.reload()
    assert rpm(vgpu.path) == 3400


def test_client_that_is_killed(lab: FanLab) -> None:
    vgpu = lab.create("fan-1", "fans")
    good = lab.model.read_text()
    started = lab.model.with_name("started")
    lab.model.write_text(f"{good}\nopen({str(started)!r}, 'w').close()\nwhile True: pass\n")
    command = [*VFSFUSE, "reload", "--mount", str(lab.path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, start_new_session=True) as client:
        wait_for(started.exists)
        os.killpg(client.pid, signal.SIGKILL)  # with its child, which waits for the lab
    wait_for(lambda: _rests(lab))
    lab.model.write_text(good.replace("1200", "3400"))
    assert lab.reload() == "1 device is reloaded\n"
    assert rpm(vgpu.path) == 3400


def _rests(lab: FanLab) -> bool:
    """Whether the server does nothing for a while: a loop takes all the time that there is."""

    def ticks() -> int:
        return sum(map(int, Path(f"/proc/{lab.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))

    before = ticks()
    time.sleep(0.3)
    return ticks() - before < 3


def test_names_of_models(tmp_path: Path) -> None:
    text = LAB.replace("[models]", '[models]\nvan = "van.py:Fan"')
    (tmp_path / "van.py").write_text(FAN)
    types = 'types.van-1 = { description = "another", model = "van" }\n'
    with FanLab(
        tmp_path, text=text + types + 'types.tty = { description = "a tty", model = "mtty" }\n'
    ) as lab:
        fan, van = lab.create("fan-1", "fans"), lab.create("van-1", "fans")
        lab.edit(("1200", "3400"))
        (tmp_path / "van.py").write_text(FAN.replace("1200", "3400"))
        assert lab.reload("van") == "1 device is reloaded\n"
        assert (rpm(fan.path), rpm(van.path)) == (1200, 3400)
        assert lab.reload("fan", "van") == "2 devices are reloaded\n"
        assert "'mtty' is a model of vfsfuse's own" in lab.refused("mtty")
        assert "'no' is no model of this lab's own (it has van, fan)" in lab.refused("fan", "no")


def test_lab_without_models(tmp_path: Path) -> None:
    with MountedLab(tmp_path) as lab:
        done = vfsfuse("reload", "--mount", lab.path)
        assert (done.returncode, done.stdout) == (1, "")
        assert "has no models of its own" in done.stderr
    done = vfsfuse("reload", "--mount", lab.path)
    assert "no lab is mounted there" in done.stderr


def test_file(lab: FanLab) -> None:
    file = lab.path / "reload"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text() == ""
    file.write_text("fan")
    assert file.read_text().startswith("no device has such a model")
    for data, error in ((b"nothing", errno.ENOENT), (b"\xff", errno.EINVAL), (b"x" * 5000, errno.EINVAL)):
        fd = os.open(file, os.O_RDWR)
        with pytest.raises(OSError) as raised:
            os.write(fd, data)
        assert raised.value.errno == error
        os.close(fd)
    assert "'nothing' is no model" in file.read_text()


def test_modules_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "blades").mkdir()
    (tmp_path / "blades/__init__.py").write_text("from .count import COUNT\n")
    count = tmp_path / "blades/count.py"
    count.write_text("COUNT = 3\n")
    with FanLab(tmp_path, text=LAB) as lab:
        lab.edit(("reset=1200", "reset=blades.COUNT"), ("LAYOUT =", "import blades\nLAYOUT ="))
        vgpu = lab.create("fan-1", "fans")
        lab.reload()
        assert rpm(vgpu.path) == 3
        count.write_text("COUNT = 5\n")  # the same size, within the same second
        lab.reload()
        assert rpm(vgpu.path) == 5
        count.write_text("COUNT = none\n")
        assert f"{count}:1" in lab.refused()
        count.write_text("COUNT = 7\n")
        lab.reload()
        assert rpm(vgpu.path) == 7


def test_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    info = site / "fans-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fans\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vfsfuse.models]\nfan = fans.model:Fan\n")
    (site / "fans").mkdir()
    (site / "fans/__init__.py").write_text("")
    (site / "fans/model.py").write_text(FAN)
    monkeypatch.setenv("PYTHONPATH", str(site))
    with FanLab(tmp_path, text=TYPES) as lab:
        vgpu = lab.create("fan-1", "fans")
        (site / "fans/model.py").write_text(FAN.replace("1200", "3400"))
        assert lab.reload("fan") == "1 device is reloaded\n"
        assert rpm(vgpu.path) == 3400
        (site / "fans/model.py").write_text("1 / 0")
        assert f"{site}/fans/model.py:1" in lab.refused()
        (site / "fans/model.py").write_text(FAN)
        lab.reload()
        assert rpm(vgpu.path) == 1200


def test_functions(tmp_path: Path) -> None:
    with FanLab(tmp_path, text=LAB + FUNCTIONS) as lab:
        resources = (lab.function / "resource").read_text()
        lab.edit(("1200", "3400"), ('"old", lambda fan: 1', '"new", lambda fan: 2'))
        assert lab.reload() == "3 devices are reloaded\n"
        for path in (lab.function, lab.function / "virtfn0", lab.function / "virtfn1"):
            assert (rpm(path), (path / "new").read_text()) == (3400, "2\n")
            assert "old" not in os.listdir(path)
            assert not (path / "old").exists()
        assert (lab.function / "resource").read_text() == resources
        assert (lab.function / "sriov_numvfs").read_text() == "2\n"
        lab.edit(("8192", "16384"))
        said = lab.refused()
        assert f'functions."{FUNCTION}": BAR 2 needs 16384 bytes, and has 8192 bytes since' in said
        lab.edit(("16384", "4096"))
        lab.reload()
        assert os.stat(lab.function / "resource2").st_size == 4096
        (lab.function / "remove").write_text("1")
        (lab.path / "sys/bus/pci/rescan").write_text("1")
        assert rpm(lab.function) == 3400


def test_function_that_a_client_has(tmp_path: Path) -> None:
    with FanLab(tmp_path, text=LAB + FUNCTIONS) as lab:
        vf = (lab.function / "virtfn0").resolve()
        (vf / "driver_override").write_text("vfio-pci")
        (vf / "driver/unbind").write_text(vf.name)
        (lab.path / "sys/bus/pci/drivers_probe").write_text(vf.name)
        device = open_bound(lab.path / "dev/vfio/devices" / os.listdir(vf / "vfio-dev")[0])
        lab.edit(("1200", "3400"))
        said = lab.reload()
        assert said.startswith("3 devices are reloaded when their clients close them: 0000:05:00.0, ")
        assert (rpm(lab.function), client_rpm(device)) == (1200, 1200)
        os.close(device)
        wait_for(lambda: reads(lab.function, 3400))
        assert rpm(vf) == 3400


def test_watch(tmp_path: Path) -> None:
    with FanLab(tmp_path, "--reload") as lab:
        vgpu = lab.create("fan-1", "fans")
        new = tmp_path / "fan.py~"
        new.write_text(lab.model.read_text().replace("1200", "3400"))
        new.rename(lab.model)  # as editors do
        wait_for(lambda: reads(vgpu.path, 3400))
        text = lab.model.read_text()
        lab.model.write_text(text[: len(text) // 2])
        wait_for(lambda: "cannot be loaded" in lab.log or "no class Fan" in lab.log)
        assert rpm(vgpu.path) == 3400
        lab.model.write_text(text.replace("3400", "5600"))
        wait_for(lambda: reads(vgpu.path, 5600))
        lab.edit(("reset=5600", "reset=rpm.RPM"), ("LAYOUT =", "import rpm\nLAYOUT ="))
        wait_for(lambda: "rpm" in lab.log and "ModuleNotFoundError" in lab.log)
        (tmp_path / "rpm.py").write_text("RPM = 7800\n")  # what was missing
        wait_for(lambda: reads(vgpu.path, 7800))
        (tmp_path / "rpm.py").write_text("RPM = 9000\n")
        wait_for(lambda: reads(vgpu.path, 9000))
        (tmp_path / "other.py").write_text("")
        count = settled(lambda: lab.log.count("reloaded"))
        vgpu.remove()
        assert lab.log.count("reloaded") == count


def test_reloads_while_vgpus_come_and_go(lab: FanLab) -> None:
    command = [*VFSFUSE, "reload", "--mount", str(lab.path)]
    kept = lab.create("fan-1", "fans")
    with ExitStack() as stack:
        reloads = [
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            for _ in range(4)
        ]
        for _ in range(30):
            with lab.create("fan-1", "fans") as vgpu:
                wait_for(lambda: reads(vgpu.path, 1200))
                os.close(vgpu.open())
                wait_for(lambda: _idle(vgpu))
        for each in reloads:
            said, _ = each.communicate(timeout=60)
            assert each.returncode == 0 and "reloaded" in said
    assert rpm(kept.path) == 1200


def _idle(vgpu: Vgpu) -> bool:
    """Whether nobody has the vGPU open any more."""
    try:
        os.close(vgpu.open())
    except OSError:
        return False
    return True
