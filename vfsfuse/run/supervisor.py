# SPDX-License-Identifier: Apache-2.0
"""The daemon behind one `vfsfuse run`: starts a private lab, answers calls, ends with the program.

`run` execs the program in its own process.  The supervisor is a grandchild in a session of its own, and
watches the seccomp listener that `run` sends it.  It keeps nothing of the caller (terminal, pipes, locks)
open.  Calls have threads of their own (vfsfuse.run.calls), everything else is the main thread's.

They talk over a SOCK_SEQPACKET pair.  The supervisor sends READY when the lab answers, with what the lab has
(LabFlag, a byte), or FAILED with the reason if it was not reported yet.  `run` sends FILTER with the
listener, the supervisor sends ARMED, and `run` execs.  If `run` dies on the way, the socket hangs up, and the
supervisor ends.

A supervisor that fails says why, in one line: before ARMED by FAILED, and later on the program's stderr.
There it also says what the lab's server logs (vfsfuse.run.lablog).

A program that is traced has a tracer besides (vfsfuse.run.traced).
"""

from __future__ import annotations

import array  # noqa: F401 (socket.send_fds imports it; under the filter, an import would wait for ever)
import contextlib
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from types import FrameType

from ioctl_shim.abi import LabFlag
from ioctl_shim.seccomp import SeccompListener
from ioctl_shim.takers import StatAnswers, Takers
from vfsfuse.run import namespace
from vfsfuse.run.calls import CallTakers
from vfsfuse.run.keeper import Keeper
from vfsfuse.run.labinfo import LabInfo
from vfsfuse.run.lablog import LabLog
from vfsfuse.run.privatelab import PrivateLab
from vfsfuse.run.programstderr import ProgramStderr
from vfsfuse.run.stats import NodeStats
from vfsfuse.run.traced import ATTACH_SECONDS, TracerLink
from vfsfuse.run.traps import Answers
from vfsfuse.run.udev import UdevFiles, UdevRelay

READY = b"ready"
FAILED = b"failed"
FILTER = b"filter"
ARMED = b"armed"

SETUP_SECONDS = 2.0
"""How long the supervisor may take for a step, except the start of a private lab."""

COLDPLUG_SECONDS = 30.0
"""What the relay of uevents may take besides, to note all devices of a large lab."""

LIMITS = ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_NPROC")
"""Limits that a shell sets for the program, and not for the supervisor and a private lab's server."""

SHARED_END = "the supervisor was killed: files are as on the bare mount from now on"
PRIVATE_END = "the supervisor was killed, and the private lab with it: its files fail from now on"

_MESSAGE_BYTES = 4096
_DESCRIPTORS = 4


class _Ended(BaseException):
    """A signal asks this process to end."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The lab of a run: the one mounted at `lab`, or, when `lab` is None, a private one made from
    `config`."""

    lab: str | None
    config: str | None
    log: str | None
    """File to append the log of the lab and the supervisor to; None discards it once the program runs."""
    quiet: bool = False
    """Whether nothing is said on the program's stderr while it runs."""
    stat_paths: bool = False
    """Whether stats by path are answered, too."""
    faults: tuple[str, ...] = ()
    """Fault rules of a private lab."""
    followed: str = "trace"
    """The file of the lab that a tracer gets."""

    @property
    def root(self) -> str:
        """The lab's root directory, in both namespaces."""
        return self.lab or namespace.STAGED_LAB

    @property
    def where(self) -> str:
        """Where the whole of a message is."""
        return f"see {self.log}" if self.log else "run --log FILE keeps the rest"


class Supervisor:
    """`run`'s end of the talk with its supervisor.  Every method raises namespace.SetupError."""

    def __init__(self, plan: RunPlan, tracer: socket.socket | None = None) -> None:
        """Start the supervisor in the namespaces of the calling thread, the only one.  `tracer` leads to the
        tracer, and is closed here."""
        with namespace.explained("starting the supervisor"):
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stderr = ProgramStderr(os.getpid(), plan.quiet)
            child = os.fork()
        if child == 0:
            keep = {2, theirs.fileno(), stderr.fd, tracer.fileno() if tracer else 2}
            link = TracerLink(tracer, plan.followed) if tracer else None
            _be_daemon(lambda: _supervise(plan, theirs, stderr, link), keep)
        theirs.close()
        if tracer:
            tracer.close()
        os.close(stderr.fd)
        with contextlib.suppress(ChildProcessError):  # with SIGCHLD ignored there is no child to wait for
            os.waitpid(child, 0)
        more = ATTACH_SECONDS if tracer else 0.0  # a tracer that is stopped takes that
        self._start_seconds = None if plan.lab is None else SETUP_SECONDS + more

    def wait_ready(self) -> LabFlag:
        """Wait until the lab answers.  A private one may take as long as it takes.  Returns what it has."""
        return LabFlag(self._expect(READY, self._start_seconds)[0])

    def watch(self, listener: int, udev: UdevFiles | None) -> None:
        """Hand over the seccomp listener and, if the lab's uevents are relayed, `udev` (closing both here).
        Wait until calls are answered and events relayed."""
        with namespace.explained("talking to the supervisor"):
            socket.send_fds(self._socket, [FILTER], [listener, *(udev.descriptors if udev else ())])
        os.close(listener)
        if udev:
            udev.close()
        self._expect(ARMED, SETUP_SECONDS + (COLDPLUG_SECONDS if udev else 0.0))
        # The first caught call: the keeper knows the ids of calls from this one on.
        os.fstat(self._socket.fileno())

    def _expect(self, message: bytes, seconds: float | None) -> bytes:
        """Wait for `message`.  Returns what follows it."""
        self._socket.settimeout(seconds)
        with namespace.explained("talking to the supervisor", "the lab's server is stopped or hung, or dead"):
            answer = self._socket.recv(_MESSAGE_BYTES)
        if answer.startswith(FAILED):
            raise namespace.SetupError(answer.removeprefix(FAILED).decode())
        if not answer.startswith(message):
            raise namespace.SetupError("the supervisor was killed")
        return answer.removeprefix(message)


def _be_daemon(body: Callable[[], None], keep: Collection[int]) -> None:
    """In a forked child: run `body` in a grandchild, in a new session.  Only `keep` stays open."""
    try:
        os.setsid()
        if os.fork() == 0:
            _plain_process(keep)
            body()
    finally:
        os._exit(0)


def _plain_process(keep: Collection[int]) -> None:
    """Drop what a daemon must not inherit: signal dispositions, the signal mask, and the caller's
    descriptors."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, _on_signal)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _raise_limits()
    _redirect("/dev/null", os.O_RDWR, (0, 1))
    for fd in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, *keep}:
        with contextlib.suppress(OSError):  # the descriptor that listed them
            os.close(fd)


def _raise_limits() -> None:
    """A supervisor that is killed for the time that it took, or is out of descriptors, fails calls of the
    program that have nothing to do with these limits."""
    for name in LIMITS:
        number = getattr(resource, name)
        _, most = resource.getrlimit(number)
        for limits in ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), (most, most)):
            with contextlib.suppress(OSError, ValueError):  # beyond the hard limit: for root alone
                resource.setrlimit(number, limits)
                break


def _on_signal(number: int, frame: FrameType | None) -> None:
    raise _Ended(signal.Signals(number).name)


def _redirect(path: str, flags: int, targets: Iterable[int]) -> None:
    fd = os.open(path, flags, 0o644)
    for target in targets:
        os.dup2(fd, target)
    os.close(fd)


def _supervise(plan: RunPlan, talk: socket.socket, stderr: ProgramStderr, tracer: TracerLink | None) -> None:
    """Be the supervisor.  Whatever ends it early is told to the caller in one line."""
    lab: PrivateLab | None = None
    try:
        if not plan.lab:
            lab = PrivateLab(plan.config, plan.log, plan.faults)
        if lab and not lab.wait_ready(talk.fileno()):
            talk.send(FAILED + lab.why_not_ready().encode())
        else:
            _serve_run(plan, talk, lab, stderr, tracer)
    except namespace.SetupError as error:
        talk.send(FAILED + str(error).encode())
    except ConnectionError:  # `run` has died, or has failed and reported it
        pass
    except BaseException as error:
        _report(error, talk, stderr)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if lab:
            lab.stop()


def _report(error: BaseException, talk: socket.socket, stderr: ProgramStderr) -> None:
    why = f"killed by {error}" if isinstance(error, _Ended) else f"{type(error).__name__}: {error}"
    why = " ".join(why.split())
    if talk.fileno() >= 0:
        with contextlib.suppress(OSError):
            talk.send(FAILED + f"the supervisor has died ({why})".encode()[:_MESSAGE_BYTES])
        return
    traceback.print_exc(file=sys.stderr)  # into the log
    stderr.say_last(f"the supervisor has died ({why}): files are as on the bare mount from now on")
    stderr.finish()


def _serve_run(
    plan: RunPlan,
    talk: socket.socket,
    lab: PrivateLab | None,
    stderr: ProgramStderr,
    tracer: TracerLink | None,
) -> None:
    root = os.open(plan.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    log = LabLog(root, stderr, plan.where)
    if tracer:
        tracer.offer(root)
    info = _lab_info(root)
    talk.send(READY + bytes([info.flags()]))
    listener, udev = _received(talk)
    relay = _relay(udev, root, stderr) if udev else None
    stats = StatAnswers(listener, root, plan.stat_paths)
    answers = Answers(listener, root, NodeStats(stats, info), stderr.say_once)
    takers = Takers(listener, stats)
    calls = CallTakers(takers, answers.answer)
    _redirect(plan.log or "/dev/null", os.O_WRONLY | os.O_CREAT | os.O_APPEND, (2,))
    stderr.log = 2
    keeper = Keeper(listener, takers, stderr, PRIVATE_END if lab else SHARED_END)
    os.chdir("/")
    _follow(log, plan)
    calls.start()
    if relay:
        relay.start()
    talk.send(ARMED)
    talk.close()
    _watch(listener, calls, lab, stderr)  # if it fails, calls are answered until this process ends
    keeper.end()
    if tracer:
        tracer.drain(lab)


def _received(talk: socket.socket) -> tuple[SeccompListener, list[int]]:
    """What `run` sends with FILTER: the listener, and the descriptors of UdevFiles for --udev."""
    message, fds, _, _ = socket.recv_fds(talk, _MESSAGE_BYTES, _DESCRIPTORS)
    if message != FILTER:
        raise ConnectionResetError("no listener came")
    return SeccompListener(fds[0]), fds[1:]


def _follow(log: LabLog, plan: RunPlan) -> None:
    """Pass the lab's log on.  A private lab passes on its whole log by itself, and why it has ended."""
    if plan.lab:
        ended = f"the server of {plan.lab} has ended: its files fail from now on"
        log.follow(whole=bool(plan.log), ended=ended)
    else:
        log.follow(whole=False, ended="")


def _relay(descriptors: list[int], root: int, stderr: ProgramStderr) -> UdevRelay:
    with namespace.explained("relaying the lab's uevents"):
        return UdevRelay(UdevFiles.received(descriptors), root, stderr.say_once)


def _lab_info(root: int) -> LabInfo:
    with namespace.explained("the lab's file .run", "its server is of an older vfsfuse: mount it anew"):
        return LabInfo(root)


def _watch(
    listener: SeccompListener, calls: CallTakers, lab: PrivateLab | None, stderr: ProgramStderr
) -> None:
    """Return when the last thread under the filter has ended.  Raises the failure of `calls`."""
    poll = select.poll()
    poll.register(listener.fd, 0)  # for POLLHUP
    poll.register(calls.failed_fd, select.POLLIN)
    if lab:
        poll.register(lab.stderr_fd, select.POLLIN)
        poll.register(lab.pidfd, select.POLLIN)
    while True:
        events = dict(poll.poll())
        if lab and lab.stderr_fd in events and not lab.relay():
            poll.unregister(lab.stderr_fd)
        if lab and lab.pidfd in events:
            poll.unregister(lab.pidfd)
            stderr.say(lab.why_ended())
        if calls.failure is not None:
            raise calls.failure
        if listener.fd in events:
            calls.end()
            return
