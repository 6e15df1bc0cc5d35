# SPDX-License-Identifier: Apache-2.0
"""The fault rules of a lab: `Lab.faults` adds, lists and clears them, as the file `faults` of the mount has
them.

Objects keep no state but a rule's name; any thread.  docs/faults.md lists the keys of a rule.
"""

from __future__ import annotations

import errno
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Literal, TypedDict, Unpack

from vfsfuse.api.errors import LabError
from vfsfuse.api.files import Files

FILE = "faults"
MOST_BYTES = 1 << 20
_ADDED = re.compile(r"^added (\S+)$", re.MULTILINE)
_HITS = re.compile(r"(.*?)\s*# (\d+) hits? of (\d+) calls?(?:, (\d+) held)?")


class FaultRule(TypedDict, total=False):
    """The keys of a rule: docs/faults.md says what each means.  `while` is `while_` here, because Python has
    a keyword of that name."""

    name: str
    device: str
    process: str | int
    ioctl: str
    register: str
    region: str | int
    range: str | int
    access: Literal["read", "write"]
    dma: Literal["read", "write", "pin", "any"]
    iova: str | int
    interrupt: str
    vector: int
    store: str
    create: str
    bind: str
    probe: str
    open: str
    call: str
    nth: int
    every: int
    probability: float
    seed: int
    after: float
    while_: str | os.PathLike[str]
    times: int
    errno: str | int
    delay: float
    hang: bool
    value: int | str
    flip: int | str
    drop: bool
    duplicate: bool
    remove: bool
    reset: bool
    error: Literal["fatal", "nonfatal", "corrected"]
    late: float
    driverless: bool


class Fault:
    """A fault rule of a lab.  As a context manager it is removed at the end."""

    def __init__(self, faults: Faults, name: str) -> None:
        self._faults = faults
        self.name = name

    def __repr__(self) -> str:
        return f"<Fault {self.name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fault) and (other.name, other._faults) == (self.name, self._faults)

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def rule(self) -> str:
        """Its keys and values, as `vfsfuse fault add` takes them.  Raises KeyError once it is removed."""
        return self._line()[1]

    @property
    def calls(self) -> int:
        """How many calls there were that it is about, until it could hit no more.  Raises KeyError once it is
        removed."""
        return int(self._line()[3])

    @property
    def hits(self) -> int:
        """How many of these calls it has hit.  Raises KeyError once it is removed."""
        return int(self._line()[2])

    @property
    def held(self) -> int:
        """How many calls it holds now.  Raises KeyError once it is removed."""
        return int(self._line()[4] or 0)

    def release(self) -> None:
        """Let go of the calls that it holds.  Raises KeyError once it is removed."""
        self._faults.release(self.name)

    def remove(self) -> None:
        """Remove it, and let go of the calls that it holds.  May be called again."""
        try:
            self._faults.clear(self.name)
        except KeyError:
            return

    def __enter__(self) -> Fault:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._faults.is_ours:
            self.remove()

    def _line(self) -> re.Match[str]:
        for name, line in self._faults.lines():
            if name == self.name and (found := _HITS.fullmatch(line)):
                return found
        raise self._faults.missing(self.name)


class Faults(Mapping[str, Fault]):
    """The rules that a lab has now, by name.  Each use looks again."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def add(self, **rule: Unpack[FaultRule]) -> Fault:
        """Add a rule, whose keys are those of `vfsfuse fault add`.  Without `name` the lab gives it one.

        Raises ValueError for a rule that makes no sense, or whose name is there, with the reason; LabError if
        the server has gone; OSError: EACCES in a lab of another user."""
        said = self._write(f"add {text_of(rule)}")
        added = _ADDED.search(said)
        if added is None:
            raise LabError(f"the lab says of a rule that was added: {said}")
        return Fault(self, added[1])

    def clear(self, *names: str) -> None:
        """Remove these rules, or all, and let go of the calls that they hold.  Raises KeyError for a name
        that there is not; then none is removed."""
        self._write(shlex.join(["clear", *names]))

    def release(self, *names: str) -> None:
        """Let go of the calls that these rules hold, or all.  The rules stay.  Raises KeyError as `clear`."""
        self._write(shlex.join(["release", *names]))

    def __getitem__(self, name: str) -> Fault:
        if name not in list(self):
            raise self.missing(name)
        return Fault(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _ in self.lines()])

    def __len__(self) -> int:
        return len(self.lines())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Faults) and other._files is self._files

    def __hash__(self) -> int:
        return hash(id(self._files))

    def __repr__(self) -> str:
        return f"<Faults {', '.join(self)}>"

    @property
    def is_ours(self) -> bool:
        """Whether this process has mounted or joined the lab."""
        return self._files.is_ours

    def lines(self) -> list[tuple[str, str]]:
        """The names of the rules, and their lines in the file."""
        text = self._files.text(self._files.root / FILE)
        return [(_name_of(line), line) for line in text.splitlines()]

    def missing(self, name: str) -> KeyError:
        """The error for a rule that there is not."""
        return KeyError(f"there is no fault rule {name} (there is {', '.join(self) or 'none'})")

    def _write(self, line: str) -> str:
        """Write a line to the file.  Returns what the file says then."""
        path = self._files.root / FILE
        with self._files.explained(path), open(path, "r+b", buffering=0) as file:
            try:
                file.write(f"{line}\n".encode(errors="surrogateescape"))
            except OSError as error:
                said = _said(file.fileno())
                if error.errno in (errno.EINVAL, errno.EEXIST) and said:
                    raise ValueError(said) from None
                if error.errno == errno.ENOENT and said:
                    raise KeyError(said) from None
                raise OSError(error.errno, said or error.strerror, str(path)) from None
            return _said(file.fileno())


def text_of(rule: Mapping[str, object]) -> str:
    """A rule as one line of keys and values.  Raises TypeError for a value of another type."""
    return shlex.join(f"{key.removesuffix('_')}={_value(key, value)}" for key, value in rule.items())


def _value(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.9f}"  # without an exponent
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    raise TypeError(f"{key}: {value!r} is neither a text nor a number")


def _said(fd: int) -> str:
    return os.pread(fd, MOST_BYTES, 0).decode(errors="replace").strip()


def _name_of(line: str) -> str:
    """The name in the line of a rule."""
    for word in shlex.split(line, comments=True):
        if word.startswith("name="):
            return word.removeprefix("name=")
    raise LabError(f"the lab says of a fault rule: {line}")
