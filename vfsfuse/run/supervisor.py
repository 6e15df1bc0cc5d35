# SPDX-License-Identifier: Apache-2.0
"""The daemon behind one `vfsfuse run`: starts a private lab, answers GET_DEVICE_FD, ends with the program.

`run` execs the program in its own process.  The supervisor is a grandchild in a session of its own, and
watches the seccomp listener that `run` sends it.  It is single-threaded, and keeps nothing of the caller
(terminal, pipes, locks) open.

They talk over a SOCK_SEQPACKET pair.  The supervisor sends READY when the lab answers, or FAILED with the
reason if it was not reported yet.  `run` sends FILTER with the listener, the supervisor sends ARMED, and
`run` execs.  If `run` dies on the way, the socket hangs up, and the supervisor ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ioctl_shim.seccomp import SeccompListener
from vfsfuse.run import namespace
from vfsfuse.run.devicefd import Broker
from vfsfuse.run.privatelab import PrivateLab

READY = b"ready"
FAILED = b"failed"
FILTER = b"filter"
ARMED = b"armed"

_MESSAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The lab of a run: the one mounted at `lab`, or, when `lab` is None, a private one made from
    `config`."""

    lab: str | None
    config: str | None
    log: str | None
    """File to append the log of the lab and the supervisor to; None discards it once the program runs."""

    @property
    def root(self) -> str:
        """The lab's root directory, in both namespaces."""
        return self.lab or namespace.STAGED_LAB


class Supervisor:
    """`run`'s end of the talk with its supervisor.  Every method raises namespace.SetupError."""

    def __init__(self, plan: RunPlan) -> None:
        """Start the supervisor in the namespaces of the calling thread, the only one."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = os.fork()
        if child == 0:
            _be_daemon(lambda: _supervise(plan, theirs), keep=theirs.fileno())
        theirs.close()
        with contextlib.suppress(ChildProcessError):  # with SIGCHLD ignored there is no child to wait for
            os.waitpid(child, 0)

    def wait_ready(self) -> None:
        """Wait until the lab answers."""
        self._expect(READY)

    def watch(self, listener: int) -> None:
        """Hand over the seccomp listener (closing it here) and wait until its calls are answered."""
        with namespace.explained("talking to the supervisor"):
            socket.send_fds(self._socket, [FILTER], [listener])
        os.close(listener)
        self._expect(ARMED)

    def _expect(self, message: bytes) -> None:
        with namespace.explained("talking to the supervisor"):
            answer = self._socket.recv(_MESSAGE_BYTES)
        if answer.startswith(FAILED):
            raise namespace.SetupError(answer.removeprefix(FAILED).decode())
        if answer != message:
            raise namespace.SetupError("the supervisor has died")


def _be_daemon(body: Callable[[], None], keep: int) -> None:
    """In a forked child: run `body` in a grandchild, in a new session.  Only stderr and `keep` stay open."""
    try:
        os.setsid()
        if os.fork() == 0:
            _plain_process(keep)
            body()
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        os._exit(0)


def _plain_process(keep: int) -> None:
    """Drop what a daemon must not inherit: signal dispositions, the signal mask, and the caller's
    descriptors."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _redirect("/dev/null", os.O_RDWR, (0, 1))
    for fd in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, keep}:
        with contextlib.suppress(OSError):  # the descriptor that listed them
            os.close(fd)


def _redirect(path: str, flags: int, targets: Iterable[int]) -> None:
    fd = os.open(path, flags, 0o644)
    for target in targets:
        os.dup2(fd, target)
    os.close(fd)


def _supervise(plan: RunPlan, talk: socket.socket) -> None:
    lab = None if plan.lab else PrivateLab(plan.config, plan.log)
    try:
        with contextlib.suppress(ConnectionError):  # `run` has died, or has failed and reported it
            if lab and not lab.wait_ready(talk.fileno()):
                talk.send(FAILED + lab.last_words().encode())
            else:
                _serve_run(plan, talk, lab)
    finally:
        if lab:
            lab.stop()


def _serve_run(plan: RunPlan, talk: socket.socket, lab: PrivateLab | None) -> None:
    root = os.open(plan.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    talk.send(READY)
    message, fds, _, _ = socket.recv_fds(talk, _MESSAGE_BYTES, 1)
    if message != FILTER:
        raise ConnectionResetError("no listener came")
    listener = SeccompListener(fds[0])
    broker = Broker(listener, root)
    _redirect(plan.log or "/dev/null", os.O_WRONLY | os.O_CREAT | os.O_APPEND, (2,))
    talk.send(ARMED)
    talk.close()
    os.chdir("/")
    _loop(listener, broker, lab)


def _loop(listener: SeccompListener, broker: Broker, lab: PrivateLab | None) -> None:
    """Answer calls until the last thread under the filter has ended."""
    poll = select.poll()
    poll.register(listener.fd, select.POLLIN)
    if lab:
        poll.register(lab.stderr_fd, select.POLLIN)
    while True:
        events = dict(poll.poll())
        if lab and lab.stderr_fd in events and not lab.relay():
            poll.unregister(lab.stderr_fd)
        if events.get(listener.fd, 0) & select.POLLIN:
            broker.answer_next()
        elif listener.fd in events:
            return
