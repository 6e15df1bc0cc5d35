# SPDX-License-Identifier: Apache-2.0
"""Signals that come as bytes of a pipe.  Each case is a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.commands import ROOT

NOTED = """
import errno, os, signal, sys
from ioctl_shim.signals import NotedSignals
noted = NotedSignals([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
reader = noted.reader
"""
SECONDS = 60


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", NOTED + code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS)


def test_each_signal_is_one_byte() -> None:
    done = run("""
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
    os.kill(os.getpid(), number)
print(*os.read(reader, 9))
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 15 2 15\n", "")


def test_a_read_does_not_wait_and_no_number_of_signals_is_too_much() -> None:
    done = run("""
try:
    os.read(reader, 1)
except BlockingIOError:
    print("empty")
for _ in range(1 << 17):
    os.kill(os.getpid(), signal.SIGTERM)
print(len(os.read(reader, 1 << 20)))
""")
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["empty", str(1 << 16)], "")


def test_a_process_that_gets_them_until_it_has_ended_ends_well() -> None:
    code = f"{NOTED}import select\nprint(flush=True)\nselect.select([reader], [], [])\nnoted.ignore()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        deadline = time.monotonic() + SECONDS
        while process.poll() is None:
            assert time.monotonic() < deadline
            process.terminate()
        assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_fork_has_the_default_action(number: signal.Signals) -> None:
    done = run(f"""
child = os.fork()
if not child:
    os.kill(os.getpid(), {int(number)})
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    os.read(reader, 1)
except BlockingIOError:
    print("nothing")
""")
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [str(-number), "nothing"], "")


def test_a_call_that_waits_is_not_interrupted() -> None:
    done = run("""
import ctypes, select, threading
here, there = os.pipe()
main = threading.main_thread()
def interrupt():
    while open(f"/proc/self/task/{main.native_id}/syscall").read().split()[1:2] != [hex(here)]:
        pass
    signal.pthread_kill(main.ident, signal.SIGTERM)
    select.select([reader], [], [])
    os.write(there, b"x")
threading.Thread(target=interrupt).start()
libc = ctypes.CDLL(None, use_errno=True)
print(libc.read(here, ctypes.create_string_buffer(1), 1), *os.read(reader, 1))
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 15\n", "")


def test_python_gives_them_back_and_they_are_noted_again() -> None:
    done = run("""
for again in (lambda: None, noted.resume):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.getsignal(number))
    again()
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    print(*os.read(reader, 9))
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 15\n" * 2, "")


def test_a_signal_that_cannot_be_caught_is_refused() -> None:
    done = run("""
try:
    NotedSignals([signal.SIGKILL])
except OSError as error:
    print(errno.errorcode[error.errno])
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "EINVAL\n", "")
