# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse run [--mount MNT | --config LAB.toml] -- CMD ARG...`: CMD finds the lab at /sys and /dev.

This process execs CMD, so CMD has the number, exit status, signals, terminal and job control that the caller
expects.  A supervisor stays behind (vfsfuse.run.supervisor).  The process is single-threaded throughout,
because user namespaces demand it.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import signal
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

from vfsfuse.printable import printable

if TYPE_CHECKING:
    from vfsfuse.run.udev import UdevFiles

EXIT_USAGE = 2
EXIT_SETUP = 125
"""Exit status when the lab failed, not CMD: the same as of env(1), nohup(1) and timeout(1)."""
EXIT_CANNOT_EXECUTE = 126
EXIT_NOT_FOUND = 127

ENVIRONMENT = {"SYSTEMD_DEVICE_VERIFY_SYSFS": "0"}
"""Set for CMD: without it, libudev refuses a /sys that is not of type sysfs."""

OF_ANOTHER_MACHINE = {"HWLOC_ALLOW": "all", "HWLOC_COMPONENTS": "-x86"}
"""Set for CMD if the lab has NUMA nodes and CPUs of its own, unless the caller has set them: without these,
hwloc leaves out the CPUs that CMD may not run on, and asks the CPU that it runs on for its caches."""

_BUSY_FILTER = (
    "there can be one: not inside another run, nor in a container whose engine watches system calls"
)
_REFUSED_FILTER = "start a container with a seccomp profile that allows seccomp(2)"


PROGRAM_OPTIONS = ("fault", "log", "quiet", "stat_paths", "udev")
"""What `add_program_options` declares, as attributes."""


NOT_MOUNTED = "--fault is for a private lab (`vfsfuse fault add` adds a rule to a mounted one)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `run`."""
    lab = parser.add_mutually_exclusive_group()
    lab.add_argument("--mount", metavar="MNT", help="the lab mounted there (default: a private one for CMD)")
    lab.add_argument("--config", metavar="LAB.toml", help="make the private lab from this file")
    add_program_options(parser)
    parser.add_argument("argv", metavar="CMD", nargs=argparse.REMAINDER, help="the program and its arguments")


def add_program_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `run` that do not choose the lab.  `vfsfuse trace -- CMD` has them, too."""
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="RULE",
        help="a fault rule of the private lab, such as 'ioctl=VFIO_IOMMU_MAP_DMA nth=3 errno=ENOMEM'",
    )
    parser.add_argument(
        "--log", metavar="FILE", help="append what the lab logs to FILE, such as tracebacks of its models"
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="say nothing on stderr of what goes wrong while CMD runs"
    )
    parser.add_argument(
        "--stat-paths",
        action="store_true",
        help="show CMD character devices to stats by path, too, such as those of `test -c` and `ls -l`",
    )
    parser.add_argument(
        "--udev",
        action="store_true",
        help="give CMD a network namespace, in which libudev's listeners hear the lab's uevents",
    )


def main(args: argparse.Namespace, tracer: socket.socket | None = None, followed: str = "trace") -> int:
    """Become CMD.  Returns only on failure, with the exit status, after one line on stderr.

    `tracer` is the supervisor's end of a pair that leads to the tracer (vfsfuse.run.traced), which gets the
    lab's file `followed`."""
    command = program_of(args)
    if not command:
        return _complain("no command; usage: vfsfuse run [--mount MNT] -- CMD [ARG...]", EXIT_USAGE)
    if args.fault and args.mount:
        return _complain(NOT_MOUNTED, EXIT_USAGE)
    _die_quietly_on_interrupt()
    _occupy_standard_fds()
    from vfsfuse.asking import Refusal
    from vfsfuse.run import namespace

    try:
        _prepare(args, tracer, followed)
    except Refusal as error:
        return _complain(str(error), EXIT_SETUP)
    except namespace.SetupError as error:
        return _complain(str(error), EXIT_SETUP) if str(error) else EXIT_SETUP
    except OSError as error:
        return _complain(f"setting up: {error.strerror or error}", EXIT_SETUP)
    os.environ.update(ENVIRONMENT)
    if namespace.describes_machine():
        os.environ.update({**OF_ANOTHER_MACHINE, **os.environ})
    return become(command)


def program_of(args: argparse.Namespace) -> list[str]:
    """CMD and its arguments, empty when the command line has none."""
    argv: list[str] = args.argv
    return argv[1:] if argv[:1] == ["--"] else argv


def _complain(message: str, status: int, subcommand: str = "run") -> int:
    print(f"vfsfuse: {subcommand}: {printable(message)}", file=sys.stderr)
    return status


def _die_quietly_on_interrupt() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _occupy_standard_fds() -> None:
    """Keep our own descriptors off 0, 1 and 2 when the caller closed those.  CMD still gets them closed."""
    while (fd := os.open("/dev/null", os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _prepare(args: argparse.Namespace, tracer: socket.socket | None, followed: str) -> None:
    """Do everything before the exec: namespaces, supervisor, lab, filter."""
    from ioctl_shim import seccomp
    from vfsfuse import requirements
    from vfsfuse.run import definitions, namespace, otherlabs
    from vfsfuse.run.supervisor import RunPlan, Supervisor
    from vfsfuse.run.traps import trapped
    from vfsfuse.sticky import open_file

    requirements.check_proc()
    lab, config, log = (path and os.path.abspath(path) for path in (args.mount, args.config, args.log))
    plan = RunPlan(lab, config, log, args.quiet, args.stat_paths, tuple(args.fault), followed=followed)
    if plan.lab:
        namespace.check_lab(plan.lab)
    else:
        requirements.check_fuse()
    requirements.check_calls()
    if plan.log:
        with namespace.explained(plan.log):  # it is ours from now on: nobody can put another file there
            os.close(open_file(plan.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
    user = os.geteuid()
    namespace.enter()
    otherlabs.leave_out(plan.lab)
    namespace.stage(plan.lab)
    supervisor = Supervisor(plan, tracer)
    flags = supervisor.wait_ready()
    namespace.show(plan.root)
    definitions.show(plan.lab, user)
    udev = _enter_udev() if args.udev else None
    with namespace.explained("installing the seccomp filter", _mend_filter):
        listener = seccomp.install(trapped(flags), args.stat_paths)
    supervisor.watch(listener, udev)


def _mend_filter(error: OSError) -> str:
    return _BUSY_FILTER if error.errno == errno.EBUSY else _REFUSED_FILTER


def _enter_udev() -> UdevFiles:
    from vfsfuse.run import udevspace

    return udevspace.enter()


def become(command: list[str], subcommand: str = "run") -> int:
    """exec(3) `command`.  On failure, returns the exit status of a shell, after one line on stderr."""
    for name in ("SIGPIPE", "SIGXFSZ"):  # the interpreter ignores these, and CMD would inherit that
        signal.signal(signal.Signals[name], signal.SIG_DFL)
    try:
        _execute(command)
    except OSError as error:
        status = EXIT_NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else EXIT_CANNOT_EXECUTE
        return _complain(f"{command[0] or repr('')}: {error.strerror}", status, subcommand)


def _execute(command: list[str]) -> NoReturn:
    if not command[0]:  # os.execvp raises ValueError
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    try:
        os.execvp(command[0], command)
    except PermissionError:
        if "/" in command[0] or shutil.which(command[0], os.F_OK):
            raise
        # a folder of PATH that may not be searched does not say that the program is there
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        script = shutil.which(command[0]) or command[0]
        os.execv("/bin/sh", ["/bin/sh", script, *command[1:]])  # a script without #!, as execvp(3) runs it
