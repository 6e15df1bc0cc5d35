# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse mount [--config LAB.toml] [MOUNTPOINT]`: start the server of a lab, in the background by default.

The parent process waits until the tree answers, so that what comes after `mount` in a script finds it.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vfsfuse.mountpoint import State, inspect, unmount

if TYPE_CHECKING:
    from devmodel.spec import LabSpec

LEVELS = ("debug", "info", "warning", "error")
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
HINTS = """\
Try, as pasted:
  echo 6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01:0:vgpu-4 > {parent}/vgpu_create
  ls -l {mnt}/sys/class/vgpu/{vendor}/ {mnt}/dev/vfio/
  xxd -l 64 {mnt}/sys/class/vgpu/{vendor}/vgpu0/config
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


def main(args: argparse.Namespace) -> int:
    from vfsfuse.labfile import LabFileError, load

    try:
        mountpoint = _prepare(args.mountpoint)
        if mountpoint is None:
            return 0
        spec = load(args.config)
        log = None if args.foreground else _log_file(args.log_file, mountpoint)
    except LabFileError as error:
        return complain(str(error))
    except OSError as error:
        return complain(f"{error.filename or args.mountpoint}: {os.strerror(error.errno or errno.EIO)}")
    return _mount(args, spec, mountpoint, log)


def complain(message: str) -> int:
    print(f"vfsfuse: mount: {message}", file=sys.stderr)
    return 1


def _prepare(path: str) -> str | None:
    """The mountpoint, ready to mount on; None when a lab is there already."""
    found = inspect(path)
    if found.state is State.LIVE:
        print(f"A lab is mounted at {found.path} already (pid {found.pid}).")
        return None
    if found.state is State.FOREIGN:
        raise OSError(errno.EBUSY, "another filesystem is mounted there", found.path)
    if found.state is State.STALE:
        print(f"{found.path}: recovering a mount whose server is gone.", file=sys.stderr)
        unmount(found.path, lazy=True)
    os.makedirs(found.path, exist_ok=True)
    return found.path


def _mount(args: argparse.Namespace, spec: LabSpec, mountpoint: str, log: Path | None) -> int:
    if log is None:
        logging.basicConfig(level=args.log_level.upper(), format=LOG_FORMAT)
        return _serve(spec, mountpoint, lambda: _tell(args.ready_fd))
    status = _in_background(lambda ready: _serve_detached(args, spec, mountpoint, log, ready))
    if status:
        return complain(f"{mountpoint}: the server did not start; see above and {log}")
    _say(f"A lab is mounted at {mountpoint}; its server logs to {log}.\n{_hints(spec, mountpoint)}")
    _tell(args.ready_fd)
    return 0


def _say(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:  # `mount.sh | head -1`: the rest goes nowhere, at exit too
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _hints(spec: LabSpec, mountpoint: str) -> str:
    gpu = next((parent for parent in spec.parents if parent.kind == "gpu"), None)
    if gpu is None or not any(type_.name == "vgpu-4" for type_ in gpu.types):
        return ""
    bus = gpu.name.rsplit(":", 1)[0]
    parent = f"{mountpoint}/sys/devices/pci{bus}/{gpu.name}"
    paths = {
        "mnt": mountpoint,
        "parent": parent,
        "vendor": spec.vendor,
        "vfsfuse": os.path.abspath(sys.argv[0]),
    }
    return HINTS.format(**{name: shlex.quote(path) for name, path in paths.items()})


def _tell(fd: int | None) -> None:
    if fd is not None:
        os.write(fd, b"ready\n")
        os.close(fd)


def _serve(spec: LabSpec, mountpoint: str, ready: Callable[[], None]) -> int:
    from vfsfuse.server import serve

    try:
        serve(spec, mountpoint, ready)
    except RuntimeError as error:
        return complain(f"{mountpoint}: {error}")
    return 0


def _log_file(named: str | None, mountpoint: str) -> Path:
    """The log of a background server: `named`, or one for the mountpoint in the user's state directory."""
    if named:
        return Path(named).absolute()
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "vfsfuse"
    state.mkdir(parents=True, exist_ok=True)
    return state / (mountpoint.strip("/").replace("/", "-") + ".log")


def _in_background(serve: Callable[[Callable[[], None]], int]) -> int:
    """Run `serve` in a child of its own session; 0 once it calls back that it is ready, else its status."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            return 0 if pipe.read() == b"ready\n" else 1
    os.close(reader)
    os.setsid()
    status = 1
    try:
        status = serve(lambda: _tell(writer))
    finally:
        os._exit(status)


def _serve_detached(
    args: argparse.Namespace, spec: LabSpec, mountpoint: str, log: Path, ready: Callable[[], None]
) -> int:
    logging.basicConfig(level=args.log_level.upper(), format=LOG_FORMAT, filename=log)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)

    def detach() -> None:
        os.dup2(null, 2)  # until now the terminal heard of errors
        os.chdir("/")
        ready()

    return _serve(spec, mountpoint, detach)
