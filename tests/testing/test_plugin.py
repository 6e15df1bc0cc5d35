# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin, in pytest processes of their own: labs of tests, what a failure shows, xdist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT
from vfsfuse.testing import plugin

Run = Callable[..., subprocess.CompletedProcess[str]]

FAN = """
from devmodel.sdk import Bar, Identity, Layout, PciDevice, Register, Registers

class Fan(PciDevice):
    identity = Identity(0x1234, 0x0FA1, 0x1AF4, 0x1100, class_code=0x088000)

    def bars(self):
        self.registers = Registers(LAYOUT, self)
        return {0: Bar(self.registers)}

    def spin(self, rpm):
        1 // rpm  # a bug: the fan cannot be stopped

LAYOUT = Layout(4096, [Register(0, 4, "RPM", on_write=Fan.spin), Register(4, 4, "BLADES", reset=5)])
"""
FANS = """
[models]
fan = "fan.py:Fan"

[parents.fans]
kind = "virtual"
driver = "fan"
slots = 8
types.fan-1 = { description = "a fan" }
"""


@pytest.fixture
def pytest_run(tmp_path: Path) -> Run:
    """Runs pytest on a file with the given text, beside a lab file `fans.toml`."""
    folder = tmp_path / "project/tests"
    folder.mkdir(parents=True)
    (folder / "fan.py").write_text(FAN)
    (folder / "fans.toml").write_text(FANS)
    (folder.parent / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")

    def run(text: str, *options: str) -> subprocess.CompletedProcess[str]:
        (folder / "test_it.py").write_text(text)
        temporary = ["--basetemp", str(tmp_path / "temporary")]
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *temporary, *options, str(folder)],
            cwd=folder.parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    return run


def outcome(done: subprocess.CompletedProcess[str], **expected: int) -> None:
    """Check how many tests have which outcome."""
    last = done.stdout.strip().splitlines()[-1]
    found = {what: int(count) for count, what in re.findall(r"(\d+) (\w+)", last.split(" in ")[0])}
    assert found == expected, done.stdout + done.stderr


def mounts(folder: Path) -> list[str]:
    """What is mounted below a folder."""
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {folder}/" in line]


def test_each_test_has_a_lab_of_its_own(pytest_run: Run, tmp_path: Path) -> None:
    done = pytest_run("""
import pytest

seen = set()

@pytest.mark.parametrize("number", [1, 2])
def test_built_in(vfio_lab, number):
    assert "mtty" in vfio_lab.parents and not vfio_lab.vgpus
    vfio_lab.create("vgpu-8")
    seen.add(vfio_lab.pid)
    assert len(seen) == number

@pytest.mark.vfio_lab("fans.toml")
def test_marked(vfio_lab):
    assert list(vfio_lab.parents) == ["fans"]

@pytest.mark.vfio_lab('''
[parents.copies]
kind = "virtual"
driver = "mtty"
slots = 8
types.serial-1 = { description = "a port" }
''', trace=False)
def test_text(vfio_lab):
    assert list(vfio_lab.parents) == ["copies"]

PORTS = {"kind": "virtual", "driver": "mtty", "slots": 8, "types": {"a": {"description": "b"}}}

@pytest.mark.vfio_lab({"parents": {"ports": PORTS}})
def test_dict(vfio_lab):
    assert list(vfio_lab.parents) == ["ports"]
""")
    outcome(done, passed=5)
    assert mounts(tmp_path) == []


FACTORY = """
import pytest

@pytest.fixture(scope="module")
def lab(vfio_lab_factory):
    with vfio_lab_factory() as lab:
        yield lab

@pytest.mark.parametrize("number", range(6))
def test_shared(lab, number):
    with lab.create("mtty-1") as vgpu:
        assert list(lab.vgpus) == [vgpu.name]
"""


def test_a_module_shares_a_lab(pytest_run: Run) -> None:
    outcome(pytest_run(FACTORY), passed=6)


def test_workers_of_xdist_have_labs_of_their_own(pytest_run: Run, tmp_path: Path) -> None:
    needs.module("xdist")
    outcome(pytest_run(FACTORY, "-n", "2"), passed=6)
    assert mounts(tmp_path) == []


BROKEN = """
import pytest

pytestmark = pytest.mark.vfio_lab("fans.toml")

def test_stop(vfio_lab):
    with vfio_lab.create("fan-1").open() as device:
        assert device.regions[0].read_int(4, 4) == 5
        device.regions[0].write_int(0, 0, 4)
"""


def test_a_failure_shows_the_last_calls_and_the_traceback_of_the_model(pytest_run: Run) -> None:
    done = pytest_run(BROKEN)
    outcome(done, failed=1)
    calls, log = re.split(r"-+ log of .*mnt -+\n", done.stdout.split("last calls on ")[1])
    assert re.search(r"BAR0 read BLADES \(.*\) = 0x5", calls)
    assert re.search(r"BAR0 write RPM .* = -1 EIO .*ZeroDivisionError.*fan.py:12", calls), calls
    assert "ZeroDivisionError" in log and 'fan.py", line 12' in log
    assert "earlier records" not in calls


def test_the_number_of_lines_is_an_option(pytest_run: Run) -> None:
    done = pytest_run(BROKEN, "-o", "vfio_lab_lines=1")
    calls = re.split(r"-+ log of .*mnt -+\n", done.stdout.split("last calls on ")[1])[0]
    earlier, last = calls.splitlines()[1:3]
    assert re.fullmatch(r"\(\d+ earlier records\)", earlier) and "close" in last
    done = pytest_run(BROKEN, "-o", "vfio_lab_lines=0")
    calls = re.split(r"-+ log of .*mnt -+\n", done.stdout.split("last calls on ")[1])[0]
    assert re.fullmatch(r"\(\d+ earlier records\)", calls.splitlines()[1]) and len(calls.splitlines()) == 2


@pytest.mark.parametrize("lines", ["many", "-1", ""])
def test_a_number_of_lines_that_is_wrong(pytest_run: Run, lines: str) -> None:
    done = pytest_run(BROKEN, "-o", f"vfio_lab_lines={lines}")
    says = f"ERROR: vfio_lab_lines: {lines!r} is no number of lines (write one, such as 40)"
    assert done.returncode == 4 and done.stderr.strip() == says, done.stderr


def test_a_lab_tells_of_the_failed_test_alone(pytest_run: Run) -> None:
    done = pytest_run("""
import pytest

@pytest.fixture(scope="module")
def lab(vfio_lab_factory):
    with vfio_lab_factory("tests/fans.toml") as lab:
        yield lab

def test_first(lab):
    lab.create("fan-1")

def test_second(lab):
    for vgpu in list(lab.vgpus.values()):
        vgpu.remove()
    assert False

def test_third(lab):
    assert False
""")
    outcome(done, failed=2, passed=1)
    second, third = done.stdout.split("test_third")[:2]
    assert "create" not in second.split("last calls on")[1]
    assert re.search(r" remove ", second)
    assert "last calls on" not in third


def test_a_lab_of_a_failed_with_is_shown(pytest_run: Run) -> None:
    """It has ended when pytest makes the report."""
    done = pytest_run("""
import pytest

def test_in_the_test(vfio_lab_factory):
    with vfio_lab_factory("tests/fans.toml") as lab:
        lab.create("fan-1")
        assert 0

@pytest.fixture
def lab(vfio_lab_factory):
    with vfio_lab_factory("tests/fans.toml", strict=False) as lab:
        with lab.create("fan-1") as fan, fan.open() as device:
            device.regions[0].write_int(0, 0)
        yield lab

def test_in_a_fixture(lab):
    pass

def test_afterwards():
    assert 0
""")
    outcome(done, failed=2, error=1)
    error, inside, afterwards = re.split(r"_{5,} (?:test_in_the_test|test_afterwards) _{5,}", done.stdout)
    assert re.search(r"BAR0 write RPM .* = -1 EIO .*ZeroDivisionError", error) and 'fan.py", line 12' in error
    assert re.search(r"-+ last calls on .*mnt -+\n.* store create ", inside)
    assert "last calls" not in afterwards


def test_a_traceback_of_a_model_fails_a_test_that_does_not_see_it(pytest_run: Run) -> None:
    done = pytest_run("""
import contextlib, pytest

@pytest.mark.vfio_lab("fans.toml")
def test_stop(vfio_lab):
    with vfio_lab.create("fan-1").open() as device, contextlib.suppress(OSError):
        device.regions[0].write_int(0, 0, 4)
""")
    outcome(done, passed=1, error=1)
    assert done.stdout.count("\nZeroDivisionError") == 1
    assert re.search(r"-+ last calls on .*mnt -+\n.* store create ", done.stdout)
    assert re.search(r"BAR0 write RPM .* = -1 EIO .*ZeroDivisionError.*fan.py:12", done.stdout)


@pytest.mark.parametrize(
    ("marker", "says"),
    [
        ("'absent.toml'", "absent.toml"),
        ("'fans.toml', spin=1", "the marker vfio_lab takes no option 'spin'"),
        ("'fans.toml', 'other.toml'", "the marker vfio_lab takes one lab at most"),
        ("log_level='loud'", "argument --log-level: invalid choice: 'loud'"),
        ("config='fans.toml', strict=True, trace=False", ""),
    ],
)
def test_a_marker_that_is_wrong_says_why(pytest_run: Run, marker: str, says: str) -> None:
    text = f"import pytest\n@pytest.mark.vfio_lab({marker})\ndef test_it(vfio_lab): pass\n"
    done = pytest_run(text)
    assert says in done.stdout and "def " not in done.stdout, done.stdout  # no code: it is the marker's fault
    outcome(done, **({"error": 1} if says else {"passed": 1}))


def test_it_imports_nothing_when_no_test_wants_a_lab(pytest_run: Run) -> None:
    done = pytest_run("""
import sys

def test_it():
    ours = ("vfsfuse", "devmodel", "ioctl_shim", "trio")
    found = {name for name in sys.modules if name.split(".")[0] in ours}
    assert found == {"vfsfuse", "vfsfuse.testing", "vfsfuse.testing.plugin"}
""")
    outcome(done, passed=1)


def test_pytest_7_can_load_it() -> None:
    """pytest loads it in every project, also that of Debian 12, whose pluggy knows no `wrapper`."""
    hooks = [each.pytest_impl for each in vars(plugin).values() if hasattr(each, "pytest_impl")]
    assert hooks and not any(each["wrapper"] for each in hooks)


def test_the_marker_and_the_fixtures_are_explained(pytest_run: Run) -> None:
    assert "@pytest.mark.vfio_lab(config=None" in pytest_run("", "--markers").stdout
    fixtures = pytest_run("", "--fixtures", "-v").stdout
    assert "vfio_lab --" in fixtures and "vfio_lab_factory [session scope] --" in fixtures


def test_a_marked_test_has_fault_rules(pytest_run: Run) -> None:
    done = pytest_run("""
import errno

import pytest

FULL = {"name": "full", "store": "create", "errno": "ENOMEM", "times": 1}

@pytest.mark.vfio_lab("fans.toml", faults=[FULL])
def test_marked(vfio_lab):
    with pytest.raises(OSError) as caught:
        vfio_lab.create("fan-1")
    assert caught.value.errno == errno.ENOMEM
    assert vfio_lab.faults["full"].hits == 1
    with vfio_lab.create("fan-1"):
        pass

def test_unmarked(vfio_lab):
    assert not vfio_lab.faults

@pytest.fixture
def fans(vfio_lab_factory):
    with vfio_lab_factory("tests/fans.toml", faults=[{"store": "create", "errno": "EIO"}]) as lab:
        yield lab

def test_factory(fans):
    assert len(fans.faults) == 1
    fans.create("fan-1")

@pytest.mark.vfio_lab(faults=[{"store": "create"}])
def test_wrong(vfio_lab):
    pass
""")
    outcome(done, passed=2, failed=1, error=1)
    assert "store create" in done.stdout and "(INJECTED fault1)" in done.stdout
    assert "--fault store=create: " in done.stdout
