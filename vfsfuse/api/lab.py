# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse.Lab`: a lab that this process mounts or joins, with objects for what is in it.

A Lab is for one thread at a time, as its objects are.  Its server is a process of its own
(vfsfuse/api/server.py).  docs/python.md is the guide.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vfsfuse import sticky
from vfsfuse.api.directory import Directory, Named
from vfsfuse.api.errors import LabError
from vfsfuse.api.faults import FaultRule, Faults, text_of
from vfsfuse.api.files import Files
from vfsfuse.api.functions import Function, Slot, functions, slots
from vfsfuse.api.parents import Parent, parent_with, parents
from vfsfuse.api.server import Server, command, how
from vfsfuse.api.vgpus import Vgpu, vgpus
from vfsfuse.kernfs.xattr import XATTR_PID
from vfsfuse.toml import document
from vfsfuse.trace.filters import KEEP, Filter
from vfsfuse.trace.record import TraceError

if TYPE_CHECKING:
    from vfsfuse.api.recordings import LabRecording
    from vfsfuse.api.tracing import Trace
    from vfsfuse.api.uevents import Uevents

Config = str | os.PathLike[str] | Mapping[str, object]
"""A lab: the path of a lab file, its text (which has a line break), or its tables."""

Argument = str | bytes | os.PathLike[str] | os.PathLike[bytes]

READING = "-"
OUTCOME = 1 << 20
"""Bytes that are read about a reload."""
mounted: set[Lab] = set()
"""The labs of this process that have a server."""


class Lab:
    """A mounted lab, for the time of a `with`.

    `config` is None for the built-in lab, the path of a lab file, its text (a str with a line break), or its
    tables as a mapping.  Relative paths in a text or a mapping begin at `folder`, by default the current
    directory.

    `at` is the mountpoint.  Without one it is a temporary directory, which goes away at the end.  If a lab is
    mounted there already, this joins it, and leaves it mounted at the end.

    `log_path` is the file for the server's log; without one the log is in `log` alone.  `log_level` is
    "debug", "info", "warning" or "error".  `options` are further options of `vfsfuse mount`,
    `command` is the argv of a program that is called in place of `vfsfuse`, with its arguments.  `faults` are
    fault rules that the lab has from the start, besides those of the lab file (docs/faults.md).

    With `strict`, leaving the context raises LabError if the server ended with another status than 0 or has
    logged a traceback.  With `umount=False` leaving it waits until the server has ended for another reason.
    An exception that leaves the context is never replaced by these.

    The server ends with this process, also when that is killed."""

    def __init__(
        self,
        config: Config | None = None,
        *,
        at: str | os.PathLike[str] | None = None,
        folder: str | os.PathLike[str] | None = None,
        log_path: str | os.PathLike[str] | None = None,
        log_level: str = "info",
        options: Sequence[str] = (),
        command: Sequence[str] | None = None,
        faults: Sequence[FaultRule] = (),
        umount: bool = True,
        strict: bool = False,
    ) -> None:
        self._folder = None if folder is None else Path(folder)
        self._text, described = _described(config)
        rules = [f"--fault={text_of(rule)}" for rule in faults]
        self.options = [*described, "--log-level", log_level, *rules, *options]
        """The options of the server."""
        self._command = command
        self._is_described = config is not None or bool(faults)
        self._at = None if at is None else os.fspath(at)
        self.log_path = None if log_path is None else Path(log_path)
        self.umount_at_end = umount
        """Whether leaving the context ends the server."""
        self.strict = strict
        self._server: Server | None = None
        self._files: Files | None = None
        self._made_directory = False
        self._pid = 0

    # ---- its life ----

    def start(self) -> None:
        """Mount or join the lab.  Raises LabError with the server's lines, such as all errors of the lab
        file, or if the server of a lab that is there does not answer, or if a `config` or `faults` are given
        and a lab is there already."""
        if self._files is not None:
            raise LabError(f"{self.path}: this lab is mounted already")
        path = (
            Path(tempfile.mkdtemp(prefix="vfsfuse-")) if self._at is None else Path(sticky.resolve(self._at))
        )
        self._made_directory = self._at is None or not os.path.lexists(path)
        try:
            server = Server(path, self.log_path)
            is_ours = server.start(self._command, self.options, self._text, self._folder)
            if not is_ours and self._is_described:
                raise LabError(
                    f"{path}: a lab is mounted there already (leave `config` and `faults` out to join it)"
                )
        except BaseException:
            self._remove_directory(path)
            raise
        self._pid = server.pid if is_ours else _pid_of(path)
        self._server = server if is_ours else None
        if is_ours:
            mounted.add(self)
        self._files = Files(path, server.ending if is_ours else lambda gone: None)

    def close(self) -> None:
        """End the lab, if this has mounted it.  Raises LabError as leaving a context does.  A lab that is
        closed does nothing more than tell its `log`."""
        self._close(check=True)

    def _close(self, check: bool) -> None:
        files, self._files = self._files, None
        if files is None or not files.is_ours:
            return  # not open, or of a process that has forked this one
        for opened in list(files.opened):
            opened.close()
        if self._server is None:
            return
        try:
            status = self._server.end() if self.umount_at_end else self._server.wait()
        finally:
            mounted.discard(self)
            self._remove_directory(files.root)
        if check and self.strict and (status != 0 or "Traceback" in self.log):
            raise LabError(f"{files.root}: the server {how(status)}:\n{self.log}", self.log)

    def kill(self) -> None:
        """End the server at once, by SIGKILL, and take its mount away.  Whatever waits for it gets an error.
        Any thread.  The lab is still to be closed."""
        if self._server is not None:
            self._server.kill()

    def _remove_directory(self, path: Path) -> None:
        if self._made_directory:
            with contextlib.suppress(OSError):  # somebody else uses it by now
                os.rmdir(path)

    def __enter__(self) -> Lab:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            return self.close()
        with contextlib.suppress(LabError):
            self._close(check=False)

    def __repr__(self) -> str:
        return f"<Lab {self._files.root}>" if self._files is not None else "<Lab, not mounted>"

    # ---- the mount and its server ----

    @property
    def files(self) -> Files:
        """The files of the mount.  Raises LabError while it is not mounted."""
        if self._files is None:
            raise LabError("this lab is not mounted (use it in a `with`, or call start())")
        return self._files

    @property
    def path(self) -> Path:
        """Where the lab is mounted."""
        return self.files.root

    @property
    def pid(self) -> int:
        """The pid of the server."""
        return self._pid

    @property
    def server(self) -> subprocess.Popen[bytes] | None:
        """The process of the server, None for a lab that was joined and before the start."""
        return None if self._server is None else self._server.process

    @property
    def log(self) -> str:
        """What the server has logged so far, also after the end; empty for a lab that was joined."""
        return "" if self._server is None else self._server.log

    @property
    def divergences(self) -> list[str]:
        """What programs have done otherwise than the recordings that the lab replays say (docs/recording.md),
        each as one line; empty for a lab without the model "replay"."""
        import json

        path = self.path / "replay"
        rows = self.files.content(path).splitlines() if self.files.has(path) else ()
        return [line for row in rows for line in json.loads(row)["divergences"]]

    # ---- what is in it ----

    @property
    def parents(self) -> Named[Parent]:
        """The parents of vGPUs, by name."""
        return parents(self.files)

    @property
    def vgpus(self) -> Named[Vgpu]:
        """All vGPUs, by the names of their directories."""
        return vgpus(self.files)

    @property
    def functions(self) -> Named[Function]:
        """The PCI functions, by address.  Bridges are functions, too."""
        return functions(self.files)

    @property
    def slots(self) -> Named[Slot]:
        """The physical slots, by name."""
        return slots(self.files)

    @property
    def faults(self) -> Faults:
        """The fault rules, by name; `faults.add(...)` adds one."""
        return Faults(self.files)

    def rescan(self) -> None:
        """Look for functions that were removed from their buses (sys/bus/pci/rescan)."""
        self.files.store(self.path / "sys/bus/pci/rescan", "1")

    def reload(self, *models: str) -> str:
        """Read the code of the lab's own models again, by default of all, and make new devices of it
        (docs/models.md).  Returns the server's line about it.

        Raises LabError with the server's lines if the lab goes on with the code that it had, such as that
        which names the file and the line of a mistake; OSError: EACCES in a lab of another user."""
        path = self.path / "reload"
        with self.files.explained(path), open(path, "r+b", buffering=0) as file:
            try:
                file.write(f"{' '.join(models)}\n".encode())
            except OSError as error:
                if lines := os.pread(file.fileno(), OUTCOME, 0).decode(errors="replace").strip():
                    raise LabError(lines, self.log) from error
                raise
            return os.pread(file.fileno(), OUTCOME, 0).decode(errors="replace").strip()

    def create(
        self,
        type: str,
        parent: str | None = None,
        uuid: str | None = None,
        *,
        instance: int | None = None,
        **resources: str | int,
    ) -> Vgpu:
        """Create a vGPU on `parent`, or on the first parent that has the type.  The rest is as of
        `Parent.create`."""
        found = parent_with(self.files, type) if parent is None else self.parents[parent]
        return found.create(type, uuid, instance=instance, **resources)

    # ---- what goes on in it ----

    def uevents(self) -> Uevents:
        """What comes, goes and changes in the lab from now on, for a `with`.  Raises OSError."""
        from vfsfuse.api.uevents import Uevents

        return Uevents(self.files)

    def trace(
        self,
        *devices: Directory | str,
        kinds: Collection[str] = (),
        registers: Collection[str] = (),
        errnos: Collection[str] = (),
        injected: Collection[str] = (),
        keep: int = KEEP,
    ) -> Trace:
        """What programs and devices do in the lab from now on, for a `with`.

        Without `devices` it is all, otherwise what is about them: objects of this API, or names ("vgpu0", a
        UUID, a PCI address).  `kinds`, `registers`, `errnos` and `injected` narrow it down (docs/trace.md).
        Of the records that nobody has asked for, the server keeps the last `keep`.  Raises LabError if the
        server does not answer, or for a kind or an errno that there is not."""
        from vfsfuse.api.tracing import Trace, names_of

        try:
            wanted = Filter(names_of(self.files, devices), kinds, registers, errnos, (), injected)
        except TraceError as error:
            raise LabError(str(error)) from None
        return Trace(self.files, wanted, keep)

    def recording(self, *, shows_mmap: bool = False) -> LabRecording:
        """A recording of the dialogue of programs with VFIO devices from now on, for a `with`
        (docs/recording.md).  It has the devices that a program opens from now on.

        Unless `shows_mmap` is true, programs are told that no region can be mapped, because accesses to what
        is mapped are not seen.  Raises LabError if the server does not answer."""
        from vfsfuse.api.recordings import LabRecording

        return LabRecording(self.files, shows_mmap)

    # ---- programs ----

    def run(
        self,
        argv: Sequence[Argument] | Argument,
        *,
        check: bool = False,
        quiet: bool = False,
        stat_paths: bool = False,
        udev: bool = False,
        **more: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a program that finds this lab at /sys and /dev (`vfsfuse run`), and wait for it.

        `quiet`, `stat_paths` and `udev` are options of `vfsfuse run`.  `check` and `more` are arguments of
        subprocess.run, which raises what it raises there.  If the lab cannot be shown to the program, the
        exit status is 125, and stderr says why."""
        words = self._run(argv, _options(quiet, stat_paths, udev), **more)
        try:
            done = subprocess.run(words, check=check, **{**more, "shell": False})
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            error.cmd = argv
            raise
        done.args = argv
        return done

    def popen(
        self,
        argv: Sequence[Argument] | Argument,
        *,
        quiet: bool = False,
        stat_paths: bool = False,
        udev: bool = False,
        **more: Any,
    ) -> subprocess.Popen[Any]:
        """Start a program as `run` does.  The process is the program itself; `more` are arguments of
        subprocess.Popen."""
        words = self._run(argv, _options(quiet, stat_paths, udev), **more)
        process = subprocess.Popen(words, **{**more, "shell": False})
        process.args = argv
        return process

    def _run(
        self, argv: Sequence[Argument] | Argument, options: list[str], shell: bool = False, **more: object
    ) -> list[Argument]:
        """The argv that runs a program in the lab; a line for the shell, if it is one."""
        single = isinstance(argv, str | bytes | os.PathLike)
        program: list[Argument] = [argv] if single else list(argv)  # type: ignore[list-item, arg-type]
        told = ["/bin/sh", "-c", *program] if shell else program
        return [*command("run", *options, "--mount", str(self.path), "--"), *told]


def _options(quiet: bool, stat_paths: bool, udev: bool) -> list[str]:
    """The options of `vfsfuse run` that are asked for."""
    asked = {"--quiet": quiet, "--stat-paths": stat_paths, "--udev": udev}
    return [option for option, is_asked in asked.items() if is_asked]


def _pid_of(path: Path) -> int:
    """The server of a lab that is there, as the lab tells it.  Raises LabError."""
    try:
        return int(os.getxattr(path, XATTR_PID))
    except (OSError, ValueError) as error:
        raise LabError(f"{path}: the lab there does not tell who serves it ({error})") from None


def _described(config: Config | None) -> tuple[str | None, list[str]]:
    """The text for the server's standard input, and the options that name the lab."""
    if config is None:
        return None, []
    if isinstance(config, Mapping):
        return document(config), ["--config", READING]
    if isinstance(config, str) and "\n" in config:
        return config, ["--config", READING]
    return None, ["--config", os.path.abspath(config)]
