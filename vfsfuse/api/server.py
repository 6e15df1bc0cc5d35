# SPDX-License-Identifier: Apache-2.0
"""The server of a lab that this process has started: its start, its log and its end.

It is `vfsfuse mount --foreground`, a child of this process.  A session of its own keeps the terminal's
signals from it.  It ends with this process, however that ends, because it has a pidfd of it (--end-fd).

A Server is for one thread at a time; `ending` is for any.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from vfsfuse import sticky
from vfsfuse.api.errors import LabError

START_SECONDS = 60
"""Seconds that a server has to mount its lab.  A third of one is usual; a model's file may take longer."""
END_SECONDS = 20
"""Seconds that a server has to end when it is told so."""
GONE_SECONDS = 1
READY = b"ready\n"

_CODE = "import sys; sys.path.append({!r}); from vfsfuse.cli import main; sys.exit(main())"
_SAID = ("vfsfuse: ", "vfsfuse mount: error: ", "fusermount3: ", "fuse: ")
"""Lines of a server's stderr that begin so say why it has not started.  Others are of its log."""


def command(*arguments: str) -> list[str]:
    """The argv of a `vfsfuse` command in this interpreter, also from a checkout that is not installed.  The
    current directory is not on its module path."""
    return [sys.executable, "-P", "-c", _CODE.format(str(Path(__file__).resolve().parents[2])), *arguments]


class _Log:
    """The file of a log.  Without a path it has no name in the file system."""

    def __init__(self, path: Path | None) -> None:
        """Raises OSError."""
        if path is None:
            self.fd = os.memfd_create("vfsfuse-log")
        else:
            self.fd = sticky.open_file(str(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._kept: str | None = None
        self._close = weakref.finalize(self, os.close, self.fd)

    @property
    def text(self) -> str:
        """What is in it."""
        if self._kept is not None:
            return self._kept
        return os.pread(self.fd, os.fstat(self.fd).st_size, 0).decode(errors="replace")

    def keep(self) -> None:
        """Keep the text, and close the file."""
        self._kept = self.text
        self._close()


class Server:
    """A server that has been started.  `log_path` None keeps the log without a name in the file system."""

    def __init__(self, path: Path, log_path: Path | None) -> None:
        self.path = path
        self.process: subprocess.Popen[bytes] | None = None
        self._log = _Log(log_path)

    def start(
        self, program: Sequence[str] | None, options: Sequence[str], text: str | None, folder: Path | None
    ) -> bool:
        """Start it, and wait until the lab answers.  `program` is the argv of `vfsfuse`, `text` its standard
        input.

        Returns False when there is a lab at the path already; nothing has been started then.  Raises LabError
        with the lines of the server."""
        with contextlib.ExitStack() as stack:
            reader, writer = os.pipe()
            ready = stack.enter_context(os.fdopen(reader, "rb", buffering=0))
            owner = os.pidfd_open(os.getpid())
            stack.callback(os.close, owner)
            try:
                stdin = stack.enter_context(_spooled(text))
                fds = ["--ready-fd", str(writer), "--end-fd", str(owner)]
                self.process = subprocess.Popen(
                    [*(program or command()), "mount", "--foreground", *fds, *options, "--", str(self.path)],
                    stdin=stdin,
                    stdout=subprocess.DEVNULL,
                    stderr=self._log.fd,
                    cwd=folder,
                    pass_fds=(writer, owner),
                    start_new_session=True,
                )
            finally:
                os.close(writer)
            try:
                return self._is_ready(ready)
            except BaseException:
                self.kill()
                raise

    def _is_ready(self, ready: IO[bytes]) -> bool:
        """Wait until the server is ready or has ended.  Returns and raises as `start`."""
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        if not poll.poll(START_SECONDS * 1000):
            raise LabError(f"{self.path}: the lab was not ready within {START_SECONDS} seconds", self.log)
        if ready.read(len(READY)) == READY:
            return True
        try:
            status = self.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.path}: the server has closed its --ready-fd", self.log) from None
        if status == 0:
            return False
        said = [line for line in self.log.splitlines() if line.startswith(_SAID)]
        lines = [re.sub(r"^vfsfuse(: mount| mount: error): ", "", line) for line in said]
        raise LabError("\n".join(lines) or f"{self.path}: {how(status)}\n{self.log}", self.log)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        return self._log.text

    def ending(self, gone: bool = False) -> LabError | None:
        """What to raise when the server has ended, None while it runs.  `gone`: the mount has told that, so
        its process ends now, too."""
        if self.process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GONE_SECONDS if gone else 0)
        status = self.process.returncode
        if status is None:
            return None
        last = self.log.splitlines()[-1:]
        return LabError("\n".join([f"{self.path}: the server {how(status)}", *last]), self.log)

    def end(self) -> int:
        """End it, and the mount with it.  Returns its exit status, negative for a signal.

        Raises LabError if it had to be killed."""
        assert self.process is not None
        if self.process.poll() is None:
            for number in (signal.SIGTERM, signal.SIGCONT):
                self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended by itself.  Returns and raises as `end`."""
        assert self.process is not None
        try:
            return self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            raise LabError(
                f"{self.path}: the server (pid {self.pid}) did not end within {END_SECONDS} seconds,"
                " and was killed (does a model not return?)",
                self.log,
            ) from None
        finally:
            self.kill()

    def kill(self) -> None:
        """Leave neither a process nor a mount behind, nor an open file."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.returncode != 0 and is_mountpoint(self.path):
            away = command("umount", "--lazy", "--", str(self.path))
            subprocess.run(away, capture_output=True, check=False)
        self._log.keep()


def is_mountpoint(path: Path) -> bool:
    """Whether something is mounted at `path`, by the kernel's table: no file system is asked."""
    escaped = str(path).translate({ord(each): f"\\{ord(each):03o}" for each in " \t\n\\"})
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as table:
        return any(line.split(" ")[4] == escaped for line in table)


def _spooled(text: str | None) -> IO[bytes]:
    """A file to read `text` from."""
    if text is None:
        return os.fdopen(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), "rb")
    file = os.fdopen(os.memfd_create("vfsfuse-lab"), "w+b")
    file.write(text.encode())
    file.seek(0)
    return file


def how(status: int) -> str:
    """How a process has ended."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
