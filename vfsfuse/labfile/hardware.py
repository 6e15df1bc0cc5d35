# SPDX-License-Identifier: Apache-2.0
"""What a lab file says of one PCI function, be it in ``[functions]`` or a parent of kind "gpu".

State: none. Errors: see :mod:`vfsfuse.labfile.reading`.
"""

import os
from collections.abc import Mapping
from typing import Any

from devmodel.device.identity import with_ids
from devmodel.device.pci import PciDevice
from devmodel.lifecycle.bridge import PCIEPORT
from devmodel.lifecycle.spec import BridgeKind, BridgeSpec, FunctionSpec, VfSpec
from devmodel.lifecycle.vf import FIRST_OFFSET, MAX_VFS, VfLayout
from devmodel.models.plain import PlainDevice
from devmodel.models.registry import MODELS, PHYSICAL
from devmodel.pci.capability import alternative_routing
from devmodel.pci.image import with_virtual_functions
from vfsfuse.labfile.mistakes import Keys, Mistake
from vfsfuse.labfile.plain import NAME as PLAIN_NAME
from vfsfuse.labfile.plain import plain
from vfsfuse.labfile.reading import Found, Reading, fields
from vfsfuse.labfile.replay import NAME as REPLAY_NAME
from vfsfuse.labfile.replay import check_not_replay, replay
from vfsfuse.labfile.schema import BRIDGE, HARDWARE, PLAIN, VF

RESERVED_DRIVERS = ("iommu", "mdev_bus", "net", "pci_bus", PCIEPORT, "vfio", "vfio-dev", "vfio-pci")
"""Directories of sys/class, and the PCI driver vfio-pci. A host driver must have another name."""

IDS = ("vendor", "device", "subsystem_vendor", "subsystem_device", "class", "revision")
"""Keys of a function that every model can have."""

ANY_MODEL: Mapping[str, type[PciDevice]] = {**PHYSICAL, **MODELS}

Fields = dict[str, Any]
"""Fields of a FunctionSpec by name."""


def read_function(reading: Reading, found: Found, keys: Keys) -> Fields:
    """The fields of the spec of a function in ``[functions]``."""
    bridge = _bridge(reading, found, keys)
    members = own_fields(found)
    driver = members.get("driver")
    if driver in RESERVED_DRIVERS and not (bridge is not None and driver == PCIEPORT):
        reading.note((*keys, "driver"), f"{driver!r} has a meaning of its own (choose another)")
    if bridge is not None:
        members["bridge"] = bridge
        if bridge.kind is not BridgeKind.PCI and "config" not in found:  # a captured one has what it had
            members.setdefault("driver", PCIEPORT)
        if "vfs" in found:
            reading.fail((*keys, "vfs"), "is for functions that are no bridges (leave it out)")
    if bridge is None or "model" in found or any(key in found for key in PLAIN):
        members["model"] = read_model(reading, found, keys, PLAIN_NAME, ANY_MODEL)
    else:
        members["model"] = None
    take_serial(members, found)
    complete(reading, members, found, keys)
    return members


def own_fields(found: Found) -> Fields:
    """The fields that need no more than their keys."""
    return {
        HARDWARE[key].field: value for key, value in found.items() if key in HARDWARE and HARDWARE[key].field
    }


def take_serial(members: Fields, found: Found) -> None:
    """Leave the serial number to the model of a plain function. A bridge without a captured configuration
    space has it from its own model."""
    model = members["model"]
    if model is not None and issubclass(model, PlainDevice) and ("bridge" not in found or "config" in found):
        members.pop("serial", None)


def read_model(
    reading: Reading, found: Found, keys: Keys, default: str, known: Mapping[str, type[PciDevice]]
) -> type[PciDevice]:
    """The model of a function, ``default`` unless it is named."""
    named = found.get("model", default)
    if named == REPLAY_NAME:
        return replay(reading, found, keys, keys[-1])
    check_not_replay(reading, found, keys)
    if named == PLAIN_NAME:
        if "bridge" in found and "config" not in found:
            found = {key: found[key] for key in found if key != "serial"}
        return plain(reading, found, keys)
    _check_not_plain(reading, {key: found[key] for key in found if key not in IDS}, keys)
    return with_ids(reading.model(named, known, (*keys, "model")), read_ids(found))


def read_ids(found: Found) -> dict[str, int]:
    """The ids that a model gets from a table."""
    return {PLAIN[key].field: found[key] for key in IDS if key in found}


def complete(reading: Reading, members: Fields, found: Found, keys: Keys) -> None:
    """Add the fields that depend on the model: options, and virtual functions."""
    model = members["model"]
    before = len(reading.mistakes.lines)
    if "options" in found:
        members["options"], members["texts"] = read_options(reading, found["options"], model, keys)
    if model is not None:
        texts = members.get("texts", {})
        with reading.noted():
            reading.validate(model, members.get("memory", 0), members.get("options", {}), keys, texts)
    are_options_wrong = len(reading.mistakes.lines) > before
    if "mac" in found and "net" not in found:
        reading.note((*keys, "mac"), "is that of an interface (name it with net)")
    if "net" in found and "driver" not in found:
        reading.note((*keys, "net"), "is what a host driver registers (name it with driver)")
    if "vfs" in found:
        members["vf"] = _virtual(reading, found, model, keys)
    elif "vf" in found:
        reading.note((*keys, "vf"), "describes virtual functions, of which it has none (give vfs)")
    if are_options_wrong:
        raise Mistake


def read_options(
    reading: Reading, table: Mapping[str, int | str], model: type[PciDevice] | None, keys: Keys
) -> tuple[dict[str, int], dict[str, str]]:
    """The options of a model that are numbers, and those that are texts. A text that is a path begins at the
    file that it is written in."""
    numbers = {key: value for key, value in table.items() if isinstance(value, int)}
    texts = {key: value for key, value in table.items() if isinstance(value, str)}
    for key, value in list(texts.items()):
        option = None if model is None else model.TEXTS.get(key)
        if option is None:
            has = ", ".join(model.TEXTS) if model is not None and model.TEXTS else "none"
            why = f"{value!r} for option {key!r} is a text (options that are: {has})"
            reading.note((*keys, "options"), why)
            del texts[key]
        elif option.path and value:
            texts[key] = os.path.join(reading.folder((*keys, "options", key)).absolute(), value)
    return numbers, texts


def check_vfs(reading: Reading, spec: FunctionSpec, keys: Keys) -> None:
    """Whether the function can have such virtual functions. Its places are checked with those of all."""
    if spec.vf is None:
        return
    if (spec.vf.memory or 0) > spec.memory:
        why = f"is more than the parent's {spec.memory} bytes (give less)"
        reading.fail((*keys, "vf_memory"), why)
    try:
        layout = VfLayout(spec, FIRST_OFFSET, reading.aperture)
    except ValueError as error:
        reading.fail((*keys, "vfs"), f"{error} (change what vf says)")
    image = getattr(spec.model, "IMAGE", None)
    if image is not None:
        try:
            with_virtual_functions(image, (alternative_routing(), layout.capability()))
        except ValueError as error:
            reading.fail((*keys, "vfs"), str(error))


def _bridge(reading: Reading, found: Found, keys: Keys) -> BridgeSpec | None:
    if "bridge" not in found:
        for key in BRIDGE:
            if key in found:
                reading.note((*keys, key), "is for a bridge (say which kind with bridge)")
        return None
    if "secondary" not in found:
        reading.fail((*keys, "secondary"), "is missing (add it)")
    secondary, subordinate = found["secondary"], found.get("subordinate")
    if subordinate is not None and subordinate < secondary:
        reading.fail((*keys, "subordinate"), f"is less than secondary, {secondary:#04x} (give it or more)")
    return BridgeSpec(found["bridge"], secondary, subordinate)


def _virtual(reading: Reading, found: Found, model: type[PciDevice] | None, keys: Keys) -> VfSpec:
    """The virtual functions of a function of this model."""
    here = (*keys, "vf")
    if found["vfs"] > MAX_VFS:
        reading.fail((*keys, "vfs"), f"is more than {MAX_VFS} (give fewer)")
    table = reading.table(found.get("vf", {}), VF, here)
    for key, inner in (("vf_model", "model"), ("vf_memory", "memory")):
        if key in found and inner in table:
            reading.fail((*here, inner), f"is {key}, too (leave one out)")
    if table.get("driver") in RESERVED_DRIVERS:
        reading.fail((*here, "driver"), f"{table['driver']!r} has a meaning of its own (choose another)")
    members = fields({key: table[key] for key in table if key not in PLAIN and key != "serial"}, VF)
    members["model"] = _virtual_model(reading, found, table, model, keys)
    if "vf_memory" in found:
        members["memory"] = found["vf_memory"]
    if "options" in table:
        members["options"], members["texts"] = read_options(reading, table["options"], members["model"], here)
    if table.get("enabled", 0) > found["vfs"]:
        reading.note((*here, "enabled"), f"is more than vfs, {found['vfs']} (give it or fewer)")
    _check_indexes(reading, found["vfs"], table, here)
    return VfSpec(count=found["vfs"], **members)


def _check_indexes(reading: Reading, count: int, table: Found, keys: Keys) -> None:
    """Whether what is said of single virtual functions, or of their driver, is of some that there are."""
    high = max(table.get("failing", ()), default=0)
    if high >= count:
        reading.note((*keys, "failing"), f"{high} is no index of {count} virtual functions (leave it out)")
    if len(table.get("net", ())) > count:
        reading.note((*keys, "net"), f"has more names than the {count} virtual functions (give fewer)")
    if len(table.get("groups", ())) > count:
        reading.note((*keys, "groups"), f"has more numbers than the {count} virtual functions (give fewer)")
    if "groups" in table and table.get("group"):
        reading.note((*keys, "groups"), "is for functions in groups of their own (leave group out)")
    for key in ("failing", "net"):
        if key in table and "driver" not in table:
            reading.note((*keys, key), "is for functions with a host driver (name it with driver)")


def _virtual_model(
    reading: Reading, found: Found, table: Found, model: type[PciDevice] | None, keys: Keys
) -> type[PciDevice]:
    """The model of virtual functions: by name, or plain ones that look like the physical function, or for a
    model that is not plain the model "vgpu"."""
    where = (*keys, "vf_model") if "vf_model" in found else (*keys, "vf", "model")
    is_plain = any(key in table for key in PLAIN) or (model is not None and issubclass(model, PlainDevice))
    named: str = table.get("model") or found.get("vf_model") or (PLAIN_NAME if is_plain else "vgpu")
    if named != PLAIN_NAME:
        _check_not_plain(reading, table, (*keys, "vf"))
        return reading.model(named, MODELS, where)
    if model is None:
        raise Mistake
    return plain(reading, table, (*keys, "vf"), model.identity)


def _check_not_plain(reading: Reading, found: Found, keys: Keys) -> None:
    """Whether a function of another model has no key of plain ones."""
    wrong = [key for key in PLAIN if key in found]
    for key in wrong:
        reading.note((*keys, key), f'is for the model "{PLAIN_NAME}" (leave it out)')
    if wrong:
        raise Mistake
