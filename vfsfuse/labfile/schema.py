# SPDX-License-Identifier: Apache-2.0
"""The keys of a lab file, by table. This declares all that the reader and the JSON schema for editors know.

State: none. docs/lab.md explains the keys to people; ``doc`` is what an editor shows beside one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from devmodel.lifecycle.spec import PATH_NAME
from vfsfuse.faults.keys import KEYS as FAULT_KEYS
from vfsfuse.labfile import hwvalues, values
from vfsfuse.labfile.addresses import PATTERN
from vfsfuse.labfile.kinds import Kind, as_text


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a table: its kind of value, and the field of the spec that it fills ("" for none).

    ``table`` has the keys of a value that is a table; ``each`` has those of every table in a value that is a
    table of named tables or an array of tables. ``names`` is a pattern for the names, ``misnamed`` the error
    of another name.
    """

    kind: Kind[Any]
    doc: str
    field: str = ""
    required: bool = False
    table: "Schema | None" = None
    each: "Schema | None" = None
    names: str = ""
    misnamed: str = ""


Schema = Mapping[str, Key]

NAMES = f"^{PATH_NAME.pattern}$"
ADDRESSES = f"^{PATTERN.pattern}$"
PARENT_NAMES = f"^({PATH_NAME.pattern}|{hwvalues.ADDRESS})$"
NODE_NUMBERS = "^(0|[1-9][0-9]{0,3})$"
ROOT_NAMES = "^[0-9a-f]{4,8}:[0-9a-f]{2}$"

ABSENT = Key(values.boolean, "true takes away what an included file has of this name")

MOUNT: Schema = {
    "cache": Key(values.seconds, "seconds that the kernel may cache names and attributes", "cache"),
    "container": Key(values.container, "what an open of dev/vfio/vfio gives", "iommufd_container"),
    "device_owner": Key(values.user, "owner of the device files, a name or a uid", "device_uid"),
    "device_group": Key(values.group, "group of the device files, a name or a gid", "device_gid"),
    "device_mode": Key(values.mode, "mode of the device files, octal digits", "device_mode"),
    "remove": Key(values.removal, "effect of taking away a device in use", "removal"),
    "cdevs": Key(values.boolean, "whether there are files in dev/vfio/devices (VFIO_DEVICE_CDEV)", "cdevs"),
    "groups": Key(values.boolean, "whether there are group files and containers (VFIO_GROUP)", "groups"),
    "mdev": Key(values.boolean, "whether there is the bus of mediated devices", "mdev"),
}
_UNSAFE = "whether functions whose interrupts are not isolated may be used"
IOMMUFD_MODULE: Schema = {
    "allow_unsafe_interrupts": Key(values.truth, _UNSAFE, "iommufd_unsafe_interrupts"),
}
VFIO_MODULE: Schema = {
    "enable_unsafe_noiommu_mode": Key(
        values.truth, "whether VFIO takes functions without an IOMMU", "enable_unsafe_noiommu_mode"
    ),
}
TYPE1_MODULE: Schema = {
    "allow_unsafe_interrupts": Key(values.truth, _UNSAFE, "allow_unsafe_interrupts"),
    "disable_hugepages": Key(values.truth, "whether the IOMMU uses no huge pages", "disable_hugepages"),
    "dma_entry_limit": Key(values.unsigned, "mappings that a container may have", "dma_entry_limit"),
}
VFIO_PCI_MODULE: Schema = {
    "ids": Key(values.module_ids, "functions that vfio-pci takes: 8086:1592,10de:2204", "ids"),
    "enable_sriov": Key(values.truth, "whether functions of vfio-pci may have VFs", "enable_sriov"),
    "nointxmask": Key(values.truth, "whether INTx is masked outside the function", "nointxmask"),
    "disable_idle_d3": Key(values.truth, "whether unused functions stay in D0", "disable_idle_d3"),
    "disable_vga": Key(values.truth, "whether there is no VGA region", "disable_vga"),
    "disable_denylist": Key(values.truth, "whether functions with errata are taken", "disable_denylist"),
}
MODULES: Schema = {
    "iommufd": Key(values.table, "parameters of iommufd", table=IOMMUFD_MODULE),
    "vfio": Key(values.table, "parameters of vfio", table=VFIO_MODULE),
    "vfio_iommu_type1": Key(values.table, "parameters of vfio_iommu_type1", table=TYPE1_MODULE),
    "vfio_pci": Key(values.table, "parameters of vfio_pci", table=VFIO_PCI_MODULE),
}
OVERRIDES: Schema = {
    "vram": Key(as_text(values.size), "video memory, if not that of the type"),
    "weight": Key(as_text(values.count), "share of the engine"),
    "frame_rate": Key(as_text(values.count), "refresh rate of the monitor in Hz"),
    "max_resolution": Key(as_text(values.resolution), "largest picture"),
}
"""What a line of vgpu_create may say besides."""

VGPU: Schema = {
    "parent": Key(values.text, "parent that it is made of", "parent", required=True),
    "type": Key(values.type_name, "type of the vGPU, by name or id", "type", required=True),
    "vf": Key(hwvalues.vf_index, "virtual function that it is, with the framework nvidia", "vf"),
    "uuid": Key(values.uuid, "UUID of a mediated device", "uuid"),
    "instance": Key(values.instance, "number that tells the vGPUs of one UUID apart", "instance"),
    "name": Key(values.name, "name of its directory, the UUID unless given", "name"),
    "group": Key(hwvalues.group_number, "number of its IOMMU group", "group"),
    **OVERRIDES,
}
REPLAY: Schema = {
    "recording": Key(values.text, 'recording that the model "replay" plays, a path'),
    "recorded": Key(values.text, "device of the recording, if it has several"),
}
"""Keys of the model "replay"."""
IOMMU_SETTINGS: Schema = {
    "dirty_tracking": Key(
        values.boolean, "whether IOMMUs mark the pages that devices write", "dirty_tracking"
    ),
    "page_requests": Key(values.boolean, "whether functions can ask their IOMMU for pages", "page_requests"),
    "hw_info": Key(hwvalues.hw_info, "type of data that IOMMU_GET_HW_INFO gives", "vtd_info"),
}
TYPE: Schema = {
    "absent": ABSENT,
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
    **REPLAY,
    "vendor": Key(hwvalues.word, "vendor id of the vGPUs"),
    "device": Key(hwvalues.word, "device id of the vGPUs"),
    "subsystem_vendor": Key(hwvalues.word, "subsystem vendor id of the vGPUs"),
    "subsystem_device": Key(hwvalues.word, "subsystem device id of the vGPUs"),
    "id": Key(values.count, "id of the type in NVIDIA's framework: the number that its name ends in"),
    "starts": Key(values.slots, "slots at which a vGPU may begin in NVIDIA's framework", "starts"),
}
NVIDIA: Schema = {
    "files": Key(values.nvidia_files, "files in the directory nvidia: 6, or 2 as at first", "files"),
    "physical_catalogue": Key(
        values.boolean, "whether the physical function has a catalogue, too", "physical_catalogue"
    ),
}
NO_SUCH_BAR = "there is no such BAR (give 0 to 5)"
BAR: Schema = {
    "size": Key(hwvalues.bar_size, "bytes, a power of two", "size", required=True),
    "kind": Key(hwvalues.bar_kind, "kind of BAR, mem32 unless given", "kind"),
    "address": Key(hwvalues.bus_address, "where the host sees the BAR", "address"),
}
SERIAL = Key(hwvalues.serial, "device serial number: 00-11-22-33-44-55-66-77", "serial")
PLAIN: Schema = {
    "vendor": Key(hwvalues.word, "vendor id, such as 0x8086", "vendor"),
    "device": Key(hwvalues.word, "device id", "device"),
    "subsystem_vendor": Key(hwvalues.word, "subsystem vendor id", "subsystem_vendor"),
    "subsystem_device": Key(hwvalues.word, "subsystem device id", "subsystem_device"),
    "class": Key(hwvalues.class_code, "class, subclass and programming interface: 0x020000", "class_code"),
    "revision": Key(hwvalues.revision, "revision", "revision"),
    "interrupt_pin": Key(hwvalues.interrupt_pin, "1 for INTA to 4 for INTD, 0 for none", "interrupt_pin"),
    "bars": Key(values.table, "BARs by index, 0 to 5", each=BAR, names="^[0-5]$", misnamed=NO_SUCH_BAR),
    "rom": Key(hwvalues.content, "file with the content of the ROM, or rows of bytes"),
    "rom_size": Key(hwvalues.bar_size, "bytes of the ROM, a power of two", "rom_size"),
    "capabilities": Key(
        hwvalues.capabilities, 'capabilities: ["pm", "msi:4", "msix:32", "express"]', "capabilities"
    ),
    "config": Key(hwvalues.content, "file with a configuration space, or rows of bytes as of lspci -xxxx"),
    "vpd": Key(hwvalues.content, "file with the vital product data, or rows of bytes"),
}
"""Keys of functions of the plain model."""

NOT_OF_VFS = {"interrupt_pin", "rom", "rom_size", "vpd"}
"""Keys of plain functions that virtual functions do not have."""

VF: Schema = {
    "model": Key(values.name, "model of the virtual functions", "model"),
    **{key: PLAIN[key] for key in PLAIN if key not in NOT_OF_VFS},
    "serial": SERIAL,
    "enabled": Key(values.count, "virtual functions that are enabled from the start", "enabled"),
    "driver": Key(values.name, "host driver of the virtual functions, none without it", "driver"),
    "memory": Key(values.size, "memory of each virtual function", "memory"),
    "options": Key(values.all_options, "options of the model"),
    "offset": Key(hwvalues.routing_ids, "routing ids from the function to its first virtual one", "offset"),
    "stride": Key(hwvalues.routing_ids, "routing ids from each virtual function to the next", "stride"),
    "group": Key(hwvalues.vf_group, "IOMMU group: of their own, or of the physical function", "shares_group"),
    "groups": Key(hwvalues.group_numbers, "numbers of their IOMMU groups, by index", "groups"),
    "delay": Key(values.seconds, "seconds until they appear after the write to sriov_numvfs", "delay"),
    "failing": Key(hwvalues.indexes, "indexes of those that the host driver fails to take", "failing"),
    "net": Key(hwvalues.interfaces, "names of network interfaces, by index", "net"),
    "vectors": Key(values.count, "MSI-X vectors that the driver shares out among them", "vectors"),
}
HARDWARE: Schema = {
    "model": Key(values.name, "model, plain unless given"),
    "driver": Key(values.name, "host driver, none without it", "driver"),
    "memory": Key(values.size, "device memory", "memory"),
    "options": Key(values.all_options, "options of the model: numbers and texts"),
    **REPLAY,
    "iommu": Key(values.boolean, "whether it is behind an IOMMU", "iommu"),
    "numa_node": Key(hwvalues.node, "NUMA node that it is near to, -1 for none", "numa_node"),
    "acs": Key(values.boolean, "whether its access control services are on", "acs"),
    "group": Key(hwvalues.iommu_group, "IOMMU group, by name or number", "group"),
    "serial": SERIAL,
    "slot": Key(hwvalues.slot, "physical slot that it is in", "slot"),
    "plugged": Key(values.boolean, "whether it is in the slot from the start", "plugged"),
    "vfs": Key(values.count, "virtual functions that it can have"),
    "vf": Key(values.table, "its virtual functions", table=VF),
    "net": Key(hwvalues.interfaces, "names of its network interfaces", "net"),
    "mac": Key(hwvalues.mac, "Ethernet address of the first interface", "mac"),
}
"""Keys of every function, those of parents too."""

BRIDGE: Schema = {
    "bridge": Key(hwvalues.bridge_kind, "kind of bridge that it is"),
    "secondary": Key(hwvalues.bus_number, "bus right below the bridge"),
    "subordinate": Key(hwvalues.bus_number, "last bus below the bridge"),
}
FUNCTION: Schema = {"absent": ABSENT, **HARDWARE, **PLAIN, **BRIDGE}
ROOT: Schema = {
    "absent": ABSENT,
    "numa_node": Key(hwvalues.node, "NUMA node that the root bus is near to, -1 for none", "numa_node"),
}
UNIT: Schema = {
    "absent": ABSENT,
    "scope": Key(hwvalues.scope, "root buses, bridges and functions behind the unit", "scope"),
}
IOMMU: Schema = {
    **IOMMU_SETTINGS,
    "units": Key(values.table, "IOMMU units by name", each=UNIT, names=NAMES),
}
PARENT: Schema = {
    "absent": ABSENT,
    "kind": Key(values.parent_kind, "a physical GPU, or a device without hardware", "kind", required=True),
    **HARDWARE,
    **PLAIN,
    "driver": Key(values.name, "name of its host driver", "driver", required=True),
    "model": Key(values.name, "model of a gpu, or of the types of a virtual parent"),
    "memory": Key(values.size, "video memory", "memory"),
    "slots": Key(values.count, "slots that its vGPUs share", "slots"),
    "type_names": Key(values.boolean, "whether types have the attribute name", "type_names"),
    "vf_model": Key(values.name, "model of the virtual functions"),
    "vf_memory": Key(values.size, "video memory of each virtual function"),
    "types": Key(values.table, "types of vGPU, by name", required=True, each=TYPE, names=NAMES),
    "framework": Key(values.framework, "how its vGPUs are given to VFIO"),
    "placement": Key(values.placement, "which vGPUs can be on a gpu at the same time"),
    "nvidia": Key(values.table, "settings of NVIDIA's framework", table=NVIDIA),
}
FAULT: Schema = {
    **{name: Key(Kind(key.kind.read, key.kind.json), key.doc) for name, key in FAULT_KEYS.items()},
    "while": Key(values.text, f"{FAULT_KEYS['while'].doc}, relative to the lab file"),
}
NODE: Schema = {
    "absent": ABSENT,
    "cpus": Key(hwvalues.cpus, 'CPUs of the node, such as "0-15,32-47"', "cpus"),
    "threads": Key(values.count, "threads of each core", "threads"),
    "memory": Key(values.size, "memory of the node", "memory"),
    "distances": Key(hwvalues.distances, "distances to all nodes in the order of their numbers", "distances"),
}
LAB: Schema = {
    "include": Key(values.includes, "lab files that this one builds on, with paths relative to it"),
    "vendor": Key(values.name, "name of the directory sys/class/vgpu/<vendor>", "vendor"),
    "models": Key(values.table, 'device models of your own: name = "file.py:Class"'),
    "mount": Key(values.table, "settings of the mount", table=MOUNT),
    "iommu": Key(values.table, "what the IOMMUs can do", table=IOMMU),
    "modules": Key(values.table, "starting values of module parameters", table=MODULES),
    "vgpus": Key(values.tables, "vGPUs that exist from the start", each=VGPU),
    "faults": Key(values.tables, "fault rules that hold from the start", each=FAULT),
    "nodes": Key(values.table, "NUMA nodes of the machine, by number", each=NODE, names=NODE_NUMBERS),
    "roots": Key(values.table, "root buses, such as 0000:80", each=ROOT, names=ROOT_NAMES),
    "functions": Key(values.table, "PCI functions, by address", each=FUNCTION, names=ADDRESSES),
    "parents": Key(values.table, "parents of vGPUs, by name", each=PARENT, names=PARENT_NAMES),
}
