# SPDX-License-Identifier: Apache-2.0
"""vfsfuse: a virtual VFIO lab in a FUSE mount.

`vfsfuse mount` (`cli`) reads a lab file (`labfile`) and starts a server (`server`), which makes the lab
(devmodel) and its tree.  From then on data flows in three ways:

- A write to an attribute comes to the trio thread: `kernfs` finds the attribute, its store() in `sysfs` calls
  devmodel, devmodel tells its observer in `views`, and `views` changes the tree.
- A lookup, or a read of an attribute, comes to the device lane (ioctl_shim), which asks the same tree.
- An open, ioctl, read or write of a device file comes to the device lane, where `vfio` calls devmodel.

`vfsfuse run` (`run`) is a process of its own, which reaches the lab through the mount.  So does the Python
API (`api`), whose names are here.  Importing this package imports nothing else, also nothing of the standard
library: every command does it first.  A name of the API is imported when it is used (PEP 562).
"""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from vfsfuse.api.device import Device
    from vfsfuse.api.errors import LabError
    from vfsfuse.api.faults import Fault, FaultRule, Faults
    from vfsfuse.api.functions import Function, Slot
    from vfsfuse.api.interrupts import Interrupts
    from vfsfuse.api.lab import Lab
    from vfsfuse.api.memory import DmaMemory
    from vfsfuse.api.parents import Parent, VgpuType
    from vfsfuse.api.recordings import LabRecording
    from vfsfuse.api.regions import Region
    from vfsfuse.api.tracing import Trace
    from vfsfuse.api.uevents import Uevent, Uevents
    from vfsfuse.api.vgpus import Vgpu
else:
    _MODULES = {
        "Device": "device",
        "DmaMemory": "memory",
        "Fault": "faults",
        "FaultRule": "faults",
        "Faults": "faults",
        "Function": "functions",
        "Interrupts": "interrupts",
        "Lab": "lab",
        "LabError": "errors",
        "LabRecording": "recordings",
        "Parent": "parents",
        "Region": "regions",
        "Slot": "functions",
        "Trace": "tracing",
        "Uevent": "uevents",
        "Uevents": "uevents",
        "Vgpu": "vgpus",
        "VgpuType": "parents",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"vfsfuse.api.{_MODULES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__():
        return [*globals(), *_MODULES]


__all__ = [
    "Device",
    "DmaMemory",
    "Fault",
    "FaultRule",
    "Faults",
    "Function",
    "Interrupts",
    "Lab",
    "LabError",
    "LabRecording",
    "Parent",
    "Region",
    "Slot",
    "Trace",
    "Uevent",
    "Uevents",
    "Vgpu",
    "VgpuType",
]
