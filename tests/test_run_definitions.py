# SPDX-License-Identifier: Apache-2.0
"""What mdevctl and driverctl save in /etc under `vfsfuse run` is the lab's, and not the machine's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, vfsfuse
from tests.labs import MountedLab
from tests.test_run_failures import AS_NOBODY
from tests.tool import need
from vfsfuse.ownfolder import SUFFIX, XATTR, OwnFolder

UUID = "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01"
GPU = "0000:86:00.0"
DEFINE = ("mdevctl", "define", "--uuid", UUID, "--parent", GPU, "--type", "vgpu-8")
DEFINED = f"{UUID} {GPU} vgpu-8 manual"
MDEVCTL, DRIVERCTL = Path("/etc/mdevctl.d"), Path("/etc/driverctl.d")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[MountedLab]:
    with MountedLab(tmp_path) as mounted:
        yield mounted


@pytest.fixture(autouse=True)
def machine() -> Iterator[None]:
    """The machine's own folders are after each test what they were before."""
    before = [sorted(os.walk(path)) for path in (MDEVCTL, DRIVERCTL)]
    yield
    assert [sorted(os.walk(path)) for path in (MDEVCTL, DRIVERCTL)] == before


def inside(*words: str | Path, lab: MountedLab | None = None) -> str:
    """What a program says in a lab, by default a private one."""
    done = vfsfuse("run", *(("--mount", lab.path) if lab else ()), "--", *words)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def defined(lab: MountedLab | None = None) -> str:
    """The definitions in a lab: mdevctl ends its list with an empty line, or not."""
    return inside("mdevctl", "list", "--defined", lab=lab).strip()


def test_the_definitions_of_a_private_lab_are_its_own() -> None:
    need("mdevctl")
    script = f"{' '.join(DEFINE)} && mdevctl list --defined && mdevctl start --uuid {UUID} && mdevctl list"
    said = inside("sh", "-c", script).splitlines()
    assert [line for line in said if line] == [DEFINED, f"{DEFINED} (defined)"]
    assert defined() == ""


def test_the_definitions_of_a_mounted_lab_outlive_a_run(lab: MountedLab) -> None:
    need("mdevctl")
    inside(*DEFINE, lab=lab)
    assert defined(lab) == DEFINED
    inside("mdevctl", "start", "--uuid", UUID, lab=lab)
    assert (lab.mdevs / UUID).exists()
    (lab.mdevs / UUID / "remove").write_text("1")


def test_they_end_with_the_lab(tmp_path: Path) -> None:
    need("mdevctl")
    with MountedLab(tmp_path) as lab:
        inside(*DEFINE, lab=lab)
        folder = Path(os.fsdecode(os.getxattr(lab.path, XATTR)))
        assert (folder / "mdevctl.d" / GPU / UUID).is_file() and folder.stat().st_mode & 0o77 == 0
    assert not folder.exists()


def test_two_labs_do_not_share_them(lab: MountedLab, tmp_path_factory: pytest.TempPathFactory) -> None:
    need("mdevctl")
    with MountedLab(tmp_path_factory.mktemp("other")) as other:
        inside(*DEFINE, lab=lab)
        assert defined(other) == ""


def test_a_lab_that_nobody_asks_has_no_folder(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(state))
        with MountedLab(tmp_path) as lab:
            assert not state.exists()
            folder = os.fsdecode(os.getxattr(lab.path, XATTR))
            assert os.path.dirname(folder) == str(state / "vfsfuse") and folder.endswith(SUFFIX)
            assert os.getxattr(lab.path, XATTR) == os.fsencode(folder)
    assert os.listdir(state / "vfsfuse") == []


def test_a_lab_without_a_state_directory_has_none(tmp_path: Path) -> None:
    """Each run has definitions of its own then."""
    (tmp_path / "file").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
        with MountedLab(tmp_path) as lab:
            with pytest.raises(OSError, match="No data available"):
                os.getxattr(lab.path, XATTR)
            inside("touch", DRIVERCTL / "x", lab=lab)
            assert inside("ls", DRIVERCTL, lab=lab) == ""


@needs.root("acting as two users takes root")
def test_another_users_program_has_its_own() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        with MountedLab(Path(folder)) as lab:
            inside("touch", DRIVERCTL / "roots", lab=lab)
            words = ["touch", str(DRIVERCTL / "x"), "&&", "ls", str(DRIVERCTL)]
            command = [
                *AS_NOBODY,
                *VFSFUSE,
                "run",
                "--mount",
                str(lab.path),
                "--",
                "sh",
                "-c",
                " ".join(words),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
            assert (done.returncode, done.stdout, done.stderr) == (0, "x\n", "")
            asked = f"import os; print(os.getxattr({str(lab.path)!r}, {XATTR!r}))"
            done = subprocess.run(
                [*AS_NOBODY, sys.executable, "-c", asked],
                capture_output=True,
                text=True,
                check=False,
                cwd=ROOT,
            )
            assert "No data available" in done.stderr
            assert inside("ls", DRIVERCTL, lab=lab) == "roots\n"


def test_the_scripts_of_the_machine_stay_usable_and_are_read_only(lab: MountedLab) -> None:
    scripts = MDEVCTL / "scripts.d"
    if not scripts.is_dir():
        pytest.skip(f"{scripts} is not there: mdevctl is not installed, or has its scripts in /usr alone")
    for each in (None, lab):
        assert sorted(inside("ls", scripts, lab=each).split()) == sorted(os.listdir(scripts))
    done = vfsfuse("run", "--", "touch", scripts / "x")
    assert done.returncode and "Read-only file system" in done.stderr


def test_driverctl_saves_in_the_lab(lab: MountedLab) -> None:
    need("driverctl")
    vfsfuse("run", "--mount", lab.path, "--", "driverctl", "set-override", GPU, "vfio-pci")
    saved = inside("sh", "-c", f"cat {DRIVERCTL}/*", lab=lab)
    assert saved == "vfio-pci\n"
    vfsfuse("run", "--mount", lab.path, "--", "driverctl", "unset-override", GPU)
    assert inside("ls", DRIVERCTL, lab=lab) == ""


@needs.root("covering /etc takes root")
@pytest.mark.parametrize(("user", "left"), [((), ["/etc/mdevctl.d"]), (AS_NOBODY, [])])
def test_a_folder_that_is_missing_is_made_for_a_tool_that_is_there(
    tmp_path: Path, user: Sequence[str], left: list[str]
) -> None:
    """A user who may not write to /etc has another /etc, and the machine's stays as it is."""
    need("mdevctl")
    etc = tmp_path / "etc"
    shutil.copytree("/etc", etc, symlinks=True, ignore=shutil.ignore_patterns("mdevctl.d", "driverctl.d"))
    etc.chmod(0o755)
    script = f"""
        mount --bind {etc} /etc && "$@" -- sh -c 'touch /etc/mdevctl.d/x && ls /etc/mdevctl.d /etc/passwd' &&
        find /etc -name mdevctl.d"""
    command = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", *user, *VFSFUSE, "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["/etc/passwd", "", "/etc/mdevctl.d:", "x", *left]


# ---- the folder on disk ----


def test_the_folder_of_a_server_that_was_killed_is_removed_by_the_next(tmp_path: Path) -> None:
    code = """
import os, sys
from vfsfuse.ownfolder import OwnFolder
print(OwnFolder(lambda: sys.argv[1], "lab").path(), flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as server:
        assert server.stdout is not None
        left = Path(server.stdout.readline().rstrip("\n"))
        (left / "deep" / "er").mkdir(parents=True)
        one = OwnFolder(lambda: str(tmp_path), "lab")
        assert Path(one.path()) != left and left.is_dir()
        server.kill()
        server.wait()
    other = OwnFolder(lambda: str(tmp_path), "lab")
    assert Path(other.path()).is_dir() and not left.exists() and Path(one.path()).is_dir()
    other.remove()
    one.remove()
    assert not list(tmp_path.iterdir())


def test_servers_that_start_at_once_have_a_folder_each(tmp_path: Path) -> None:
    folders = [OwnFolder(lambda: str(tmp_path), "lab") for _ in range(20)]
    threads = [threading.Thread(target=each.path) for each in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each.path() for each in folders}) == 20 == len(list(tmp_path.iterdir()))
    for each in folders:
        each.remove()


def test_a_symlink_in_the_state_directory_is_left_alone(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    state = tmp_path / "state"
    state.mkdir()
    (state / f"x{SUFFIX}").symlink_to(own)
    folder = OwnFolder(lambda: str(state), "lab")
    folder.path()
    folder.remove()
    assert own.is_dir() and (state / f"x{SUFFIX}").is_symlink()
