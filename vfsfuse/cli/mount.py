# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse mount [--config LAB.toml] [MOUNTPOINT]`: start the server of a lab, in the background by default.

The parent process waits until the tree answers, so the next command of a script finds the tree.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import gc
import logging
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vfsfuse.cli.mountpoint import Mountpoint, State, inspect, unmount
from vfsfuse.cli.output import complain, discard_stdout

if TYPE_CHECKING:
    from devmodel.lifecycle.spec import LabSpec

READY = b"ready\n"
LEVELS = ("debug", "info", "warning", "error")
EXPLAINED, FAILED = 1, 2
"""Exit statuses of a server that could not start: with the reason in one line on stderr, and without."""
MENDING = {
    errno.ENOTEMPTY: " (it would be covered; give an empty one, or one that is not there yet)",
    errno.EBUSY: " (another filesystem is mounted there)",
}
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
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
    parser.add_argument("--config", metavar="LAB.toml", help="the lab to mount (default: the built-in one)")
    parser.add_argument("-f", "--foreground", action="store_true", help="stay, and log to stderr")
    parser.add_argument("--log-level", choices=LEVELS, default="info", help="default: %(default)s")
    parser.add_argument("--log-file", metavar="FILE", help="where a server in the background logs to")
    parser.add_argument("--ready-fd", type=int, metavar="FD", help="write a line there once the tree answers")


@dataclass(frozen=True, slots=True)
class Claim:
    """A mountpoint that is ready and reserved for us, and the lab for it.  `lock` is a descriptor to close
    when the tree answers.  `log` is None for a server in the foreground."""

    path: str
    spec: LabSpec
    log: Path | None
    lock: int | None


def main(args: argparse.Namespace) -> int:
    gc.disable()  # until a server serves: the modules that are imported before then stay
    from vfsfuse.labfile.reader import LabFileError

    try:
        claim = _claim(args)
    except LabFileError as error:
        return complain("mount", str(error))
    except OSError as error:
        mend = MENDING.get(error.errno or 0, "")
        why = f"{os.strerror(error.errno or errno.EIO)}{mend}"
        return complain("mount", f"{error.filename or args.mountpoint}: {why}")
    return 0 if claim is None else _mount(args, claim)


def _claim(args: argparse.Namespace) -> Claim | None:
    """Reserve the mountpoint.  None when a lab is there already.  Raises OSError and LabFileError."""
    from vfsfuse.labfile.reader import load

    found = inspect(args.mountpoint)
    if _is_live(found):
        return None
    spec = load(args.config)
    log = None if args.foreground else _log_file(args.log_file, found.path)
    lock = _lock(found.path)
    found = inspect(found.path)
    if _is_live(found):  # another mount was quicker
        return None
    _prepare(found)
    return Claim(found.path, spec, log, lock)


def _is_live(found: Mountpoint) -> bool:
    if found.state is State.LIVE:
        print(f"A lab is mounted at {found.path} already{f' (pid {found.pid})' if found.pid else ''}.")
    return found.state is State.LIVE


def _lock(path: str) -> int | None:
    """Keep other mounts off `path` by a lock on the directory above it.  None if that cannot be opened."""
    above = os.path.dirname(path)
    with contextlib.suppress(FileExistsError):  # a file is there: open has a better error
        os.makedirs(above)
    try:
        lock = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return None
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _prepare(found: Mountpoint) -> None:
    """Make the mountpoint a directory that exists, is empty and is ours.  Raises OSError with the path."""
    if found.state is State.FOREIGN:
        raise OSError(errno.EBUSY, "another filesystem is mounted there", found.path)
    if found.state is State.STALE:
        print(f"{found.path}: recovering a mount whose server is gone.", file=sys.stderr)
        unmount(found.path, lazy=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(found.path)
    if os.listdir(found.path):
        raise OSError(errno.ENOTEMPTY, "it would be covered", found.path)
    if os.geteuid() and not os.access(found.path, os.W_OK):  # fusermount3 has a longer error
        raise OSError(errno.EACCES, "not ours to mount on", found.path)


def _mount(args: argparse.Namespace, claim: Claim) -> int:
    if claim.log is None:
        logging.basicConfig(level=args.log_level.upper(), format=LOG_FORMAT)
        return _serve(claim, lambda: _let_in(args.ready_fd, claim.lock))
    status = _in_background(lambda ready: _serve_detached(args.log_level, claim, ready))
    if status:
        if status == EXPLAINED:
            return 1
        return complain("mount", f"{claim.path}: the server did not start; see {claim.log}")
    _say(
        f"A lab is mounted at {claim.path}; its server logs to {claim.log}.\n{_hints(claim.spec, claim.path)}"
    )
    _let_in(args.ready_fd, claim.lock)
    return 0


def _let_in(ready_fd: int | None, lock: int | None) -> None:
    """The tree answers: tell the processes that wait for it."""
    if lock is not None:
        os.close(lock)
    if ready_fd is not None:
        _tell(ready_fd)


def _say(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        discard_stdout()


def _hints(spec: LabSpec, mountpoint: str) -> str:
    gpu = next((parent for parent in spec.parents if parent.kind == "gpu"), None)
    if gpu is None or not any(type_.name == "vgpu-4" for type_ in gpu.types):
        return ""
    from devmodel.pci.address import PciAddress

    bus = PciAddress.parse(gpu.name).bus_name
    parent = f"{mountpoint}/sys/devices/pci{bus}/{gpu.name}"
    paths = {"mnt": mountpoint, "parent": parent, "vendor": spec.vendor}
    return HINTS.format(vfsfuse=_command(), **{name: shlex.quote(path) for name, path in paths.items()})


def _command() -> str:
    """The command by which this program was called, quoted for a shell."""
    called = os.path.abspath(sys.argv[0])
    return shlex.join([sys.executable, "-m", "vfsfuse"] if called.endswith("__main__.py") else [called])


def _tell(fd: int) -> None:
    os.write(fd, READY)
    os.close(fd)


def _serve(claim: Claim, ready: Callable[[], None]) -> int:
    from vfsfuse.server import serve

    try:
        serve(claim.spec, claim.path, ready)
    except RuntimeError as error:
        return complain("mount", f"{claim.path}: {error}")
    return 0


def _log_file(named: str | None, mountpoint: str) -> Path:
    """The log of a background server: `named`, or a file for the mountpoint in the user's state directory.

    Raises OSError when it cannot be written.
    """
    log = Path(named or "").absolute()
    if not named:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "vfsfuse"
        state.mkdir(parents=True, exist_ok=True)
        log = state / (mountpoint.strip("/").replace("/", "-") + ".log")
    log.open("a").close()
    return log


def _in_background(serve: Callable[[Callable[[], None]], int]) -> int:
    """Run `serve` in a child with a session of its own.  Returns 0 when it calls back that it is ready, else
    its exit status."""
    reader, writer = os.pipe()
    if pid := os.fork():
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            if pipe.read() == READY:
                return 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) or FAILED
    os.setsid()
    _close_inherited(writer)
    status = FAILED
    try:
        status = serve(lambda: _tell(writer))
    except Exception:
        logging.exception("the server failed")
    finally:
        os._exit(status)


def _close_inherited(keep: int) -> None:
    """Close the descriptors of the caller, such as a lock or a pipe.  Standard streams stay open."""
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))


def _serve_detached(level: str, claim: Claim, ready: Callable[[], None]) -> int:
    logging.basicConfig(level=level.upper(), format=LOG_FORMAT, filename=claim.log)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)

    def detach() -> None:
        os.dup2(null, 2)  # until now errors went to the terminal
        os.chdir("/")
        ready()

    return _serve(claim, detach)
