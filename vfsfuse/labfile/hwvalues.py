# SPDX-License-Identifier: Apache-2.0
"""The kinds of value in a lab file that describe the machine: PCI functions, bridges, NUMA nodes, IOMMUs.

State: none. vfsfuse.labfile.kinds says what a kind is.
"""

import re

from devmodel.lifecycle.spec import LOCAL_DISTANCE, MAX_CPUS, MAX_NODES, BridgeKind
from devmodel.lifecycle.vf import MAX_VFS
from devmodel.pci.barkind import BarKind
from devmodel.pci.words import MemoryBar, capabilities_of
from vfsfuse.labfile.kinds import MAX_NUMBER, array_of, choice, either, kind, number_of, whole
from vfsfuse.labfile.mistakes import with_remedy
from vfsfuse.labfile.values import name, size

MAX_DISTANCE = 255
"""The largest distance between NUMA nodes, which means that there is no way."""
_CPUS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


@kind(type="integer", minimum=-1, maximum=MAX_NODES - 1)
def node(value: object) -> int:
    """The number of a NUMA node, or -1 for none."""
    number = whole(value, " (the number of a NUMA node)")
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
        if first > last:
            raise ValueError(f"{part!r} is no range (give the lower number first)")
        if last >= MAX_CPUS:
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


@kind(**size.json)
def bar_size(value: object) -> int:
    """The size of a BAR or a ROM."""
    number = size.read(value)
    if number & (number - 1) or not number:
        raise ValueError(f'{value!r} is not a power of two (give one, such as "16K")')
    return number


hw_info = either("none", "intel-vtd")
"""The type of IOMMU that GET_HW_INFO reports: whether it is VT-d."""

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

word = number_of(0xFFFF, "an id of 16 bits, such as 0x10de")
class_code = number_of(0xFFFFFF, "a class of 24 bits, such as 0x020000")
revision = number_of(0xFF, "a revision of 8 bits")
interrupt_pin = number_of(4, "1 for INTA to 4 for INTD, or 0 for none")
bus_number = number_of(0xFF, "the number of a bus")
routing_ids = number_of(0xFFFF, "routing ids", least=1)
bridge_kind = choice(BridgeKind, "a kind of bridge")
bar_kind = choice(BarKind, "a kind of BAR")
vf_group = either("own", "physical")
"""The IOMMU group of virtual functions: whether it is that of their physical function."""


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
    number = whole(value, " (nor a name)")
    if not 0 <= number < 2**31:
        raise ValueError(f"{number} is not the number of a group (give 0 or more, or a name)")
    return number


group_number = number_of(MAX_NUMBER, "the number of a group")
group_numbers = array_of("numbers", "number of a group", "[40, 41]")
_INDEXES = array_of("numbers", "index of a virtual function", "[2]", MAX_VFS - 1)


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
    address = bytes.fromhex(value.replace(":", ""))
    if address[0] & 1 or not any(address):
        raise ValueError(
            f"{value!r} is the address of no single interface (make its first byte even, not all zeros)"
        )
    return address


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


_CAPABILITY = "|".join(
    (
        "^(pm|vpd|aer|acs|ari|msi|express):?$",
        "^msi:[0-9]{1,4}$",
        "^msix:[0-9]{1,4}(@[0-9]{1,4})?$",
        "^express:[0-9a-zA-Z.,-]+$",
    )
)


@kind(type="array", items={"type": "string", "pattern": _CAPABILITY}, maxItems=MAX_WORDS)
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
            raise ValueError(with_remedy(str(error), f"change {word_!r}")) from None
    return tuple(value)


@kind(**_INDEXES.json)
def indexes(value: object) -> frozenset[int]:
    """Indexes of virtual functions."""
    return frozenset(_INDEXES.read(value))


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
    number = whole(value, ' (an address, such as "0xe0000000")')
    if number < 0:
        raise ValueError(f'{number} is not an address (write "0xe0000000")')
    return number


@kind(type="string", minLength=1)
def content(value: object) -> str:
    """The path of a file, or its content as rows of hexadecimal bytes."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is neither a path nor rows of bytes (write it in quotes)")
    return value


vf_index = number_of(MAX_VFS - 1, "the index of a virtual function")
