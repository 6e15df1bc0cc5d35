# SPDX-License-Identifier: Apache-2.0
"""A lab as `vfsfuse list` shows it: tables for people, and an object for programs.  No state.

list.schema.json describes the object.  Its keys stay; later versions only add some.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vfsfuse.monitor.inventory import Inventory, Type
from vfsfuse.monitor.processes import Client
from vfsfuse.monitor.tables import share, size, table

UNKNOWN = "?"
MOST_SHOWN = 3
"""So many clients of a device are named in a table."""


class Contents(NamedTuple):
    """A lab: what is in it, its clients, and how many processes could not be looked at (see
    vfsfuse.monitor.processes)."""

    lab: str
    inventory: Inventory
    clients: Sequence[Client]
    unseen: int

    def by_device(self) -> Mapping[str, list[Client]]:
        """The clients of each function and vGPU, by its name as a device."""
        devices = (
            *((each.address, each.nodes) for each in self.inventory.functions),
            *((each.device, each.nodes) for each in self.inventory.vgpus),
        )
        return by_device(devices, self.clients)


def by_device(
    devices: Iterable[tuple[str, Sequence[str]]], clients: Sequence[Client]
) -> Mapping[str, list[Client]]:
    """The clients of devices.  A device is its name and its files below the mount.  A client of a group is
    one of all devices in it."""
    holders: dict[str, list[Client]] = defaultdict(list)
    for client in clients:
        for name in {_key(file) for file in client.files}:
            holders[name].append(client)
    found = {}
    for device, nodes in devices:
        holding = [*holders.get(device, ()), *(each for node in nodes for each in holders.get(node, ()))]
        if holding:
            found[device] = sorted(dict.fromkeys(holding))
    return found


def _key(file: str) -> str:
    """What has this file: a node of VFIO by its path, or a device by its name."""
    return f"dev/{file}" if file == "iommu" or file.startswith("vfio/") else file.partition("/")[0]


def named(clients: Sequence[Client], unseen: int) -> str | None:
    """The clients of a device in a table: `?` if there may be some that cannot be seen."""
    shown = [f"{client.comm} ({client.pid})" for client in clients[:MOST_SHOWN]]
    if len(clients) > MOST_SHOWN:
        shown.append(f"{len(clients) - MOST_SHOWN} more")
    if unseen:
        shown.append(UNKNOWN)
    return ", ".join(shown) or None


def unseen_note(unseen: int) -> str:
    """A line about clients that are not shown."""
    if unseen < 0:
        return "?: /proc does not show the processes of other users, which may be clients too"
    some = "1 process" if unseen == 1 else f"{unseen} processes"
    return f"?: {some} cannot be looked at by this user, and may be clients too"


def lines(contents: Contents) -> Iterator[str]:
    """The tables, separated by empty lines."""
    tables = (
        list(_parents(contents)),
        list(_types(contents)),
        list(_vgpus(contents)),
        list(_functions(contents)),
        list(_slots(contents)),
    )
    shown = [each for each in tables if each]
    for number, each in enumerate(shown):
        yield from ([""] if number else [])
        yield from each
    if contents.unseen:
        yield from ("", unseen_note(contents.unseen))


def _parents(contents: Contents) -> Iterator[str]:
    return table(
        ("PARENT", "FRAMEWORK", "DRIVER", "VGPUS", "MEMORY FREE"),
        [
            (each.name, each.framework, each.driver, each.vgpus, share(each.free, each.memory))
            for each in contents.inventory.parents
        ],
        right="VGPUS",
    )


def _types(contents: Contents) -> Iterator[str]:
    return table(
        ("TYPE", "PARENT", "LEFT", "MEMORY", "DESCRIPTION"),
        [
            (type_.name, parent.name, _left(type_), size(type_.memory), type_.description)
            for parent in contents.inventory.parents
            for type_ in parent.types
        ],
        right="LEFT MEMORY",
    )


def _vgpus(contents: Contents) -> Iterator[str]:
    holders = contents.by_device()
    return table(
        ("VGPU", "UUID", "TYPE", "PARENT", "GROUP", "NODE", "STATE", "CLIENTS"),
        [
            (
                *(each.name, each.uuid, each.type, each.parent, each.group, _node(each.nodes), each.state),
                named(holders.get(each.device, ()), contents.unseen),
            )
            for each in contents.inventory.vgpus
        ],
        right="GROUP",
    )


def _functions(contents: Contents) -> Iterator[str]:
    holders = contents.by_device()
    return table(
        ("FUNCTION", "CLASS", "ID", "DRIVER", "GROUP", "NODE", "SR-IOV", "CLIENTS"),
        [
            (
                *(each.address, each.class_code[:4], f"{each.vendor}:{each.device}", each.driver, each.group),
                *(_node(each.nodes), _sriov(each.physfn, each.vfs, each.totalvfs)),
                named(holders.get(each.address, ()), contents.unseen),
            )
            for each in contents.inventory.functions
        ],
        right="GROUP",
    )


def _slots(contents: Contents) -> Iterator[str]:
    return table(
        ("SLOT", "ADDRESS", "FUNCTIONS"),
        [(each.name, each.address, ", ".join(each.functions)) for each in contents.inventory.slots],
    )


def _left(type_: Type) -> int | str:
    return ">0" if type_.left is None else type_.left


def _node(nodes: Sequence[str]) -> str | None:
    """The name of a device's own file, or else its group's."""
    return nodes[-1].removeprefix("dev/vfio/").removeprefix("devices/") if nodes else None


def _sriov(physfn: str | None, vfs: int | None, totalvfs: int | None) -> str | None:
    if physfn is not None:
        return f"VF of {physfn}"
    return None if totalvfs is None else f"{vfs or 0} of {totalvfs} VFs"


def as_json(contents: Contents) -> dict[str, Any]:
    """The object of list.schema.json."""
    found, holders = contents.inventory, contents.by_device()
    return {
        "lab": contents.lab,
        "parents": [
            {**each._asdict(), "types": [type_._asdict() for type_ in each.types]} for each in found.parents
        ],
        "functions": [
            {
                **each._asdict(),
                "nodes": list(each.nodes),
                "clients": [client.pid for client in holders.get(each.address, ())],
            }
            for each in found.functions
        ],
        "vgpus": [
            {
                **each._asdict(),
                "nodes": list(each.nodes),
                "clients": [client.pid for client in holders.get(each.device, ())],
            }
            for each in found.vgpus
        ],
        "slots": [{**each._asdict(), "functions": list(each.functions)} for each in found.slots],
        "clients": [{**each._asdict(), "files": list(each.files)} for each in contents.clients],
        "clients_unseen": contents.unseen,
    }
