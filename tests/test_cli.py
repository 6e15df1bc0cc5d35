# SPDX-License-Identifier: Apache-2.0
"""The command line as a person meets it: help, mistakes, and lab files of one's own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, run, vfsfuse
from tests.labs import MountedLab

COMMANDS = (
    *("mount", "umount", "run", "check", "tree", "surprise-remove", "capture", "plug", "unplug"),
    *("screenshot", "trace", "list", "top", "reload"),
)

LAB = """\
vendor = "acme"

[parents."0000:03:00.0"]
kind = "gpu"
driver = "acme-gpu"
memory = "64 MiB"

[parents."0000:03:00.0".types]
half = { memory = "32M", description = "half of it", pretty_name = "ACME half" }
all = { memory = 67108864, description = "all of it" }
"""


def test_help_names_every_command() -> None:
    done = vfsfuse("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(re.search(rf"(?m)^    {command} ", done.stdout) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = vfsfuse(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: vfsfuse {command} ")


def test_version() -> None:
    done = vfsfuse("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"vfsfuse (\d+\.\d+\.\d+|\(.*not installed\))\n", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "empty"),
    [
        (["run", "--mount", "", "--", "true"], "--mount"),
        (["run", "-q", "--log=", "true"], "--log"),
        (["trace", "-o", "", "--", "true"], "-o"),
        (["list", "--mount", ""], "--mount"),
        (["umount", ""], "an argument"),
    ],
)
def test_an_empty_name_chooses_no_lab(arguments: list[str], empty: str) -> None:
    """Such as that of a shell's variable that is not set."""
    done = vfsfuse(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"vfsfuse: {arguments[0]}: {empty} is empty\n"


def test_arguments_of_a_program_may_be_empty() -> None:
    for command in (
        ["run", "echo", "", "."],
        ["run", "--", "echo", "", "."],
        ["trace", "--", "echo", "", "."],
    ):
        done = vfsfuse(*command)
        assert (done.returncode, done.stdout) == (0, " .\n"), done


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: COMMAND"),
        (["bogus"], "invalid choice: 'bogus'"),
        (["Mount"], "invalid choice: 'Mount'"),
        (["mount", "a", "b"], "unrecognized arguments: b"),
        (["mount", "--conf", "x"], "unrecognized arguments: --conf"),
        (["mount", "--log-level", "loud"], "invalid choice: 'loud'"),
        (["mount", "--config"], "expected one argument"),
        (["tree", "--depth", "deep"], "invalid int value: 'deep'"),
        (["umount", "--force"], "unrecognized arguments: --force"),
        (["--verbose", "tree"], "unrecognized arguments: --verbose"),
        (["top", "-n", "few"], "'few' is no number above 0"),
        (["top", "-n", "0"], "'0' is no number above 0"),
        (["top", "-d", "soon"], "'soon' is not 0.1 to 3600 seconds"),
        (["top", "-d", "nan"], "'nan' is not 0.1 to 3600 seconds"),
    ],
)
def test_wrong_usage_is_status_2_with_the_usage(arguments: list[str], said: str) -> None:
    done = vfsfuse(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: vfsfuse") and said in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", ["tree", "umount"])
def test_where_no_lab_is_mounted_is_one_line(tmp_path: Path, command: str) -> None:
    for path in (tmp_path, tmp_path / "missing", Path("/proc")):
        done = vfsfuse(command, path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"vfsfuse: {command}: {path}: no lab is mounted there\n"


@needs.root("it becomes another user")
def test_another_users_lab_is_one_line(tmp_path: Path) -> None:
    """Whose directory is closed, as FUSE closes the labs of ordinary users."""
    as_nobody = [sys.executable, "-m", "tests.ordinary_user", *VFSFUSE]
    with MountedLab(tmp_path) as lab:
        lab.path.parent.chmod(0o700)
        mount = ("--mount", str(lab.path))
        for command in (
            *(("trace", *mount), ("trace", *mount, "vgpu0"), ("list", *mount), ("top", "-b", *mount)),
            *(("reload", *mount), ("surprise-remove", *mount, "vgpu0"), ("plug", *mount, "0000:86:00.0")),
            *(("screenshot", *mount, "vgpu0", "-"), ("tree", str(lab.path))),
        ):
            done = run([*as_nobody, *command])
            said = f"{lab.path}: Permission denied (the lab, or a directory above it, is another user's)"
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr == f"vfsfuse: {command[0]}: {said}\n"


@needs.root("only root may unmount in a mount namespace of its own")
def test_without_a_lab_a_command_says_how_to_get_one() -> None:
    labs = "awk '$3 == \"fuse.vfsfuse\" {print $2}' /proc/self/mounts"
    script = f"for m in $({labs}); do umount -l $m; done; exec {' '.join(VFSFUSE)} "
    mend = "mount one with: vfsfuse mount MNT"
    for command in ("trace", "list", "top", "reload"):
        done = run(["unshare", "-m", "sh", "-c", script + command])
        more = "; trace a program with: vfsfuse trace -- CMD" if command == "trace" else ""
        said = f"vfsfuse: {command}: no lab of yours or of root is mounted ({mend}{more})\n"
        assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_tree_into_a_pipe_that_closes_says_nothing(lab: MountedLab) -> None:
    command = f"{' '.join(VFSFUSE)} tree {lab.path} | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == (f"{lab.path}\n", "")


# ---- lab files ----


@pytest.mark.parametrize(
    ("old", "new", "key", "why"),
    [
        ('vendor = "acme"', 'vendor = "acme', "", "not TOML"),
        ('vendor = "acme"', "vendor = acme", "", "not TOML"),
        ("memory", "memory = 1\nmemory", "", "not TOML"),
        ('vendor = "acme"', 'vender = "acme"', "vender", "did you mean 'vendor'"),
        ('vendor = "acme"', "vendor = 7", "vendor", "7 "),
        ('vendor = "acme"', 'vendor = "a/b"', "vendor", "'a/b'"),
        ('vendor = "acme"', "[mount]\ncache = 'long'", "mount.cache", "'long'"),
        ('vendor = "acme"', "[mount]\ncache = -1", "mount.cache", "-1"),
        ('vendor = "acme"', '[mount]\ndevice_mode = "0999"', "mount.device_mode", "'0999'"),
        ('vendor = "acme"', '[mount]\ndevice_owner = "nosuchuser"', "mount.device_owner", "nosuchuser"),
        ('"64 MiB"', '"64 MB of it"', 'parents."0000:03:00.0".memory', "64 MB of it"),
        ('"64 MiB"', "-1", 'parents."0000:03:00.0".memory', "-1"),
        ('"64 MiB"', "true", 'parents."0000:03:00.0".memory', "True"),
        ('"64 MiB"', '"9999999T"', 'parents."0000:03:00.0".memory', "out of range"),
        ('"64 MiB"', '"48M"', 'parents."0000:03:00.0".types.all.memory', "more than the parent's"),
        ('"32M"', '"3100K"', 'parents."0000:03:00.0".types.half', "in units of 64K"),
        ('"32M"', "32.5", 'parents."0000:03:00.0".types.half.memory', "32.5"),
        ('kind = "gpu"', 'kind = "cpu"', 'parents."0000:03:00.0".kind', "'cpu'"),
        ('kind = "gpu"\n', "", 'parents."0000:03:00.0".kind', "missing"),
        ('driver = "acme-gpu"', 'driver = ""', 'parents."0000:03:00.0".driver', "''"),
        ("0000:03:00.0", "03:00.0", 'parents."03:00.0"', "PCI address"),
        ('description = "half of it", ', "", 'parents."0000:03:00.0".types.half.description', "missing"),
        ("half =", '"ha lf" =', 'parents."0000:03:00.0".types."ha lf"', "letters"),
        ('pretty_name = "ACME half"', "instances = 0", 'parents."0000:03:00.0".types.half.instances', "0 "),
    ],
)  # fmt: skip
def test_a_bad_lab_file_is_one_line_with_file_key_and_why(
    tmp_path: Path, old: str, new: str, key: str, why: str
) -> None:
    file = tmp_path / "my.toml"
    assert old in LAB
    file.write_text(LAB.replace(old, new))
    done = vfsfuse("mount", "--config", file, tmp_path / "mnt")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"vfsfuse: mount: {file}: {key}: " if key else f"vfsfuse: mount: {file}: ")
    assert why in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "mnt").exists()


def test_all_errors_of_a_lab_file_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text(LAB.replace('kind = "gpu"\n', "").replace('vendor = "acme"', "vendor = 7"))
    done = vfsfuse("mount", "--config", file, tmp_path / "mnt")
    assert (done.returncode, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert first.startswith(f"vfsfuse: mount: {file}: vendor: 7 ")
    assert second == f'vfsfuse: mount: {file}: parents."0000:03:00.0".kind: is missing (add it)'


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file"), (b"\xff\xfe", "UTF-8"), (b"", "parents")]
)
def test_a_lab_file_that_is_none_is_one_line(tmp_path: Path, content: bytes | None, why: str) -> None:
    file = tmp_path / "my.toml"
    if content is not None:
        file.write_bytes(content)
    done = vfsfuse("mount", "--config", file, tmp_path / "mnt")
    assert done.returncode == 1 and done.stderr.startswith(f"vfsfuse: mount: {file}: ")
    assert why in done.stderr and done.stderr.count("\n") == 1


def test_a_lab_of_ones_own_is_what_is_mounted(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(LAB)
    with MountedLab(tmp_path, "--config", str(tmp_path / "my.toml")) as lab:
        assert list((lab.path / "sys/class/mdev_bus").iterdir()) == [
            lab.path / "sys/class/mdev_bus/0000:03:00.0"
        ]
        gpu = lab.parent("0000:03:00.0")
        assert gpu == lab.path / "sys/devices/pci0000:00/0000:00:01.0/0000:03:00.0"
        assert (gpu / "resource0").stat().st_size == 64 << 20
        assert (gpu / "driver").resolve().name == "acme-gpu"
        types = gpu / "mdev_supported_types"
        assert (types / "half/name").read_text() == "ACME half\n"
        with lab.create("half", "0000:03:00.0") as vgpu:
            assert (lab.path / "sys/class/vgpu/acme/vgpu0").resolve() == vgpu.path
            assert [(types / name / "available_instances").read_text() for name in ("half", "all")] == [
                "1\n",
                "0\n",
            ]
            assert (vgpu.path / "resource0").stat().st_size == 32 << 20
        assert run(["ls", lab.path / "sys/class/vgpu/acme"]).stdout == ""


def test_device_files_have_the_owner_and_mode_the_lab_file_gives(tmp_path: Path) -> None:
    mount = '[mount]\ndevice_mode = "0660"\ndevice_owner = 12\ndevice_group = 34\n'
    (tmp_path / "my.toml").write_text(mount + LAB.removeprefix('vendor = "acme"\n'))
    with (
        MountedLab(tmp_path, "--config", str(tmp_path / "my.toml")) as lab,
        lab.create("all", "0000:03:00.0") as vgpu,
    ):
        for path in (vgpu.cdev, lab.path / "dev/vfio" / vgpu.group, lab.path / "dev/iommu"):
            found = path.stat()
            assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o660, 12, 34)
        assert "DEVMODE=0660\n" in (lab.path / "sys/class/misc/iommu/uevent").read_text()
        assert (vgpu.path / "uevent").stat().st_uid == os.geteuid()
