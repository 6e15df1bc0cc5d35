# SPDX-License-Identifier: Apache-2.0
"""The kinds of value in a lab file: how each is read from TOML, and its JSON schema for editors.

State: none. ``read`` of each raises ValueError, whose text tells a person the mistake and the remedy. The
JSON schema (json-schema.org, draft 2020-12) accepts every value that ``read`` does.
"""

import grp
import pwd
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar
from uuid import UUID

from devmodel.lifecycle.requests import MAX_INSTANCE
from devmodel.lifecycle.resources import (
    MAX_SIZE,
    RESOLUTION,
    SIZE,
    Resolution,
    parse_resolution,
    parse_size,
)
from devmodel.lifecycle.spec import PATH_NAME, BridgeKind, Framework, PlacementMode, RemovalPolicy
from devmodel.lifecycle.vf import MAX_VFS
from devmodel.models.plain import BarKind
from devmodel.pci.ids import parse_module_ids
from devmodel.pci.words import MemoryBar, capabilities_of
from devmodel.uuids import parse_uuid_field
from vfsfuse.sysfs.kstrtox import NUMBER, parse_bool, parse_uint

MAX_CACHE_SECONDS = 86400
MAX_INCLUDES = 64
MAX_NODES = 1024
"""NUMA nodes that Linux can tell apart."""

MAX_CPUS = 8192
"""CPUs that Linux can have on x86."""

LOCAL_DISTANCE, MAX_DISTANCE = 10, 255
"""The distance of a NUMA node to itself, and the largest, which means that there is no way."""

NAME_HINT = "use up to 255 letters, digits, '-', '_' and '.'"

_CPUS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)
_MODE = re.compile(r"0?[0-7]{3}", re.ASCII)

T = TypeVar("T")
E = TypeVar("E", bound=Enum)
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """A kind of value: ``read`` makes a value for the lab of one of TOML, ``json`` is its JSON schema."""

    read: Callable[[object], T]
    json: Json


def kind(**json: Any) -> Callable[[Callable[[object], T]], Kind[T]]:
    """Make a function that reads a value a kind with this JSON schema."""
    return lambda read: Kind(read, json)


@kind(type="string", minLength=1)
def text(value: object) -> str:
    """A line of text, as an attribute can show it."""
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(f"{value!r} is not a line of text (write it in quotes)")
    return value


@kind(anyOf=[{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string"}}])
def includes(value: object) -> tuple[str, ...]:
    """Paths of lab files: one, or an array of them."""
    paths = value if isinstance(value, list) else [value]
    if len(paths) > MAX_INCLUDES:
        raise ValueError(f"has {len(paths)} files (give {MAX_INCLUDES} at most)")
    for path in paths:
        if not isinstance(path, str) or not path or not path.isprintable():
            raise ValueError(f'{path!r} is not the path of a lab file (write "base.toml")')
    return tuple(paths)


@kind(type="string", pattern=f"^{PATH_NAME.pattern}$")
def name(value: object) -> str:
    """Text that can name a directory."""
    if not isinstance(value, str) or PATH_NAME.fullmatch(value) is None:
        raise ValueError(f"{value!r} cannot be a name ({NAME_HINT})")
    return value


@kind(type="integer", minimum=1, maximum=2**31 - 1)
def count(value: object) -> int:
    """A whole number from 1 to 2^31 - 1."""
    number = _whole(value)
    if not 1 <= number < 2**31:
        raise ValueError(f"{number} is out of range (give 1 or more, or leave the key out)")
    return number


@kind(type="integer", minimum=-1, maximum=MAX_NODES - 1)
def node(value: object) -> int:
    """The number of a NUMA node, or -1 for none."""
    number = _whole(value, " (the number of a NUMA node)")
    if not -1 <= number < MAX_NODES:
        raise ValueError(f"{number} is out of range (give 0 to {MAX_NODES - 1}, or -1 for no node)")
    return number


@kind(
    anyOf=[
        {"type": "integer", "minimum": 0, "maximum": MAX_CPUS - 1},
        {"type": "string", "pattern": "^ *([0-9]{1,5}(-[0-9]{1,5})? *(, *|$))*$"},
    ]
)
def cpus(value: object) -> frozenset[int]:
    """CPUs as a list: "0-3,8", or the number of one."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str):
        raise ValueError(f'{value!r} is not a list of CPUs (write "0-15,32-47")')
    found: set[int] = set()
    for part in filter(None, (each.strip(" ") for each in text.split(","))):
        numbers = _CPUS.fullmatch(part)
        if numbers is None:
            raise ValueError(f'{part!r} is neither a CPU nor a range of CPUs (write "0-15,32-47")')
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        if not first <= last < MAX_CPUS:
            raise ValueError(f"{part!r} is out of range (CPUs have the numbers 0 to {MAX_CPUS - 1})")
        found.update(range(first, last + 1))
    return frozenset(found)


@kind(type="array", items={"type": "integer", "minimum": LOCAL_DISTANCE, "maximum": MAX_DISTANCE})
def distances(value: object) -> tuple[int, ...]:
    """Distances to all nodes: [10, 21]."""
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not a list of distances (write [10, 21])")
    for each in value:
        if isinstance(each, bool) or not isinstance(each, int) or not LOCAL_DISTANCE <= each <= MAX_DISTANCE:
            raise ValueError(f"{each!r} is not a distance (give {LOCAL_DISTANCE} to {MAX_DISTANCE})")
    return tuple(value)


@kind(
    anyOf=[
        {"type": "integer", "minimum": 0, "maximum": MAX_SIZE},
        {"type": "string", "pattern": f"^{SIZE.pattern}$"},
    ]
)
def size(value: object) -> int:
    """Bytes, as a number or with a unit: 268435456, "256M", "256 MiB"."""
    if isinstance(value, str):
        return parse_size(value)
    number = _whole(value, ' (a number of bytes, or "256M")')
    if not 0 <= number <= MAX_SIZE:
        raise ValueError(f"{value!r} is out of range (at most 1T)")
    return number


@kind(**size.json)
def bar_size(value: object) -> int:
    """The size of a BAR or a ROM."""
    number = size.read(value)
    if number & (number - 1) or not number:
        raise ValueError(f'{value!r} is not a power of two (give one, such as "16K")')
    return number


@kind(type="string", pattern=f"^{RESOLUTION.pattern}$")
def resolution(value: object) -> Resolution:
    """Pixels: "1920x1080"."""
    if not isinstance(value, str):
        raise ValueError(f'{value!r} is not a resolution (write "1920x1080")')
    return parse_resolution(value)


@kind(enum=["gpu", "virtual"])
def parent_kind(value: object) -> str:
    """The kind of a parent."""
    if value not in ("gpu", "virtual"):
        raise ValueError(f'{value!r} is not a kind of parent (give "gpu" or "virtual")')
    return str(value)


@kind(enum=[each.value for each in RemovalPolicy])
def removal(value: object) -> RemovalPolicy:
    """The policy for removing a device in use."""
    if not isinstance(value, str) or value not in {each.value for each in RemovalPolicy}:
        raise ValueError(f'{value!r} is neither "busy" nor "wait" (give one of them)')
    return RemovalPolicy(value)


@kind(enum=["vfio", "iommufd"])
def container(value: object) -> bool:
    """What dev/vfio/vfio opens: whether that is an iommufd."""
    if value not in ("vfio", "iommufd"):
        raise ValueError(f'{value!r} is neither "vfio" nor "iommufd" (give one of them)')
    return value == "iommufd"


@kind(enum=["none", "intel-vtd"])
def hw_info(value: object) -> bool:
    """The type of IOMMU that GET_HW_INFO reports: whether it is VT-d."""
    if value not in ("none", "intel-vtd"):
        raise ValueError(f'{value!r} is neither "none" nor "intel-vtd" (give one of them)')
    return value == "intel-vtd"


@kind(type="number", minimum=0, maximum=MAX_CACHE_SECONDS)
def seconds(value: object) -> float:
    """A time of up to a day."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_CACHE_SECONDS:
        raise ValueError(f"{value!r} is not a time (give seconds, 0 to {MAX_CACHE_SECONDS})")
    return float(value)


@kind(type="string", pattern=f"^{_MODE.pattern}$")
def mode(value: object) -> int:
    """Permission bits as octal text. A TOML number is refused, because 600 and 0o600 look too much alike."""
    if not isinstance(value, str) or _MODE.fullmatch(value) is None:
        raise ValueError(f'{value!r} is not a mode (give octal digits in quotes, "0600")')
    return int(value, 8)


_ID: Json = {"type": ["string", "integer"], "minimum": 0, "maximum": 2**32 - 2}


@kind(**_ID)
def user(value: object) -> int:
    """A user by name or number, as a uid."""
    if isinstance(value, str):
        try:
            return pwd.getpwnam(value).pw_uid
        except (KeyError, ValueError):  # ValueError for a NUL in it
            raise ValueError(f"there is no user {value!r} (give a name of this system, or a uid)") from None
    return _id(value)


@kind(**_ID)
def group(value: object) -> int:
    """A group by name or number, as a gid."""
    if isinstance(value, str):
        try:
            return grp.getgrnam(value).gr_gid
        except (KeyError, ValueError):
            raise ValueError(f"there is no group {value!r} (give a name of this system, or a gid)") from None
    return _id(value)


@kind(enum=[2, 6])
def nvidia_files(value: object) -> int:
    """How many files a directory nvidia has."""
    if value not in (2, 6) or isinstance(value, bool):
        raise ValueError(f"{value!r} is neither 2, as with the first drivers, nor 6 (give one of them)")
    return 2 if value == 2 else 6


@kind(type="array", items={"type": "integer", "minimum": 0, "maximum": 2**31 - 1})
def slots(value: object) -> tuple[int, ...]:
    """Slots of a GPU."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"{value!r} is not an array of slots (write [0, 16], or leave it out)")
    for number in value:
        if not 0 <= _whole(number) < 2**31:
            raise ValueError(f"{number} is not the number of a slot (give 0 or more)")
    return tuple(sorted(set(value)))


@kind(type="boolean")
def boolean(value: object) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false (give one of them)")
    return value


@kind(type="object", additionalProperties={"type": "integer"})
def options(value: object) -> Mapping[str, int]:
    """A model's options: a table of whole numbers."""
    return {key: _whole(number, f" (for option {key!r})") for key, number in table.read(value).items()}


@kind(type="object")
def table(value: object) -> dict[str, object]:
    """A TOML table."""
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not a table (write [key] or {{ ... }})")
    return value


def _whole(value: object, hint: str = " (give one, such as 4)") -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number{hint}")
    return value


def _id(value: object) -> int:
    number = _whole(value, " (nor a name)")
    if not 0 <= number < 2**32 - 1:
        raise ValueError(f"{number} is not an id of a user or group (0 to 4294967294)")
    return number


# ---- the machine ----

PAIRS = r"[0-9A-Fa-f]{2}"
_ROOT = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}", re.ASCII)
ADDRESS = r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]"
_SCOPE = re.compile(f"{_ROOT.pattern}|{ADDRESS}", re.ASCII)
_SERIAL = re.compile(f"{PAIRS}(?:-{PAIRS}){{7}}", re.ASCII)
_MAC = re.compile(f"{PAIRS}(?::{PAIRS}){{5}}", re.ASCII)
_INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}", re.ASCII)
_HEX = re.compile(r"0x[0-9A-Fa-f]{1,16}", re.ASCII)
_SLOT = re.compile(r"0|[1-9][0-9]{0,3}", re.ASCII)
MAX_SLOT = 8191
"""Physical slot numbers have 13 bits."""
MAX_WORDS = 64
"""Names in an array, such as capabilities or interfaces of a function."""


def _number(most: int, what: str, least: int = 0) -> Kind[int]:
    """Whole numbers from ``least`` to ``most``, called ``what`` in errors."""
    shown = f"{most:#x}" if not least and most > 255 else str(most)

    def read(value: object) -> int:
        number = _whole(value, f" ({what})")
        if not least <= number <= most:
            raise ValueError(f"{number} is out of range ({what}: give {least} to {shown})")
        return number

    return Kind(read, {"type": "integer", "minimum": least, "maximum": most})


word = _number(0xFFFF, "an id of 16 bits, such as 0x10de")
class_code = _number(0xFFFFFF, "a class of 24 bits, such as 0x020000")
revision = _number(0xFF, "a revision of 8 bits")
interrupt_pin = _number(4, "1 for INTA to 4 for INTD, or 0 for none")
bus_number = _number(0xFF, "the number of a bus")
routing_ids = _number(0xFFFF, "routing ids", least=1)


def _choice(type_: type[E], what: str) -> Kind[E]:
    """The values of an enumeration."""
    named = {each.value: each for each in type_}
    listed = ", ".join(f'"{name}"' for name in named)

    def read(value: object) -> E:
        if not isinstance(value, str) or value not in named:
            raise ValueError(f"{value!r} is not {what} (give one of {listed})")
        return named[value]

    return Kind(read, {"enum": list(named)})


bridge_kind = _choice(BridgeKind, "a kind of bridge")
bar_kind = _choice(BarKind, "a kind of BAR")
framework = _choice(Framework, "a framework of vGPUs")
placement = _choice(PlacementMode, "a way to place vGPUs")


@kind(enum=["own", "physical"])
def vf_group(value: object) -> bool:
    """The IOMMU group of virtual functions: whether it is that of their physical function."""
    if value not in ("own", "physical"):
        raise ValueError(f'{value!r} is neither "own" nor "physical" (give one of them)')
    return value == "physical"


@kind(
    anyOf=[
        {"type": "string", "pattern": f"^({_SLOT.pattern})$"},
        {"type": "integer", "minimum": 0, "maximum": MAX_SLOT},
    ]
)
def slot(value: object) -> str:
    """A physical slot, by its number."""
    found = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(found, str) or _SLOT.fullmatch(found) is None or int(found) > MAX_SLOT:
        raise ValueError(f'{value!r} is not the number of a slot (give "0" to "{MAX_SLOT}")')
    return found


@kind(anyOf=[name.json, {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}])
def iommu_group(value: object) -> str | int:
    """An IOMMU group by name or number."""
    if isinstance(value, str):
        return name.read(value)
    number = _whole(value, " (nor a name)")
    if not 0 <= number < 2**31:
        raise ValueError(f"{number} is not the number of a group (give 0 or more, or a name)")
    return number


@kind(type="array", items={"type": "integer", "minimum": 0, "maximum": 2**31 - 1})
def group_numbers(value: object) -> tuple[int, ...]:
    """Numbers of IOMMU groups."""
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not an array of numbers (write [40, 41])")
    for number in value:
        if not 0 <= _whole(number) < 2**31:
            raise ValueError(f"{number} is not the number of a group (give 0 or more)")
    return tuple(value)


@kind(type="string", pattern=f"^{_SERIAL.pattern}$")
def serial(value: object) -> int:
    """A device serial number: eight bytes as lspci shows them, the highest first."""
    if not isinstance(value, str) or _SERIAL.fullmatch(value) is None:
        raise ValueError(f'{value!r} is not a serial number (write "00-11-22-33-44-55-66-77")')
    return int(value.replace("-", ""), 16)


@kind(type="string", pattern=f"^{_MAC.pattern}$")
def mac(value: object) -> bytes:
    """An Ethernet address."""
    if not isinstance(value, str) or _MAC.fullmatch(value) is None:
        raise ValueError(f'{value!r} is not an Ethernet address (write "52:54:00:12:34:56")')
    return bytes.fromhex(value.replace(":", ""))


@kind(
    anyOf=[
        {"type": "string", "pattern": f"^{_INTERFACE.pattern}$"},
        {"type": "array", "items": {"type": "string", "pattern": f"^{_INTERFACE.pattern}$"}},
    ]
)
def interfaces(value: object) -> tuple[str, ...]:
    """Names of network interfaces: one, or an array."""
    names = value if isinstance(value, list) else [value]
    for each in names:
        if not isinstance(each, str) or _INTERFACE.fullmatch(each) is None:
            raise ValueError(f"{each!r} is not the name of an interface (up to 15 letters, digits, '_.-')")
    if len(set(names)) < len(names):
        raise ValueError("has a name twice (leave one out)")
    return tuple(names)


_ANY_BARS = [MemoryBar(index, 1 << 31) for index in range(6)]


@kind(type="array", items={"type": "string"}, maxItems=MAX_WORDS)
def capabilities(value: object) -> tuple[str, ...]:
    """Words for capabilities. Whether they go together is up to the model."""
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f'{value!r} is not an array of words (write ["pm", "msi:4"])')
    if len(value) > MAX_WORDS:
        raise ValueError(f"has {len(value)} words (give {MAX_WORDS} at most)")
    for word_ in value:
        name_ = word_.partition(":")[0]
        try:
            capabilities_of([word_] if name_ == "express" else ["express", word_], _ANY_BARS)
        except ValueError as error:
            why = str(error)
            raise ValueError(why if why.endswith(")") else f"{why} (change {word_!r})") from None
    return tuple(value)


@kind(type="array", items={"type": "integer", "minimum": 0, "maximum": MAX_VFS - 1})
def indexes(value: object) -> frozenset[int]:
    """Indexes of virtual functions."""
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not an array of numbers (write [2])")
    for number in value:
        if not 0 <= _whole(number) < MAX_VFS:
            raise ValueError(f"{number} is not the index of a virtual function (give 0 to {MAX_VFS - 1})")
    return frozenset(value)


@kind(type="array", items={"type": "string", "pattern": f"^(?:{_SCOPE.pattern})$"})
def scope(value: object) -> tuple[str, ...]:
    """Root buses, bridges and functions behind an IOMMU unit."""
    if not isinstance(value, list) or not value:
        raise ValueError(f'{value!r} is not a scope (write ["0000:80", "0000:00:02.0"], or leave it out)')
    for each in value:
        if not isinstance(each, str) or _SCOPE.fullmatch(each) is None:
            raise ValueError(f'{each!r} is neither a root bus ("0000:80") nor an address ("0000:00:02.0")')
    return tuple(value)


@kind(anyOf=[{"type": "string", "pattern": f"^{_HEX.pattern}$"}, {"type": "integer", "minimum": 0}])
def bus_address(value: object) -> int:
    """An address on the bus: a number, or text for those of 64 bits."""
    if isinstance(value, str) and _HEX.fullmatch(value):
        return int(value, 16)
    number = _whole(value, ' (an address, such as "0xe0000000")')
    if number < 0:
        raise ValueError(f'{number} is not an address (write "0xe0000000")')
    return number


@kind(type="object", additionalProperties={"type": ["integer", "string"]})
def all_options(value: object) -> Mapping[str, int | str]:
    """A model's options: a table of whole numbers and texts."""
    found: dict[str, int | str] = {}
    for key, each in table.read(value).items():
        found[key] = each if isinstance(each, str) else _whole(each, f" (for option {key!r}, nor a text)")
    return found


@kind(type="string", minLength=1)
def content(value: object) -> str:
    """The path of a file, or its content as rows of hexadecimal bytes."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is neither a path nor rows of bytes (write it in quotes)")
    return value


# ---- modules and vGPUs ----


@kind(
    anyOf=[
        {"type": "boolean"},
        {"type": "integer", "enum": [0, 1]},
        {"type": "string", "pattern": "^([yYtT1nNfF0]|[oO][nNfF])"},
    ]
)
def truth(value: object) -> bool:
    """A truth value, also as a module parameter takes it: "Y", "off", 1."""
    if isinstance(value, bool):
        return value
    text_ = str(value) if value in (0, 1) else value
    if not isinstance(text_, str):
        raise ValueError(f"{value!r} is neither true nor false (give one of them)")
    try:
        return parse_bool(text_)
    except ValueError as error:
        raise ValueError(f"{error} (give true or false)") from None


@kind(
    anyOf=[
        {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
        {"type": "string", "pattern": f"^({NUMBER.pattern})$"},
    ]
)
def unsigned(value: object) -> int:
    """A number of 32 bits, also as a module parameter takes it: "0x1000"."""
    try:
        return parse_uint(value if isinstance(value, str) else str(_whole(value)))
    except (ValueError, OSError):
        raise ValueError(f"{value!r} is not a number of 32 bits (give 0 to 4294967295)") from None


@kind(type="string")
def module_ids(value: object) -> str:
    """Ids of functions as vfio-pci's module parameter has them."""
    if not isinstance(value, str):
        raise ValueError(f'{value!r} is not a list of ids (write "8086:1592,10de:2204")')
    parse_module_ids(value)
    return value


@kind(type="array", items={"type": "object"})
def tables(value: object) -> list[object]:
    """An array of tables."""
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ValueError(f"{value!r} is not an array of tables (write [[vgpus]])")
    return value


@kind(type="string", pattern="^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")
def uuid(value: object) -> UUID:
    """A UUID."""
    try:
        return parse_uuid_field(value if isinstance(value, str) else str(value))
    except ValueError as error:
        raise ValueError(f"{error} (write 8-4-4-4-12 hexadecimal digits)") from None


@kind(anyOf=[name.json, {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}])
def type_name(value: object) -> str:
    """A type of vGPU by its name, or by its id."""
    return name.read(value) if isinstance(value, str) else str(count.read(value))


vf_index = _number(1023, "the index of a virtual function")
instance = _number(MAX_INSTANCE, "an instance")


def as_text(original: Kind[Any]) -> Kind[str]:
    """A kind whose values are kept as texts."""

    def read(value: object) -> str:
        original.read(value)
        return str(value).replace(" ", "")

    return Kind(read, original.json)
