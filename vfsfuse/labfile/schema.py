# SPDX-License-Identifier: Apache-2.0
"""The keys of a lab file, by table: how to read each, and the field that it fills.  docs/lab.md explains
them.

State: none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vfsfuse.labfile import values


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a table: how its value is read, and the field of the spec that it fills ("" for none)."""

    read: Callable[[object], Any]
    field: str = ""
    required: bool = False


Schema = Mapping[str, Key]

LAB: Schema = {
    "vendor": Key(values.name, "vendor"),
    "models": Key(values.table),
    "mount": Key(values.table),
    "iommu": Key(values.table),
    "parents": Key(values.table, required=True),
}
MOUNT: Schema = {
    "cache": Key(values.seconds, "cache"),
    "container": Key(values.container, "iommufd_container"),
    "device_owner": Key(values.user, "device_uid"),
    "device_group": Key(values.group, "device_gid"),
    "device_mode": Key(values.mode, "device_mode"),
    "remove": Key(values.removal, "removal"),
    "cdevs": Key(values.boolean, "cdevs"),
    "groups": Key(values.boolean, "groups"),
}
IOMMU: Schema = {
    "dirty_tracking": Key(values.boolean, "dirty_tracking"),
    "hw_info": Key(values.hw_info, "vtd_info"),
}
PARENT: Schema = {
    "kind": Key(values.name, "kind", required=True),
    "driver": Key(values.name, "driver", required=True),
    "model": Key(values.name, "model"),
    "memory": Key(values.size, "memory"),
    "slots": Key(values.count, "slots"),
    "options": Key(values.options, "options"),
    "iommu": Key(values.boolean, "iommu"),
    "numa_node": Key(values.node, "numa_node"),
    "vfs": Key(values.count, "vfs"),
    "vf_model": Key(values.name, "vf_model"),
    "vf_memory": Key(values.size, "vf_memory"),
    "types": Key(values.table, required=True),
}
TYPE: Schema = {
    "model": Key(values.name, "model"),
    "pretty_name": Key(values.text, "pretty_name"),
    "description": Key(values.text, "description", required=True),
    "memory": Key(values.size, "memory"),
    "slots": Key(values.count, "slots"),
    "instances": Key(values.count, "instances"),
    "weight": Key(values.count),
    "frame_rate": Key(values.count),
    "max_resolution": Key(values.resolution),
    "options": Key(values.options, "options"),
}
