# SPDX-License-Identifier: Apache-2.0
"""The kinds of value in a lab file that vGPUs, the mount and modules use, and general ones.

State: none. vfsfuse.labfile.kinds says what a kind is; vfsfuse.labfile.hwvalues has those of the machine.
"""

import grp
import pwd
import re
from collections.abc import Mapping
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
from devmodel.lifecycle.spec import PATH_NAME, Framework, PlacementMode, RemovalPolicy
from devmodel.pci.ids import parse_module_ids
from devmodel.uuids import parse_uuid_field
from vfsfuse.labfile.kinds import Json, array_of, choice, either, kind, number_of, whole
from vfsfuse.sysfs.kstrtox import NUMBER, parse_bool, parse_uint

MAX_CACHE_SECONDS = 86400
MAX_INCLUDES = 64
NAME_HINT = "use up to 255 letters, digits, '-', '_' and '.'"
_MODE = re.compile(r"0?[0-7]{3}", re.ASCII)


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
    number = whole(value)
    if not 1 <= number < 2**31:
        raise ValueError(f"{number} is out of range (give 1 or more, or leave the key out)")
    return number


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
    number = whole(value, ' (a number of bytes, or "256M")')
    if not 0 <= number <= MAX_SIZE:
        raise ValueError(f"{value!r} is out of range (at most 1T)")
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


container = either("vfio", "iommufd")
"""What dev/vfio/vfio opens: whether that is an iommufd."""


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


_SLOTS = array_of("slots", "number of a slot", "[0, 16], or leave it out", empty=False)


@kind(**_SLOTS.json)
def slots(value: object) -> tuple[int, ...]:
    """Slots of a GPU, at least one."""
    return tuple(sorted(set(_SLOTS.read(value))))


@kind(type="boolean")
def boolean(value: object) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false (give one of them)")
    return value


@kind(type="object", additionalProperties={"type": "integer"})
def options(value: object) -> Mapping[str, int]:
    """A model's options: a table of whole numbers."""
    return {key: whole(number, f" (for option {key!r})") for key, number in table.read(value).items()}


@kind(type="object")
def table(value: object) -> dict[str, object]:
    """A TOML table."""
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not a table (write [key] or {{ ... }})")
    return value


def _id(value: object) -> int:
    number = whole(value, " (nor a name)")
    if not 0 <= number < 2**32 - 1:
        raise ValueError(f"{number} is not an id of a user or group (0 to 4294967294)")
    return number


framework = choice(Framework, "a framework of vGPUs")
placement = choice(PlacementMode, "a way to place vGPUs")


@kind(type="object", additionalProperties={"type": ["integer", "string"]})
def all_options(value: object) -> Mapping[str, int | str]:
    """A model's options: a table of whole numbers and texts."""
    found: dict[str, int | str] = {}
    for key, each in table.read(value).items():
        found[key] = each if isinstance(each, str) else whole(each, f" (for option {key!r}, nor a text)")
    return found


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
        return parse_uint(value if isinstance(value, str) else str(whole(value)))
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


instance = number_of(MAX_INSTANCE, "an instance")
