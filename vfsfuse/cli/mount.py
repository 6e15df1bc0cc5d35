# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse mount [--config LAB.toml] [MOUNTPOINT]`: start the server of a lab, in the background by default.

The parent process waits until the tree answers, so the next command of a script finds the tree.  All that may
fail, also the code of models, runs in the server's process.  So the parent can tell how it ended.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import fcntl
import gc
import logging
import os
import select
import shlex
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from vfsfuse import requirements
from vfsfuse.asking import SECONDS, NoAnswer, Patience, Refusal
from vfsfuse.cli.claim import MENDING, claim
from vfsfuse.cli.logfile import log_to_file, log_to_stderr, open_log, own_folder
from vfsfuse.cli.mountpoint import Mountpoint, State, inspect, locate, no_answer, unmount, wait_for_end
from vfsfuse.cli.output import complain, discard_stdout, explained

if TYPE_CHECKING:
    from devmodel.lifecycle.spec import LabSpec
    from vfsfuse.labfile.code import LabCode

READY = b"ready\n"
NOT_NEEDED, EXPLAINED = b"not needed\n", b"explained\n"
"""What a server that does not start tells its parent: there is a lab already; it has said why on stderr."""

INTERRUPTED = 130
"""Exit status after SIGINT, as a shell has it."""

LEVELS = ("debug", "info", "warning", "error")
HINTS = """\
Try, as pasted:
  echo 6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01:0:vgpu-4 > {parent}/vgpu_create
  ls -l {mnt}/sys/class/vgpu/{vendor}/ {mnt}/dev/vfio/
  od -A x -t x1 -N 64 {mnt}/sys/class/vgpu/{vendor}/vgpu0/config
  {vfsfuse} run --mount {mnt} -- ls /dev/vfio
  {vfsfuse} umount {mnt}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mountpoint", nargs="?", default="mnt", metavar="MOUNTPOINT", help="default: ./mnt")
    parser.add_argument(
        "--config", metavar="LAB.toml", help="the lab to mount, - for stdin (default: the built-in one)"
    )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="RULE",
        help="a fault rule besides those of the lab file, such as 'ioctl=VFIO_IOMMU_MAP_DMA errno=ENOMEM'",
    )
    parser.add_argument("-f", "--foreground", action="store_true", help="stay, and log to stderr")
    parser.add_argument("--log-level", choices=LEVELS, default="info", help="default: %(default)s")
    parser.add_argument("--log-file", metavar="FILE", help="where a server in the background logs to")
    parser.add_argument("--reload", action="store_true", help="reload models when their files change")
    parser.add_argument("--ready-fd", type=int, metavar="FD", help="write a line there once the tree answers")
    parser.add_argument(
        "--end-fd", type=int, metavar="FD", help="unmount once it can be read, as a pidfd of an ended process"
    )


class Start(NamedTuple):
    """A server to start: the resolved path of its mountpoint, and the command line."""

    path: str
    args: argparse.Namespace


def main(args: argparse.Namespace) -> int:
    gc.disable()  # until a server serves: the modules that are imported before then stay
    try:
        _check_ready_fd(args.ready_fd)
        args.end_fd = _kept_end_fd(args.end_fd)
        requirements.check_proc()
        found = inspect(args.mountpoint, Patience())
        if found.state is State.SILENT:
            raise Refusal(f"{found.path}: a lab is mounted there already, but {found.silence}")
        if found.state is State.FOREIGN:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), found.path)
        if found.state is State.LIVE:
            return _say_there_is(found)
        requirements.check_fuse()
        requirements.check_calls()
        start = Start(found.path, args)
        return _in_foreground(start) if args.foreground else _in_background(start)
    except (Refusal, NoAnswer, OSError) as error:
        return _complain(error, args.mountpoint)


def _check_ready_fd(fd: int | None) -> None:
    """Raise Refusal unless `fd` can be written to.  Called before any file is opened here."""
    try:
        if fd is None or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
            return
    except (OSError, ValueError, OverflowError):
        raise Refusal(
            f"--ready-fd {fd}: no such descriptor is open (a shell opens it by {fd}>FILE)"
        ) from None
    raise Refusal(f"--ready-fd {fd}: it is open for reading only (open it for writing)")


def _kept_end_fd(fd: int | None) -> int | None:
    """A copy of `fd` that is no standard stream, because those of a background server are replaced.  Called
    before any file is opened here.  Raises Refusal unless `fd` is open."""
    try:
        return None if fd is None else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    except (OSError, ValueError, OverflowError):
        raise Refusal(f"--end-fd {fd}: no such descriptor is open (a shell opens it by {fd}<FIFO)") from None


def _complain(error: Exception, path: str) -> int:
    """Say on stderr why there is no lab.  Returns the exit status."""
    if isinstance(error, NoAnswer):
        return complain("mount", no_answer(path))
    if isinstance(error, OSError):
        return complain("mount", explained(error, path) + MENDING.get(error.errno or 0, ""))
    for line in error.args:
        complain("mount", line)
    return 1


def _say_there_is(found: Mountpoint) -> int:
    _say(f"A lab is mounted at {found.path} already{f' (pid {found.pid})' if found.pid else ''}.\n")
    return 0


# ---- the parent of a server in the background ----


def _in_background(start: Start) -> int:
    log, log_path = open_log(start.args.log_file, start.path)
    reader, writer = os.pipe()
    # SIGINT waits until the server is known that it is to end
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    server = os.fork()
    if not server:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _become_server(start, log, log_path, writer)
    os.close(writer)
    os.close(log)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        said = _hear(server, reader)
    except KeyboardInterrupt:
        os.kill(server, signal.SIGTERM)
        return INTERRUPTED
    except Refusal:
        _end_stopped(server, start.path)
        return complain(
            "mount", f"{start.path}: the server (pid {server}) was stopped as it started; it is ended"
        )
    if said.endswith(READY):
        hints = os.fsdecode(said.removesuffix(READY))
        _say(f"A lab is mounted at {start.path}; its server logs to {log_path}.\n{hints}")
        _tell(start.args.ready_fd)
        return 0
    if said in (NOT_NEEDED, EXPLAINED):
        return int(said == EXPLAINED)
    how = _ending(os.waitstatus_to_exitcode(os.waitpid(server, 0)[1]))
    return complain("mount", f"{start.path}: before the lab was ready, the server {how}; see {log_path}")


def _hear(server: int, reader: int) -> bytes:
    """What the server says, until the lab is ready or the server ends.  Raises Refusal if it is stopped."""
    said = b""
    pidfd = os.pidfd_open(server)
    while not said.endswith(READY):
        heard = select.select([reader, pidfd], [], [], 1)[0]
        if reader in heard and (part := os.read(reader, 1 << 16)):
            said += part
        elif heard:
            break
        elif Mountpoint("", State.SILENT, server).is_stopped:
            raise Refusal
    os.close(pidfd)
    os.close(reader)
    return said


def _end_stopped(server: int, path: str) -> None:
    """End a server that is stopped, because it keeps the caller's streams open, and take its mount away."""
    os.kill(server, signal.SIGKILL)
    wait_for_end(server, SECONDS)
    found = locate(path, Patience())
    if found.state is State.LIVE:
        unmount(path, Patience(), lazy=True)


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status} (does a model call os._exit?)"
    return f"was killed by {signal.Signals(-status).name}"


# ---- the server's process ----


def _become_server(start: Start, log: int, log_path: str, writer: int) -> NoReturn:
    """Serve in a session of its own, in the child of `_in_background`."""
    try:
        os.setsid()
        _close_inherited(log, writer, start.args.end_fd)
        log_to_file(start.args.log_level, log, log_path)
        null = os.open("/dev/null", os.O_RDWR)
        if start.args.config != "-":
            os.dup2(null, 0)

        def detach(spec: LabSpec) -> None:
            hints = os.fsencode(_hints(spec, start.path))
            os.dup2(null, 0)
            os.dup2(null, 1)
            os.dup2(null, 2)  # until now errors went to the terminal
            os.chdir("/")
            os.write(writer, hints + READY)
            os.close(writer)

        outcome = _serve(start, detach)
        if outcome:
            os.write(writer, outcome)
    except BaseException:
        logging.exception("the server failed")
        os._exit(1)
    finally:
        os._exit(0)


def _close_inherited(*keep: int | None) -> None:
    """Close the descriptors of the caller, such as a lock or a pipe.  Standard streams stay open."""
    first = 3
    for fd in (*sorted(fd for fd in keep if fd is not None and fd >= first), os.sysconf("SC_OPEN_MAX")):
        os.closerange(first, fd)
        first = fd + 1


def _in_foreground(start: Start) -> int:
    log_to_stderr(start.args.log_level)
    return int(_serve(start, lambda _: _tell(start.args.ready_fd)) == EXPLAINED)


def _serve(start: Start, ready: Callable[[LabSpec], None]) -> bytes:
    """Serve the lab until it is unmounted.  `ready` is called when the tree answers.

    Returns b"" after it was, NOT_NEEDED when another server was quicker, and EXPLAINED after one line on
    stderr.  What a server raises later is raised here.
    """
    is_ready = False
    try:
        spec, code, lock = _prepare(start)
        if lock is None:
            _say_there_is(inspect(start.path, Patience()))
            return NOT_NEEDED

        def announce() -> None:
            nonlocal is_ready
            is_ready = True
            os.close(lock)
            ready(spec)

        from vfsfuse.server import serve

        args = start.args
        serve(spec, code, start.path, announce, args.end_fd, args.reload, own_folder(start.path))
    except (Refusal, NoAnswer, OSError) as error:
        if is_ready:
            raise
        _complain(error, start.path)
        return EXPLAINED
    except BaseException as error:
        if is_ready:
            raise
        _complain_of_code(error, start)
        return EXPLAINED
    return b""


def _prepare(start: Start) -> tuple[LabSpec, LabCode, int | None]:
    """The lab, the models of its own, and the claim on its mountpoint.  Raises Refusal, NoAnswer, OSError."""
    from vfsfuse.labfile.code import load_with_code
    from vfsfuse.labfile.reader import LabFileError

    try:
        spec, code = load_with_code(start.args.config)
    except LabFileError as error:
        raise Refusal(*error.lines) from None
    spec = _with_faults(spec, start.args.fault)
    return spec, code, claim(start.path)


def _with_faults(spec: LabSpec, lines: list[str]) -> LabSpec:
    """The lab with these fault rules, too.  Raises Refusal."""
    if not lines:
        return spec
    from vfsfuse.faults.rule import RuleError, parse_line

    wrong = []
    for line in lines:
        try:
            parse_line(line)
        except RuleError as error:
            wrong.append(f"--fault {shlex.quote(line)}: {error}")
    if wrong:
        raise Refusal(*wrong)
    return dataclasses.replace(spec, faults=(*spec.faults, *lines))


def _complain_of_code(error: BaseException, start: Start) -> None:
    """Say on stderr which code has failed while the lab was made, and for which lab file.

    The traceback is for the log.
    """
    from devmodel.lifecycle.spec import SpecError
    from vfsfuse.labfile.reader import BUILT_IN
    from vfsfuse.labfile.reasons import reason
    from vfsfuse.server import MountError

    logging.debug("the lab cannot be made", exc_info=error)
    if isinstance(error, SpecError):
        complain("mount", str(error))
        return
    if isinstance(error, MountError):
        complain("mount", f"{start.path}: {error}")
    else:
        complain("mount", f"{start.args.config or BUILT_IN}: the lab cannot be made: {reason(error)}")


# ---- what both say ----


def _tell(ready_fd: int | None) -> None:
    """Tell the process that waits for the lab, unless it has gone or leaves its pipe full."""
    if ready_fd is None:
        return
    poll = select.poll()
    poll.register(ready_fd, select.POLLOUT)
    with contextlib.suppress(OSError):
        if poll.poll(0):
            os.write(ready_fd, READY)
    os.close(ready_fd)


def _say(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except OSError:  # the reader has gone, or the disk is full
        discard_stdout()


def _hints(spec: LabSpec, mountpoint: str) -> str:
    gpu = next((parent for parent in spec.parents if parent.kind == "gpu"), None)
    if gpu is None or not any(type_.name == "vgpu-4" for type_ in gpu.types):
        return ""
    parent = f"{mountpoint}/sys/bus/pci/devices/{gpu.name}"
    paths = {"mnt": mountpoint, "parent": parent, "vendor": spec.vendor}
    return HINTS.format(vfsfuse=_command(), **{name: shlex.quote(path) for name, path in paths.items()})


def _command() -> str:
    """The command by which this program was called, quoted for a shell."""
    called = os.path.abspath(sys.argv[0])
    return shlex.join([sys.executable, "-m", "vfsfuse"] if called.endswith("__main__.py") else [called])
