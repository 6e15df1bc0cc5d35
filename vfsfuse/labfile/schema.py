# SPDX-License-Identifier: Apache-2.0
"""The keys of a lab file, by table. This declares all that the reader and the JSON schema for editors know.

State: none. docs/lab.md explains the keys to people; ``doc`` is what an editor shows beside one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from devmodel.lifecycle.spec import PATH_NAME
from vfsfuse.labfile import values
from vfsfuse.labfile.values import Kind


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a table: its kind of value, and the field of the spec that it fills ("" for none).

    ``table`` has the keys of a value that is a table; ``each`` has those of every table in a value that is a
    table of named tables or an array of tables. ``names`` is a pattern for the names.
    """

    kind: Kind[Any]
    doc: str
    field: str = ""
    required: bool = False
    table: "Schema | None" = None
    each: "Schema | None" = None
    names: str = ""


Schema = Mapping[str, Key]

NAMES = f"^{PATH_NAME.pattern}$"
NODE_NUMBERS = "^(0|[1-9][0-9]{0,3})$"

MOUNT: Schema = {
    "cache": Key(values.seconds, "seconds that the kernel may cache names and attributes", "cache"),
    "container": Key(values.container, "what an open of dev/vfio/vfio gives", "iommufd_container"),
    "device_owner": Key(values.user, "owner of the device files, a name or a uid", "device_uid"),
    "device_group": Key(values.group, "group of the device files, a name or a gid", "device_gid"),
    "device_mode": Key(values.mode, "mode of the device files, octal digits", "device_mode"),
    "remove": Key(values.removal, "effect of taking away a device in use", "removal"),
    "cdevs": Key(values.boolean, "whether there are files in dev/vfio/devices (VFIO_DEVICE_CDEV)", "cdevs"),
    "groups": Key(values.boolean, "whether there are group files and containers (VFIO_GROUP)", "groups"),
}
IOMMU: Schema = {
    "dirty_tracking": Key(
        values.boolean, "whether IOMMUs mark the pages that devices write", "dirty_tracking"
    ),
    "hw_info": Key(values.hw_info, "type of data that IOMMU_GET_HW_INFO gives", "vtd_info"),
}
TYPE: Schema = {
    "model": Key(values.name, "model of the vGPUs", "model"),
    "pretty_name": Key(values.text, "text of the attribute name", "pretty_name"),
    "description": Key(values.text, "text of the attribute description", "description", required=True),
    "memory": Key(values.size, "video memory that each vGPU takes from the parent", "memory"),
    "slots": Key(values.count, "slots that each vGPU takes from the parent", "slots"),
    "instances": Key(values.count, "largest number of vGPUs of this type", "instances"),
    "weight": Key(values.count, "share of the engine (option weight)"),
    "frame_rate": Key(values.count, "refresh rate of the monitor in Hz (option frame_rate)"),
    "max_resolution": Key(values.resolution, "largest picture (options max_width and max_height)"),
    "options": Key(values.options, "options of the model", "options"),
}
PARENT: Schema = {
    "kind": Key(values.parent_kind, "a physical GPU, or a device without hardware", "kind", required=True),
    "driver": Key(values.name, "name of its host driver", "driver", required=True),
    "model": Key(values.name, "model of a gpu, or of the types of a virtual parent", "model"),
    "memory": Key(values.size, "video memory", "memory"),
    "slots": Key(values.count, "slots that its vGPUs share", "slots"),
    "options": Key(values.options, "options of the model of a gpu", "options"),
    "iommu": Key(values.boolean, "whether a gpu is behind an IOMMU", "iommu"),
    "numa_node": Key(values.node, "NUMA node that a gpu is near to, -1 for none", "numa_node"),
    "vfs": Key(values.count, "virtual functions that a gpu can have", "vfs"),
    "vf_model": Key(values.name, "model of the virtual functions", "vf_model"),
    "vf_memory": Key(values.size, "video memory of each virtual function", "vf_memory"),
    "types": Key(values.table, "types of vGPU, by name", required=True, each=TYPE, names=NAMES),
}
NODE: Schema = {
    "cpus": Key(values.cpus, 'CPUs of the node, such as "0-15,32-47"', "cpus"),
    "threads": Key(values.count, "threads of each core", "threads"),
    "memory": Key(values.size, "memory of the node", "memory"),
    "distances": Key(values.distances, "distances to all nodes in the order of their numbers", "distances"),
}
LAB: Schema = {
    "vendor": Key(values.name, "name of the directory sys/class/vgpu/<vendor>", "vendor"),
    "models": Key(values.table, 'device models of your own: name = "file.py:Class"'),
    "mount": Key(values.table, "settings of the mount", table=MOUNT),
    "iommu": Key(values.table, "what the IOMMUs can do", table=IOMMU),
    "nodes": Key(values.table, "NUMA nodes of the machine, by number", each=NODE, names=NODE_NUMBERS),
    "parents": Key(values.table, "parents of vGPUs, by name", required=True, each=PARENT),
}
