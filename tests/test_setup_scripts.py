# SPDX-License-Identifier: Apache-2.0
"""The set-up scripts: mount.sh and tools/setup.sh run for real, in a small checkout of their own.

That they call the real python, pip and apt-get rightly is what every CI run shows: it sets itself up by them.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests import needs
from tests.checkout import ROOT, SOURCES, Checkout
from tests.intime import in_time

SCRIPTS = ("mount.sh", "tools/setup.sh", "tests/run.sh", "tests/qemu/newer.sh", ".ci/run")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def ready(checkout: Checkout) -> Checkout:
    """A checkout that is set up."""
    checkout.run("tools/setup.sh")
    assert checkout.calls() == ["venv", "pip ."]
    return checkout


def test_a_second_run_calls_nothing_and_says_nothing(ready: Checkout) -> None:
    assert ready.run("tools/setup.sh") == ("", "")
    assert ready.calls() == []


def test_the_sources_are_compiled_for_whoever_mounts(ready: Checkout) -> None:
    assert (ready.root / ".venv/compiled").read_text() == "-q vfsfuse devmodel ioctl_shim\n"


@pytest.mark.parametrize("name", [*SOURCES, "ioctl_shim/native/new.h"])
def test_a_changed_source_is_built_again(ready: Checkout, name: str) -> None:
    ready.add(name, "changed")
    ready.run("tools/setup.sh")
    assert ready.calls() == ["pip ."]


def test_a_deleted_extension_is_built_again(ready: Checkout) -> None:
    (ready.root / "ioctl_shim/_native.abi3.so").unlink()
    ready.run("tools/setup.sh")
    assert ready.calls() == ["pip ."]


def test_an_environment_for_tests_serves_a_mount_but_not_the_other_way_round(ready: Checkout) -> None:
    ready.run("tools/setup.sh", "test")
    assert ready.calls() == ["pip .[test]"]
    ready.run("tools/setup.sh")
    ready.run("tools/setup.sh", "test")
    assert ready.calls() == []


def test_a_vanished_interpreter_means_a_new_environment(ready: Checkout) -> None:
    (ready.bin / "python3").unlink()
    other = ready.python("other")
    ready.run("tools/setup.sh", PYTHON=str(other))
    assert ready.calls() == ["venv", "pip ."]


def test_another_interpreter_asked_for_means_a_new_environment(ready: Checkout) -> None:
    other = ready.python("other")
    ready.run("tools/setup.sh", PYTHON=str(other))
    assert ready.calls() == ["venv", "pip ."]
    ready.run("tools/setup.sh")
    assert ready.calls() == []


def test_a_moved_checkout_means_a_new_environment(ready: Checkout) -> None:
    ready.root = ready.root.rename(ready.root.with_name("moved"))
    ready.run("tools/setup.sh")
    assert ready.calls() == ["venv", "pip ."]


def test_a_failing_pip_shows_its_last_words_and_is_not_trusted_after(checkout: Checkout) -> None:
    checkout.python(pip="echo no such compiler; exit 1")
    _, err = checkout.run("tools/setup.sh", status=1)
    assert "no such compiler" in err
    assert err.splitlines()[-1].startswith("setup.sh: pip failed")
    checkout.python()
    checkout.calls()
    checkout.run("tools/setup.sh")
    assert checkout.calls() == ["venv", "pip ."]


def test_a_failed_rebuild_is_not_trusted_when_the_change_is_taken_back(ready: Checkout) -> None:
    was = (ready.root / "setup.cfg").read_text()
    ready.python(pip="exit 1")
    ready.add("setup.cfg", "changed")
    ready.run("tools/setup.sh", status=1)
    ready.add("setup.cfg", was)
    ready.python()
    ready.calls()
    ready.run("tools/setup.sh")
    assert ready.calls() == ["venv", "pip ."]


def test_a_failed_change_of_interpreter_is_not_trusted_after(ready: Checkout) -> None:
    other = str(ready.python("other", pip="exit 1"))
    ready.run("tools/setup.sh", status=1, PYTHON=other)
    ready.python("other")
    ready.calls()
    ready.run("tools/setup.sh", PYTHON=other)
    assert ready.calls() == ["venv", "pip ."]


def test_an_interrupted_set_up_is_not_trusted_after(checkout: Checkout) -> None:
    checkout.python(pip="sleep 60")
    process = checkout.start("tools/setup.sh")
    with process:
        wait_until(lambda: checkout.calls_file.exists() and "pip" in checkout.calls_file.read_text())
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) != 0
    checkout.python()
    checkout.calls()
    checkout.run("tools/setup.sh")
    assert checkout.calls() == ["venv", "pip ."]


def test_two_at_once_set_up_once(checkout: Checkout) -> None:
    checkout.python(pip="sleep 1")
    both = [checkout.start("tools/setup.sh") for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert checkout.calls() == ["venv", "pip ."]
    assert sum(err.startswith("waiting for process ") and err.count("\n") == 1 for err in said) == 1, said


LOCK = """
import fcntl, sys
with open(sys.argv[1], "a") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print(flush=True)
    sys.stdin.read()
"""


def test_a_lock_that_is_no_set_ups_is_reported_with_its_holder(ready: Checkout) -> None:
    ready.add("setup.cfg", "changed")
    command = [sys.executable, "-c", LOCK, str(ready.root / ".venv/.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"\n"
        _, err = in_time(lambda: ready.run("mount.sh", status=1))
        holder.communicate()
    whose = f"process {holder.pid} of user {os.geteuid()} holds a lock on {ready.root}/.venv/.lock"
    assert err.startswith(f"mount.sh: {whose}") and err.count("\n") == 1
    assert ready.calls() == []


def test_a_set_up_that_is_stopped_is_not_waited_for(checkout: Checkout) -> None:
    checkout.python(pip="sleep 60")
    with checkout.start("tools/setup.sh") as first:
        wait_until(lambda: checkout.calls_file.exists() and "pip" in checkout.calls_file.read_text())
        os.killpg(first.pid, signal.SIGSTOP)
        try:
            _, err = checkout.run("tools/setup.sh", status=1)
        finally:
            os.killpg(first.pid, signal.SIGKILL)
    assert "holds a lock on" in err and err.count("\n") == 1, err


@needs.root("only root can be two users")
@pytest.mark.parametrize("name", [".venv", ".venv/.lock", ".venv/setup.log", ".venv/.stamp.new"])
@pytest.mark.parametrize("script", ["mount.sh", "tools/setup.sh"])
def test_another_users_link_in_a_sticky_folder_is_not_followed(
    checkout: Checkout, tmp_path: Path, name: str, script: str
) -> None:
    trap, theirs = tmp_path / "trap", checkout.root / name
    if name == ".venv":
        trap.mkdir()
    else:
        trap.write_text("precious")
        theirs.parent.mkdir()
    theirs.parent.chmod(0o1777)
    theirs.symlink_to(trap)
    os.chown(theirs, 65534, 65534, follow_symlinks=False)
    _, err = checkout.run(script, status=1)
    assert f"{theirs} is of user 65534" in err and err.count("\n") == 1
    assert checkout.calls() == []
    assert not os.listdir(trap) if trap.is_dir() else trap.read_text() == "precious"
    os.chown(theirs, 0, 0, follow_symlinks=False)
    checkout.run(script)  # one's own is followed


def test_a_user_is_told_the_exact_apt_line_and_nothing_is_made(checkout: Checkout) -> None:
    checkout.user(1000)
    for name in ("gcc", "pkg-config", "fusermount3"):
        (checkout.bin / name).unlink()
    bare = checkout.python(probe="1 0 0", says="/usr/bin/python3.99")
    _, err = checkout.run("tools/setup.sh", status=1, PYTHON=str(bare))
    line = "  sudo apt-get install fuse3 pkg-config libfuse3-dev gcc python3.99-venv python3.99-dev"
    assert err.splitlines()[-1] == line
    assert checkout.calls() == []


def test_root_installs_just_what_is_missing_and_updates_only_when_that_fails(checkout: Checkout) -> None:
    checkout.user(0)
    (checkout.bin / "gcc").unlink()
    checkout.run("tools/setup.sh")
    install = "apt-get install -y --no-install-recommends gcc"
    assert checkout.calls() == [install, "apt-get update", install, "venv", "pip ."]
    (checkout.bin / "gcc").unlink()
    checkout.add("setup.cfg", "changed")
    checkout.run("tools/setup.sh")
    assert checkout.calls() == [install, "pip ."]


def test_an_interpreter_that_cannot_serve_is_named(checkout: Checkout) -> None:
    checkout.fake("old", "exit 1")
    _, err = checkout.run("tools/setup.sh", status=1, PYTHON="old")
    assert "PYTHON=old is no CPython >= 3.11" in err


def test_the_optimized_interpreter_is_preferred_and_a_dead_shim_passed_over(checkout: Checkout) -> None:
    checkout.fake("python3", "exit 127")
    checkout.python("slow/python3", probe="0 1 1")
    checkout.python("bare/python3", probe="1 0 1")
    best = checkout.python("best/python3")
    path = ":".join(str(checkout.bin / name) for name in ("", "slow", "bare", "best"))
    _, err = checkout.run("tools/setup.sh", PATH=path)
    assert err.splitlines()[0] == f"making .venv with {best}"


def test_the_probe_knows_a_real_interpreter() -> None:
    script = '. tools/setup.sh; look_at python3; echo "$optimized $has_venv $has_header"; echo "$python"'
    environment = {**os.environ, "PATH": f"{ROOT}/.venv/bin:/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    flags, path = done.stdout.splitlines()
    assert set(flags.split()) <= {"0", "1"}
    assert os.path.isabs(path) and os.path.realpath(path) == path and ".venv" not in path


MOUNTS: list[tuple[Sequence[str], Sequence[str]]] = [
    ([], ["mount", "--", "{root}/mnt"]),
    (["lab"], ["mount", "--", "lab"]),
    (["--config", "my lab.toml", "lab"], ["mount", "--config=my lab.toml", "--", "lab"]),
    (
        ["--foreground", "--log-level=debug"],
        ["mount", "--foreground", "--log-level=debug", "--", "{root}/mnt"],
    ),
    (["-u"], ["umount", "--", "{root}/mnt"]),
    (["lab", "--umount"], ["umount", "--", "lab"]),
    (["--", "-odd"], ["mount", "--", "-odd"]),
]


@pytest.mark.parametrize("args, calls", MOUNTS)
def test_mount_hands_on_what_it_was_told(ready: Checkout, args: Sequence[str], calls: Sequence[str]) -> None:
    out, err = ready.run("mount.sh", *args)
    assert out.splitlines() == [word.format(root=ready.root) for word in calls]
    assert err == ""


@pytest.mark.parametrize("args", [["--wat"], ["one", "two"], ["--config"], ["-u", "--foreground"]])
def test_misuse_is_one_line_and_status_2(checkout: Checkout, args: Sequence[str]) -> None:
    out, err = checkout.run("mount.sh", *args, status=2)
    assert (out, err.count("\n")) == ("", 1)
    assert checkout.calls() == []


def test_help_sets_nothing_up(checkout: Checkout) -> None:
    out, _ = checkout.run("mount.sh", "--help")
    assert out.startswith("usage: ./mount.sh")
    assert checkout.calls() == []


def test_unmounting_builds_nothing_when_the_sources_have_changed(ready: Checkout) -> None:
    ready.add("setup.cfg", "changed")
    ready.run("mount.sh", "-u")
    assert ready.calls() == []


@pytest.mark.parametrize(
    "broken, status", [("", 0), ("ruff", 1), ("mypy", 1), ("codespell_lib", 1), ("pytest", 1)]
)
def test_run_checks_everything_and_fails_when_anything_does(
    checkout: Checkout, broken: str, status: int
) -> None:
    checkout.python(fails=broken)
    _, err = checkout.run("tests/run.sh", "tests/unit", "-k", "two words", status=status)
    style = "-m codespell_lib README.md CONTRIBUTING.md docs/*.md"
    ran = ["-m ruff check .", "-m ruff format --check .", "-m mypy", style]
    ran.append("-m pytest tests/unit -k two words")
    assert checkout.calls() == ["venv", "pip .[test]", *ran]
    assert (f"failed: [{broken}" in err) == bool(broken)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(
        ["shellcheck", "-x", *SCRIPTS], check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout + done.stderr == ""


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, "nothing happened for 30 s"
        time.sleep(0.02)
