# SPDX-License-Identifier: Apache-2.0
"""power/, the attribute group that every device's directory has."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs import MountedLab, Vgpu

FILES = {
    "async": 0o644,
    "autosuspend_delay_ms": 0o644,
    "control": 0o644,
    "runtime_active_kids": 0o444,
    "runtime_active_time": 0o444,
    "runtime_enabled": 0o444,
    "runtime_status": 0o444,
    "runtime_suspended_time": 0o444,
    "runtime_usage": 0o444,
}


@pytest.fixture(scope="module")
def vgpu(lab: MountedLab) -> Iterator[Vgpu]:
    with lab.create("vgpu-4") as made:
        yield made


def device_directories(lab: MountedLab) -> list[Path]:
    """The directories of devices: those with an `uevent` that shows something or nothing, and takes an
    action."""
    found = []
    for top, _, files in os.walk(lab.path / "sys/devices"):
        if "uevent" in files:
            found.append(Path(top))
    return found


def write(path: Path, text: str) -> int:
    """The errno of a write, 0 when it succeeds."""
    try:
        path.write_text(text)
    except OSError as error:
        return error.errno or -1
    return 0


def test_every_device_has_it(lab: MountedLab, vgpu: Vgpu) -> None:
    devices = device_directories(lab)
    assert vgpu.path.resolve() in [each.resolve() for each in devices]
    assert len(devices) > 5
    for device in devices:
        power = device / "power"
        assert {name: (power / name).stat().st_mode & 0o777 for name in os.listdir(power)} == FILES, device
        assert power.stat().st_nlink == 2
        subdirectories = sum(each.is_dir(follow_symlinks=False) for each in os.scandir(device))
        assert device.stat().st_nlink == 2 + subdirectories


def test_a_vgpu_has_no_runtime_power_management(vgpu: Vgpu) -> None:
    power = vgpu.path / "power"
    shown = {name: (power / name).read_text() for name in FILES if name != "autosuspend_delay_ms"}
    assert shown == {
        "async": "disabled\n",
        "control": "auto\n",
        "runtime_active_kids": "0\n",
        "runtime_active_time": "0\n",
        "runtime_enabled": "disabled\n",
        "runtime_status": "unsupported\n",
        "runtime_suspended_time": "0\n",
        "runtime_usage": "0\n",
    }


def test_autosuspend_is_an_error_as_no_driver_uses_it(vgpu: Vgpu) -> None:
    delay = vgpu.path / "power/autosuspend_delay_ms"
    with pytest.raises(OSError) as caught:
        delay.read_text()
    assert caught.value.errno == errno.EIO
    assert write(delay, "100") == errno.EIO


def test_what_is_written_stays_with_its_device(lab: MountedLab, vgpu: Vgpu) -> None:
    power = vgpu.path / "power"
    with lab.create("vgpu-4") as other:
        assert (write(power / "control", "on\n"), write(power / "async", "enabled")) == (0, 0)
        assert (power / "control").read_text() == "on\n" and (power / "async").read_text() == "enabled\n"
        assert (power / "runtime_enabled").read_text() == "disabled & forbidden\n"
        assert (power / "runtime_usage").read_text() == "1\n"
        assert (other.path / "power/control").read_text() == "auto\n"
        assert (
            vgpu.path / "vfio-dev" / os.listdir(vgpu.path / "vfio-dev")[0] / "power/control"
        ).read_text() == ("auto\n")
        assert (write(power / "control", "auto"), write(power / "async", "disabled\n")) == (0, 0)
        assert (power / "control").read_text() == "auto\n"
        assert write(other.path / "power/control", "on") == 0
        again = other.path / "power"
    assert not again.exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("control", text) for text in ("", "off", "On", "auto ", "1", "automatic")),
        *(("async", text) for text in ("", "on", "enable", "1")),
    ],
)
def test_other_words_are_refused(vgpu: Vgpu, name: str, text: str) -> None:
    path = vgpu.path / "power" / name
    before = path.read_text()
    assert write(path, text or "\n") == errno.EINVAL
    assert path.read_text() == before


def test_a_removed_vgpus_power_is_gone(lab: MountedLab) -> None:
    with lab.create("vgpu-4") as made:
        fd = os.open(made.path / "power", os.O_RDONLY | os.O_DIRECTORY)
        control = os.open(made.path / "power/control", os.O_RDONLY)
    try:
        for name in ("async", "control"):  # looked up by nobody, and by somebody
            with pytest.raises(OSError) as caught:
                os.stat(name, dir_fd=fd)
            assert caught.value.errno == errno.ENOENT
        assert os.listdir(fd) == []
        with pytest.raises(OSError) as caught:
            os.pread(control, 4096, 0)
        assert caught.value.errno == errno.ENODEV
    finally:
        os.close(fd)
        os.close(control)
