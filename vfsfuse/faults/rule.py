# SPDX-License-Identifier: Apache-2.0
"""A fault rule: a value that is made of keys, and the line of text that says the same.

State: none; a rule is frozen.  vfsfuse.faults.rules counts calls and acts.
"""

from __future__ import annotations

import difflib
import errno
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from vfsfuse.faults import plausible, values
from vfsfuse.faults.keys import ACTIONS, CALLS, CHOOSING, EFFECTS, KEYS, OF_VFS, REGION
from vfsfuse.faults.values import PLAUSIBLE
from vfsfuse.printable import printable

MOST_RULES = 10_000
"""Rules of a lab."""
MOST_LINE = 8192
"""Characters of a line."""
_WILD = re.compile(r"[*?\[]")
_MADE = ("value", "flip", "duplicate")
"""What happens to a call that is made."""
_BY_NOBODY = ("dma", "interrupt")
"""Calls that no process makes."""
_VECTORS = {"MSIX": 2048, "MSI": 32, "INTX": 1, "ERR": 1, "REQ": 1, "any": 2048}
"""How many vectors an interrupt index has at most.  Source: PCI Local Bus Specification 3.0, 6.8."""
_OF_VGPU = re.compile(r"vgpu[0-9]+|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
"""A name that no virtual function has."""
_NUMBERED = re.compile(r"vgpu[0-9]+", re.ASCII)
_WITHOUT_FILE = (*REGION, "dma", "store", "create", "bind", "probe")
"""Calls that can fail with ENOSYS.  After an open that does, FUSE has the kernel make all others itself; an
ioctl that does gives ENOTTY."""


class RuleError(ValueError):
    """There can be no such rule.  The text is one line: the key, the reason, and in parentheses what to do.
    ``key`` is "" for a mistake of several keys, ``why`` the text without the key."""

    def __init__(self, key: str, why: str) -> None:
        key, why = printable(key), printable(why)
        super().__init__(f"{key}: {why}" if key else why)
        self.key, self.why = key, why


@dataclass(frozen=True, slots=True)
class Rule:
    """A fault rule.  ``keys`` are its keys and their values as :data:`vfsfuse.faults.keys.KEYS` reads them,
    in the order of that table, without ``name``; ``name`` is "" until the lab gives it one."""

    name: str
    keys: Mapping[str, Any]

    @classmethod
    def of(cls, given: Mapping[str, object]) -> Rule:
        """The rule with these keys, whose values are texts, or as TOML or Python have them.  Raises RuleError
        for the first mistake."""
        for key in given:
            if key not in KEYS:
                raise RuleError(key, f"there is no such key ({_suggest(key, KEYS)})")
        found: dict[str, Any] = {}
        for key, entry in KEYS.items():
            if key in given:
                try:
                    found[key] = entry.kind.read(given[key])
                except ValueError as error:
                    raise RuleError(key, str(error)) from None
        return cls.read(found)

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Rule:
        """The rule with these keys, whose values are read.  Raises RuleError if they do not go together."""
        keys = {key: found[key] for key in KEYS if key in found and found[key] is not False}
        name = keys.pop("name", "")
        _check(keys)
        return cls(name, MappingProxyType(keys))

    def named(self, name: str) -> Rule:
        """The same rule with a name."""
        return replace(self, name=name)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, ``default`` if the rule has not got it."""
        return self.keys.get(key, default)

    @property
    def line(self) -> str:
        """The rule as a line of text, from which :func:`parse_line` makes an equal rule."""
        named = {"name": self.name} if self.name else {}
        return " ".join(_word(key, value) for key, value in {**named, **self.keys}.items())

    @property
    def call(self) -> str:
        """The key that says which kind of call it is about; "call" if the rule does not say it, and "" for
        one that happens by itself, or to virtual functions."""
        for key in CALLS:
            if key in self.keys:
                return key
        return "" if self.is_timed or any(key in self.keys for key in OF_VFS) else "call"

    @property
    def aims(self) -> bool:
        """Whether its calls are on no device, so that ``device`` says only what its actions happen to."""
        return "device" in self.keys and _is_on_none(self.keys)

    @property
    def actions(self) -> list[str]:
        """What it has happen to the device."""
        return [key for key in ACTIONS if key in self.keys]

    @property
    def is_on_one(self) -> bool:
        """Whether each of its calls says which device it is on."""
        return _is_on_one(self.keys)

    @property
    def is_timed(self) -> bool:
        """Whether it happens by itself, once: it has a device, ``after`` and actions, and says nothing of
        calls."""
        keys = self.keys
        return (
            "after" in keys
            and "device" in keys
            and not any(key in keys for key in (*CALLS, *CHOOSING, "process"))
            and all(key in ACTIONS for key in keys if key in EFFECTS)
        )


def parse_line(text: str) -> Rule:
    """The rule of a line ``KEY=VALUE ...``, whose words are quoted as in a shell.  ``#`` begins a comment.

    Raises RuleError, and nothing else.
    """
    if len(text) > MOST_LINE:
        raise RuleError("", f"the line has {len(text)} characters (give {MOST_LINE} at most)")
    return parse_words(split(text))


def parse_words(words: Iterable[str]) -> Rule:
    """The rule of words ``KEY=VALUE``.  Raises RuleError."""
    given: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise RuleError("", f"{word!r} is not KEY=VALUE (write such as errno=ENOMEM)")
        if key in given:
            raise RuleError(key, "is there twice (leave one of them out)")
        given[key] = value
    return Rule.of(given)


def split(text: str) -> list[str]:
    """The words of a line.  Raises RuleError."""
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        raise RuleError("", f"{str(error).lower()} (close the quotes)") from None


def is_pattern(text: str) -> bool:
    """Whether a text stands for several names."""
    return _WILD.search(text) is not None


def _word(key: str, value: Any) -> str:
    return f"{key}={shlex.quote(KEYS[key].kind.write(value))}"


# ---- what goes together ----


def _check(keys: Mapping[str, Any]) -> None:
    calls = [key for key in CALLS if key in keys]
    if calls == [*REGION]:  # the register of that region
        calls.pop()
    if len(calls) > 1:
        raise RuleError(calls[1], f"stands beside {calls[0]} (a rule is about one kind of call: make two)")
    effects = [key for key in EFFECTS if key in keys]
    if not effects:
        raise RuleError("", f"the rule says nothing of what is to happen (give one of {', '.join(EFFECTS)})")
    if any(key in OF_VFS for key in effects):
        _check_vfs(keys, calls, effects)
    elif not calls:
        _check_without_call(keys, effects)
    _check_fits(keys, calls)
    _check_when(keys)
    _check_what(keys)


def _check_fits(keys: Mapping[str, Any], calls: list[str]) -> None:
    call = calls[0] if calls else "call"
    for key in keys:
        fits = KEYS[key].fits
        if not fits or call in fits:
            continue
        if key in EFFECTS:
            possible = [what for what in EFFECTS if call in KEYS[what].fits]
            about = f"with {call}" if calls else "about all calls"
            raise RuleError(key, f"does not fit a rule {about} (give one of {', '.join(possible)})")
        raise RuleError(key, f"is about {' or '.join(fits)} (give that, or leave it out)")


def _check_vfs(keys: Mapping[str, Any], calls: list[str], effects: list[str]) -> None:
    what = next(key for key in effects if key in OF_VFS)
    for key in (*calls, "process"):
        if key in keys:
            raise RuleError(what, f"stands beside {key} (it is about virtual functions: leave {key} out)")
    if len(effects) > 1:
        other = next(key for key in effects if key != what)
        raise RuleError(what, f"stands beside {other} (make two rules)")
    if _OF_VGPU.fullmatch(keys.get("device", "")):
        raise RuleError("device", f"{keys['device']} is no virtual function (give the address of one)")
    if "device" not in keys:
        raise RuleError(what, "has no device (give the address of a function)")


def _check_without_call(keys: Mapping[str, Any], effects: list[str]) -> None:
    others = [key for key in effects if key not in ACTIONS]
    if not others and not any(key in keys for key in ("after", *CHOOSING)):
        why = f"says neither when nor at which call (give after, or one of {', '.join(CALLS)})"
        raise RuleError(effects[0], why)
    if not others and "device" not in keys:
        raise RuleError(effects[0], "has no device (give one)")


def _check_when(keys: Mapping[str, Any]) -> None:
    if "nth" in keys and "every" in keys:
        raise RuleError("every", "stands beside nth (a call cannot be both: leave one of them out)")
    if "seed" in keys and "probability" not in keys:
        raise RuleError("seed", "has no probability that it is for (give that, or leave it out)")


def _check_what(keys: Mapping[str, Any]) -> None:
    _check_made(keys)
    if "errno" in keys and "drop" in keys:
        raise RuleError("drop", "stands beside errno (the call fails, or it is lost: leave one of them out)")
    if keys.get("errno") == PLAUSIBLE and "call" not in keys:
        raise RuleError("errno", f"{PLAUSIBLE!r} is for call (give call, or an errno)")
    if "duplicate" in keys and "read" in (keys.get("access"), keys.get("dma")):
        raise RuleError("duplicate", "is about reads (only what is written can come twice: leave it out)")
    if keys.get("dma") == "pin":
        for key in (*_MADE, "drop"):
            if key in keys:
                raise RuleError(key, "cannot happen to a pin (give errno, delay or hang)")
    for key in ("delay", "late"):
        if keys.get(key) == 0:
            raise RuleError(key, "is 0 (give more, or leave it out)")
    if keys.get("errno") == errno.ENOSYS and not any(key in keys for key in _WITHOUT_FILE):
        why = "ENOSYS is no errno of an open or an ioctl (give another, such as ENOTTY)"
        raise RuleError("errno", why)
    _check_ioctl(keys.get("ioctl", ""))
    _check_caller(keys)
    _check_device(keys)


def _check_made(keys: Mapping[str, Any]) -> None:
    """What happens to a call that is made does not fit a call that is not."""
    for lost in ("errno", "drop"):
        for key in _MADE:
            if lost in keys and key in keys:
                raise RuleError(
                    key, f"stands beside {lost}, which has the call not made (leave one of them out)"
                )


def _check_caller(keys: Mapping[str, Any]) -> None:
    """What no call has."""
    for key in _BY_NOBODY:
        if key in keys and "process" in keys:
            raise RuleError("process", f"stands beside {key}, which no process makes (give device)")
    most = _VECTORS.get(keys.get("interrupt", ""), 0)
    if "vector" in keys and keys["vector"] >= most:
        raise RuleError(
            "vector",
            f"{keys['vector']} is out of range (the vectors of {keys['interrupt']} are 0 to {most - 1})",
        )


def _check_device(keys: Mapping[str, Any]) -> None:
    device = keys.get("device", "")
    if "/" in device:
        raise RuleError("device", f"{device} is a path (give a name, or open for the file)")
    if "create" in keys and _NUMBERED.fullmatch(device):
        why = "has its number only when it is created (give its UUID or its type)"
        raise RuleError("device", f"{device} {why}")
    actions = [key for key in ACTIONS if key in keys]
    if actions and not _is_on_one(keys) and (not device or is_pattern(device)):
        raise RuleError(actions[0], "does not know its device (give the device, without a pattern)")
    if device and not actions and _is_on_none(keys):
        raise RuleError("device", f"{_said(keys)} is on no device (give process, or leave it out)")


def _is_on_one(keys: Mapping[str, Any]) -> bool:
    """Whether each call says which device it is on."""
    if any(key in keys for key in (*REGION, "dma", "interrupt")):
        return True
    names = _ioctls(keys)
    return bool(names) and all(name.startswith("VFIO_DEVICE_") for name in names)


def _is_on_none(keys: Mapping[str, Any]) -> bool:
    """Whether no call is on a device: those of containers and of iommufds."""
    path = keys.get("open", "").removeprefix("/").removeprefix("dev/")
    names = _ioctls(keys)
    return path in ("vfio/vfio", "iommu") or (
        bool(names) and not any(name.startswith(("VFIO_DEVICE_", "VFIO_GROUP_")) for name in names)
    )


def _ioctls(keys: Mapping[str, Any]) -> list[str]:
    """The ioctls that a rule is about; none if they are not known by name."""
    pattern = keys.get("ioctl", "")
    return [name for name in plausible.IOCTLS if fnmatchcase(name, pattern)]


def _said(keys: Mapping[str, Any]) -> str:
    return str(keys.get("ioctl") or f"an open of {keys['open']}")


def _check_ioctl(pattern: str) -> None:
    if not pattern or pattern in plausible.IOCTLS:
        return
    if values.is_ioctl_number(pattern):
        from ioctl_shim.abi import ROWS  # few rules have a number

        known = {row.name for row in ROWS if f"{row.cmd:#x}" == pattern} & {*plausible.IOCTLS}
        if known:
            raise RuleError("ioctl", f"{pattern} is {' or '.join(sorted(known))} (give the name)")
        return
    if not any(fnmatchcase(name, pattern) for name in plausible.IOCTLS):
        raise RuleError("ioctl", f"there is no ioctl {pattern} ({_suggest(pattern, plausible.IOCTLS)})")


def _suggest(text: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(text[: values.MOST_TEXT], known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"known are {', '.join(known)}" if len(known) <= len(KEYS) else "give its name as in the header"
