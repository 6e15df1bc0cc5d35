# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse.Lab`: mounted, joined, described in each way, and gone in the end, however the end comes."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT, VFSFUSE
from tests.commands import vfsfuse as command
from tests.waiting import wait_for
from vfsfuse import Lab, LabError
from vfsfuse.api import server
from vfsfuse.api.server import is_mountpoint

COPIER = ROOT / "examples/copier.toml"
DESCRIBED: dict[str, object] = {
    "models": {"copier": "copier.py:Copier"},
    "parents": {
        "copiers": {
            "kind": "virtual",
            "driver": "copier",
            "slots": 2,
            "types": {"copier-1": {"description": 'a "device"'}},
        }
    },
}
TEXT = """\
[parents.ports]
kind = "virtual"
driver = "mtty"
model = "mtty"
slots = 2
types.mtty-1 = { description = "a port" }
"""
STUCK = '''\
"""A model with an attribute whose show() does not return."""

from pathlib import Path

from devmodel.sdk import DeviceAttribute, Identity, PciDevice


def show(device: PciDevice) -> str:
    Path(__file__).with_name("reached").touch()
    while True:
        pass


class Stuck(PciDevice):
    identity = Identity(0x1234, 0xC0F7, 0x1AF4, 0x1100, class_code=0x088000)
    ATTRIBUTES = (DeviceAttribute("stuck", show),)
'''
RAISING = STUCK.replace("while True:\n        pass", 'raise KeyError("of the model")')
MODEL = """\
models = { stuck = "stuck.py:Stuck" }
[parents.pool]
kind = "virtual"
driver = "stuck"
slots = 1
types.stuck = { description = "never answers" }
"""


def server_of(path: Path) -> int:
    """The pid of the server of a lab."""
    return int(os.getxattr(path, "user.vfsfuse.pid"))


def is_over(pid: int) -> bool:
    """Whether a process has ended.  One that nobody has waited for has ended, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


@contextlib.contextmanager
def program(text: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program that prints a line when it is ready."""
    started = subprocess.Popen(
        [sys.executable, "-c", text, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def test_a_lab_of_a_temporary_directory_goes_away() -> None:
    with Lab() as lab:
        path, pid = lab.path, lab.pid
        assert path.is_absolute() and is_mountpoint(path) and server_of(path) == pid
        assert sorted(lab.parents) == ["0000:86:00.0", "mbochs", "mdpy", "mtty"]
        assert "mounted at" in lab.log
    assert not path.exists() and is_over(pid)
    assert lab.log.splitlines()[-1].endswith("unmounted")
    lab.close()  # again


def test_a_lab_is_not_there_before_and_after() -> None:
    lab = Lab()
    with pytest.raises(LabError, match="not mounted"):
        lab.path  # noqa: B018
    lab.start()
    with pytest.raises(LabError, match="mounted already"):
        lab.start()
    lab.close()
    with pytest.raises(LabError, match="not mounted"):
        lab.parents  # noqa: B018


def test_one_lab_is_mounted_again_and_again(tmp_path: Path) -> None:
    lab = Lab(at=tmp_path / "a b\\c", strict=True)
    for _ in range(2):
        with lab:
            assert lab.path == tmp_path / "a b\\c" and is_mountpoint(lab.path)
        assert not (tmp_path / "a b\\c").exists()


def test_a_mountpoint_that_was_there_stays(tmp_path: Path) -> None:
    with Lab(at=tmp_path):
        assert is_mountpoint(tmp_path)
    assert tmp_path.is_dir() and not is_mountpoint(tmp_path)


@pytest.mark.parametrize("config", [COPIER, str(COPIER), DESCRIBED], ids=["path", "name", "tables"])
def test_a_lab_is_described(config: Path | str | dict[str, object]) -> None:
    with Lab(config, folder=ROOT / "examples", strict=True) as lab:
        assert list(lab.parents) == ["copiers"]
        assert list(lab.parents["copiers"].types) == ["copier-1"]
        lab.create("copier-1").remove()


def test_a_lab_is_described_by_a_text() -> None:
    with Lab(TEXT) as lab:
        assert lab.parents["ports"].types["mtty-1"].description == "a port"


def test_paths_of_a_text_begin_at_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stuck.py").write_text(STUCK)
    (tmp_path / "trio.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    with Lab(MODEL) as lab:
        assert list(lab.parents) == ["pool"]


def test_all_errors_of_a_lab_file_are_the_exception() -> None:
    with pytest.raises(LabError) as caught:
        Lab("[parents.x]\nkind = 'a'\nfoo = 3\n").start()
    lines = str(caught.value).splitlines()
    assert lines[0] == '<stdin>: parents.x.kind: \'a\' is not a kind of parent (give "gpu" or "virtual")'
    assert [line.split(": ")[1] for line in lines[1:]] == [
        "parents.x.foo",
        "parents.x.driver",
        "parents.x.types",
    ]
    with pytest.raises(LabError, match=r"^/nowhere: cannot be read: No such file or directory \(check the"):
        Lab("/nowhere").start()


def test_a_mountpoint_that_cannot_be_is_the_exception(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LabError, match=f"^{tmp_path}: Directory not empty"):
        Lab(at=tmp_path).start()
    with pytest.raises(LabError, match=f"^{tmp_path}/file: Not a directory"):
        Lab(at=tmp_path / "file").start()
    assert os.listdir(tmp_path) == ["file"]


def test_a_start_that_fails_leaves_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(LabError):
        Lab("/nowhere").start()
    with pytest.raises(LabError):
        Lab("/nowhere", at=tmp_path / "lab").start()
    with pytest.raises(FileNotFoundError):
        Lab(log_path="/nowhere/log").start()
    with pytest.raises(LabError, match=r"^argument --log-level: invalid choice: 'loud'"):
        Lab(log_level="loud").start()
    assert os.listdir(tmp_path) == []


def test_values_that_a_lab_file_cannot_have() -> None:
    with pytest.raises(TypeError, match=r"^parents\.x: a lab file cannot have the NoneType None"):
        Lab({"parents": {"x": None}})


def test_a_lab_that_is_there_is_joined(tmp_path: Path) -> None:
    with Lab(at=tmp_path) as mounted:
        with Lab(at=tmp_path) as joined:
            assert (joined.path, joined.pid, joined.log) == (tmp_path, mounted.pid, "")
            vgpu = joined.create("vgpu-4")
        assert list(mounted.vgpus) == [vgpu.name]
        with pytest.raises(LabError, match="a lab is mounted there already"):
            Lab(TEXT, at=tmp_path).start()
        assert is_mountpoint(tmp_path)


def test_a_lab_of_the_command_line_is_joined(tmp_path: Path) -> None:
    assert command("mount", "--log-file", tmp_path / "log", tmp_path / "lab").returncode == 0
    try:
        with Lab(at=tmp_path / "lab") as lab:
            assert lab.pid == server_of(tmp_path / "lab")
    finally:
        assert command("umount", tmp_path / "lab").returncode == 0


def test_a_silent_lab_is_not_joined(tmp_path: Path) -> None:
    with Lab(at=tmp_path) as lab:
        os.kill(lab.pid, signal.SIGSTOP)
        with pytest.raises(LabError, match=r"a lab is mounted there already, but the server .* is stopped"):
            Lab(at=tmp_path).start()
    assert not is_mountpoint(tmp_path)  # a server that is stopped goes on to end


LYING = """
import sys
from vfsfuse.cli import main
from vfsfuse.kernfs.operations import Operations

async def getxattr(*_):
    return b"\\x1b[2J one"

Operations.getxattr = getxattr
sys.exit(main())
"""


def test_a_lab_that_tells_no_pid_is_not_joined(tmp_path: Path) -> None:
    with Lab(at=tmp_path / "lab", command=[sys.executable, "-c", LYING]):
        joined = Lab(at=tmp_path / "lab")
        with pytest.raises(LabError, match="does not tell who serves it") as caught:
            joined.start()
        assert "\x1b" not in str(caught.value)
        joined.close()


def test_a_server_that_was_killed_is_one_clear_exception(tmp_path: Path) -> None:
    with Lab(at=tmp_path) as lab:
        vgpu = lab.create("vgpu-4")
        os.kill(lab.pid, signal.SIGKILL)
        wait_for(lambda: is_over(lab.pid))
        for call in (lambda: vgpu.attribute("class"), lambda: list(lab.vgpus), lambda: vgpu.set("remove", 1)):
            with pytest.raises(LabError, match="the server was killed by SIGKILL") as caught:
                call()
            assert isinstance(caught.value.__cause__, OSError)
        with pytest.raises(LabError, match="the server was killed by SIGKILL"):
            lab.parents["mtty"]
    assert not is_mountpoint(tmp_path)


def test_a_joined_lab_whose_server_was_killed(tmp_path: Path) -> None:
    with Lab(at=tmp_path) as lab, Lab(at=tmp_path) as joined:
        os.kill(lab.pid, signal.SIGKILL)
        wait_for(lambda: is_over(lab.pid))
        with pytest.raises(LabError, match="the server of this lab is gone"):
            list(joined.vgpus)


def test_a_lab_that_somebody_unmounts_has_ended(tmp_path: Path) -> None:
    with Lab(at=tmp_path, strict=True) as lab:
        assert command("umount", tmp_path).returncode == 0
        with pytest.raises(LabError, match="the server ended with status 0"):
            list(lab.vgpus)
        with pytest.raises(LabError, match="the server ended with status 0"):
            lab.create("vgpu-4")


def test_an_end_that_waits_for_the_server() -> None:
    with Lab(umount=False, strict=True) as lab:
        threading.Timer(0.1, command, ["umount", lab.path]).start()


def test_strict_is_about_status_and_tracebacks(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(RAISING)
    for strict in (False, True):
        lab = Lab(MODEL, folder=tmp_path, strict=strict)
        told = pytest.raises(LabError, match=r"(?s)Traceback.*of the model")
        failed = pytest.raises(OSError, match="Input/output error")
        with told if strict else contextlib.nullcontext(), lab, failed:
            lab.create("stuck").attribute("stuck")
        assert "of the model" in lab.log
    with pytest.raises(LabError, match="the server was killed by SIGKILL:"), Lab(strict=True) as lab:
        os.kill(lab.pid, signal.SIGKILL)


def test_an_exception_of_the_program_is_the_one_that_is_raised() -> None:
    with pytest.raises(KeyboardInterrupt), Lab(strict=True) as lab:
        path, pid = lab.path, lab.pid
        os.kill(lab.pid, signal.SIGKILL)
        raise KeyboardInterrupt
    assert not path.exists() and is_over(pid)


def test_models_are_reloaded(tmp_path: Path) -> None:
    model = tmp_path / "stuck.py"
    model.write_text(STUCK)
    with Lab(MODEL, folder=tmp_path, strict=True) as lab, lab.create("stuck") as vgpu:
        model.write_text(STUCK.replace("0x1AF4, 0x1100", "0x1AF4, 0x1200"))
        assert lab.reload("stuck") == "1 device is reloaded"
        assert vgpu.attribute("subsystem_device") == "0x1200"
        model.write_text("\nclass Stuck(")
        with pytest.raises(LabError, match=rf"{model} cannot be loaded: SyntaxError.*stuck\.py:2"):
            lab.reload()
        with pytest.raises(LabError, match="nothing"):
            lab.reload("nothing")
        assert vgpu.attribute("subsystem_device") == "0x1200"


def test_the_log_goes_to_a_file(tmp_path: Path) -> None:
    with Lab(log_path=tmp_path / "server.log", log_level="debug", options=["--log-file", "unused"]) as lab:
        assert "mounted at" in (tmp_path / "server.log").read_text()
        assert lab.log_path == tmp_path / "server.log"
    assert (tmp_path / "server.log").read_text() == lab.log


def test_a_model_that_does_not_return_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stuck.py").write_text(STUCK)
    monkeypatch.setattr(server, "END_SECONDS", 1)
    lab = Lab(MODEL, folder=tmp_path)
    with pytest.raises(LabError, match="did not end within 1 seconds, and was killed"), lab:
        path, pid, vgpu = lab.path, lab.pid, lab.create("stuck")
        reader = subprocess.Popen(["cat", vgpu.path / "stuck"], stderr=subprocess.DEVNULL)
        wait_for((tmp_path / "reached").exists)
    assert not path.exists() and is_over(pid)
    assert reader.wait() == 1


HOLDING = """
import os, sys, threading, time
from vfsfuse import Lab
def start():
    global lab
    lab = Lab(*sys.argv[1:2] and [open(sys.argv[1]).read()], folder=os.path.dirname(sys.argv[1]) or None)
    lab.start()
    if lab.parents.get("pool"):
        vgpu = lab.create("stuck")
        os.spawnlp(os.P_NOWAIT, "cat", "cat", str(vgpu.path / "stuck"))
        while not os.path.exists(os.path.dirname(sys.argv[1]) + "/reached"):
            time.sleep(0.01)
thread = threading.Thread(target=start)
thread.start()
thread.join()
child = os.fork()
if not child:
    time.sleep(1000)  # it has all descriptors of its parent
print(lab.path, lab.pid, child, flush=True)
os.listdir(lab.path / "sys")
time.sleep(1000)
"""


@pytest.mark.parametrize("stuck", [False, True])
def test_a_killed_process_leaves_nothing(tmp_path: Path, stuck: bool) -> None:
    """The lab outlives the thread that has started it, and does not outlive the process, although a forked
    child goes on, and although the process waits for the server when it is killed."""
    (tmp_path / "stuck.py").write_text(STUCK)
    (tmp_path / "lab.toml").write_text(MODEL if stuck else TEXT)
    with program(HOLDING, str(tmp_path / "lab.toml")) as holder:
        assert holder.stdout is not None
        path, pid, child = holder.stdout.readline().split()
        assert is_mountpoint(Path(path))
        holder.send_signal(signal.SIGKILL)
        wait_for(lambda: is_over(int(pid)))
        wait_for(lambda: not is_mountpoint(Path(path)))
        os.rmdir(path)
        assert not is_over(int(child))
        os.kill(int(child), signal.SIGKILL)


FORKING = """
import os
from vfsfuse import Lab
with Lab(strict=True) as lab:
    child = os.fork()
    if not child:
        lab.close()
        os._exit(0)
    os.waitpid(child, 0)
    print(os.listdir(lab.path / "sys/class/mdev_bus") != [])
"""


def test_a_forked_child_does_not_end_the_lab() -> None:
    command = [sys.executable, "-u", "-W", "ignore::DeprecationWarning", "-c", FORKING]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


FORKING_WITHIN = """
import os, sys
from vfsfuse import Lab

def fork():
    child = os.fork()
    if not child:
        sys.exit()
    os.waitpid(child, 0)

with Lab(strict=True) as lab:
    with lab.functions["0000:86:00.0"].bound() as function:
        fork()
        print(function.driver)
    with lab.create("vgpu-4") as vgpu, lab.trace(vgpu) as trace, vgpu.open() as device:
        with device.map(4096), device.interrupts("msix", 1) as interrupts:
            fork()
            interrupts.trigger()
            interrupts.wait()
        print(vgpu.exists(), [each.kind for each in trace.records].count("interrupt"))
"""


def test_a_forked_child_leaves_everything_as_it_is() -> None:
    """It leaves all `with` statements, as its parent does later."""
    command = [sys.executable, "-u", "-W", "ignore::DeprecationWarning", "-c", FORKING_WITHIN]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("vfio-pci\nTrue 1\n", "", 0)


def test_the_terminal_does_not_interrupt_the_server() -> None:
    with Lab() as lab:
        assert os.getsid(lab.pid) == lab.pid != os.getsid(0)


def test_programs_find_the_lab(tmp_path: Path) -> None:
    with Lab(strict=True) as lab:
        done = lab.run(["sh", "-c", "ls /sys/class/mdev_bus; pwd; exit 3"], cwd=tmp_path, capture_output=True)
        assert done.stdout.decode().split() == [*sorted(lab.parents), str(tmp_path)]
        assert done.returncode == 3 and done.args[0] == "sh"  # a report of pytest shows what the test said
        assert lab.run("true").returncode == 0
        line = "ls /sys/class/mdev_bus | wc -l"
        assert lab.run(line, shell=True, capture_output=True, text=True).stdout == "4\n"
        with pytest.raises(subprocess.CalledProcessError, match=r"^Command '\['false'\]' returned non-zero"):
            lab.run(["false"], check=True)
        assert lab.run(["no-such-program"], stderr=subprocess.DEVNULL).returncode == 127
        with pytest.raises(subprocess.TimeoutExpired, match=r"^Command '\['sleep', '100'\]' timed out"):
            lab.run(["sleep", "100"], timeout=1)
        with lab.popen(["cat", "/proc/self/stat"], stdout=subprocess.PIPE, text=True) as process:
            assert process.args == ["cat", "/proc/self/stat"]
            assert process.stdout is not None and int(process.stdout.read().split()[0]) == process.pid


def test_programs_get_what_options_of_run_give() -> None:
    with Lab() as lab:
        is_device, network = ["test", "-c", "/dev/vfio/vfio"], ["readlink", "/proc/self/ns/net"]
        assert [lab.run(is_device, stat_paths=asked).returncode for asked in (False, True)] == [1, 0]
        ours = os.readlink("/proc/self/ns/net")
        assert ours not in lab.run(network, udev=True, capture_output=True, text=True).stdout
        with lab.popen(network, udev=True, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.read() not in ("", f"{ours}\n")


@pytest.mark.parametrize("quiet", [False, True])
def test_a_program_is_told_of_the_end_of_its_lab_unless_it_is_quiet(quiet: bool) -> None:
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with Lab() as lab, lab.popen("echo up; cat", shell=True, quiet=quiet, text=True, **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        assert process.stderr is not None
        lab.kill()
        said = "" if quiet else process.stderr.readline()
        assert ("has ended" in said) != quiet
        assert process.communicate()[1] == ""


def test_a_lab_comes_from_standard_input(tmp_path: Path) -> None:
    check = subprocess.run([*VFSFUSE, "check", "-"], input=TEXT, capture_output=True, text=True, check=True)
    assert "ports" in check.stdout
    bad = subprocess.run([*VFSFUSE, "check", "-"], input="a", capture_output=True, text=True, check=False)
    assert bad.stderr.startswith("vfsfuse: check: <stdin>: not TOML: ")
    started = [*VFSFUSE, "mount", "--config", "-", "--log-file", str(tmp_path / "log"), str(tmp_path / "lab")]
    subprocess.run(started, input=TEXT, text=True, check=True, stdout=subprocess.DEVNULL)
    try:
        assert os.listdir(tmp_path / "lab/sys/class/mdev_bus") == ["ports"]
        assert os.readlink(f"/proc/{server_of(tmp_path / 'lab')}/fd/0") == "/dev/null"
    finally:
        assert command("umount", tmp_path / "lab").returncode == 0


@pytest.mark.parametrize("number", [0, 9])
def test_a_server_in_the_background_ends_with_a_descriptor(tmp_path: Path, number: int) -> None:
    reader, writer = os.pipe()
    try:
        started = [*VFSFUSE, "mount", "--end-fd", str(number), "--log-file", str(tmp_path / "log")]
        shell = ["bash", "-c", f'"$@" {number}<&{reader}', "bash", *started, str(tmp_path / "lab")]
        subprocess.run(shell, check=True, stdout=subprocess.DEVNULL, pass_fds=(reader,))
        assert is_mountpoint(tmp_path / "lab")
    finally:
        os.close(writer)
        os.close(reader)
    wait_for(lambda: not is_mountpoint(tmp_path / "lab"))
    wait_for(lambda: "unmounted" in (tmp_path / "log").read_text())


def test_an_end_descriptor_that_is_not_open(tmp_path: Path) -> None:
    done = command("mount", "--end-fd", "200", tmp_path / "lab")
    assert done.returncode == 1
    assert done.stderr.startswith("vfsfuse: mount: --end-fd 200: no such descriptor is open")


def test_errors_of_stores_have_errno_and_path() -> None:
    with Lab() as lab:
        parent = lab.parents["0000:86:00.0"]
        whole = lab.create("vgpu-1")
        with pytest.raises(OSError) as caught:
            parent.create("vgpu-8")
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(parent.path / "mdev_supported_types/vgpu-8/create")
        with pytest.raises(FileExistsError):
            lab.create("mtty-1", "mtty", whole.uuid)
