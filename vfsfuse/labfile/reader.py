# SPDX-License-Identifier: Apache-2.0
"""Lab files: TOML to :class:`LabSpec`. An error names the file, the key, the reason and a remedy.

State: none; called once, before a lab is made. The built-in lab is ``lab.toml`` beside this module;
docs/lab.md documents every key.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from devmodel.device.pci import PciDevice
from devmodel.lifecycle.resources import Resolution, resolution_options
from devmodel.lifecycle.rootport import place_ports
from devmodel.lifecycle.spec import PATH_NAME, IommuSpec, LabSpec, ParentSpec, TypeSpec
from devmodel.lifecycle.vf import FIRST_OFFSET, MAX_VFS, VfLayout, place_vfs
from devmodel.models.registry import MODELS, PHYSICAL
from devmodel.pci.address import PciAddress
from devmodel.pci.config import Aperture
from vfsfuse.labfile import values
from vfsfuse.labfile.models import Models
from vfsfuse.labfile.reasons import reason
from vfsfuse.labfile.schema import IOMMU, LAB, MOUNT, PARENT, TYPE, Schema

BUILT_IN = Path(__file__).with_name("lab.toml")
KINDS = ("gpu", "virtual")
RESERVED_VENDORS = ("vgpu_start", "vgpu_shutdown")
"""Files of sys/class/vgpu. The vendor's directory lies beside them, and must have another name."""

RESERVED_DRIVERS = ("iommu", "mdev_bus", "net", "pci_bus", "pcieport", "vfio", "vfio-dev", "vfio-pci")
"""Directories of sys/class, and the PCI driver vfio-pci. A host driver must have another name."""

VF_KEYS = ("vfs", "vf_model", "vf_memory")
"""Keys of a parent that describe its virtual functions."""

MAX_BYTES = 16 << 20
"""Bytes that are read of a lab file, so that a device such as /dev/zero comes to an end."""

MAX_DEPTH = 32
"""Tables and arrays within one another; a lab needs six."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


class LabFileError(Exception):
    """The lab file cannot be used. The text is one line: "file: key.path: reason (remedy)"."""


def load(path: str | os.PathLike[str] | None = None) -> LabSpec:
    """Read the lab file at ``path``, or the built-in one. Raises :class:`LabFileError`."""
    source = BUILT_IN if path is None else Path(path)
    return _Reader(source).lab(_parse(source))


def _parse(source: Path) -> dict[str, object]:
    try:
        return tomllib.loads(_text(source))
    except OSError as error:
        raise LabFileError(f"{source}: cannot be read: {error.strerror} (check the path)") from error
    except UnicodeDecodeError as error:
        raise LabFileError(
            f"{source}: is not UTF-8 text (byte {error.start}) (is it a TOML file?)"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise LabFileError(f"{source}: not TOML: {error} (mend the syntax there)") from error
    except RecursionError as error:
        raise LabFileError(f"{source}: too many brackets in one another (write it flat)") from error
    except ValueError as error:  # a number of more digits than Python reads
        raise LabFileError(f"{source}: a value that cannot be: {error} (give a smaller number)") from error


def _text(source: Path) -> str:
    with source.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise LabFileError(f"{source}: is larger than {MAX_BYTES} bytes (is it a TOML file?)")
    return content.decode().replace("\r\n", "\n")


class _Reader:
    """Reads the tables of one file. ``path`` arguments are tuples of keys, for the errors."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.models = Models(source.parent)
        self.aperture = Aperture()

    def lab(self, content: dict[str, object]) -> LabSpec:
        self.check_sizes(content)
        top = self.table(content, LAB, ())
        if top.get("vendor") in RESERVED_VENDORS:
            self.fail(("vendor",), f"{top['vendor']!r} is a file of sys/class/vgpu (choose another)")
        for name, place in top.pop("models", {}).items():
            self.value(partial(self.own_model, name), place, ("models", name))
        mount = self.table(top.pop("mount", {}), MOUNT, ("mount",))
        iommu = self.table(top.pop("iommu", {}), IOMMU, ("iommu",))
        parents = top.pop("parents")
        specs = tuple(self.parent_spec(name, table, ("parents", name)) for name, table in parents.items())
        try:
            place_ports(specs, place_vfs(specs))
        except ValueError as error:
            self.fail(("parents",), f"{error} (give fewer, or another address)")
        settings = {**self.fields(top, LAB), **self.fields(mount, MOUNT)}
        return LabSpec(parents=specs, iommu=IommuSpec(**self.fields(iommu, IOMMU)), **settings)

    def check_sizes(self, content: object) -> None:
        """Refuse what cannot be shown in an error: numbers of thousands of digits, and endless nesting."""
        left: list[tuple[int, tuple[str, ...], object]] = [(0, (), content)]
        while left:
            depth, path, value = left.pop()
            if depth > MAX_DEPTH:
                self.fail(path[:MAX_DEPTH], f"is nested more than {MAX_DEPTH} deep (write it flat)")
            if isinstance(value, int) and not -(2**63) <= value < 2**63:  # as TOML says
                self.fail(path, "does not fit in 64 bits (give a smaller number)")
            tables = value if isinstance(value, dict) else {}
            arrays = value if isinstance(value, list) else []
            left += [(depth + 1, (*path, key), inside) for key, inside in tables.items()]
            left += [(depth + 1, path, inside) for inside in arrays]

    def own_model(self, name: str, place: object) -> None:
        self.models.add(name, values.text(place))

    def parent_spec(self, name: str, content: object, path: tuple[str, ...]) -> ParentSpec:
        found = self.table(content, PARENT, path)
        self.check_parent_name(name, found["kind"], path)
        is_gpu = found["kind"] == "gpu"
        if found["driver"] in RESERVED_DRIVERS or (found["driver"] == "vgpu" and not is_gpu):
            self.fail((*path, "driver"), f"{found['driver']!r} has a meaning of its own (choose another)")
        known = PHYSICAL if is_gpu else MODELS
        named = found.get("model", "gpu" if is_gpu else found["driver"])
        found["model"] = self.model(named, known, (*path, "model"))
        if is_gpu:
            self.validate(found, path)
        elif not found.get("iommu", True):
            self.fail((*path, "iommu"), 'only a "gpu" is behind an IOMMU or not (leave the key out)')
        elif "numa_node" in found:
            self.fail((*path, "numa_node"), 'only a "gpu" is near to a node (leave the key out)')
        elif "options" in found:
            self.fail((*path, "options"), 'a parent of kind "virtual" has none (give them to its types)')
        self.find_vf_model(found, is_gpu, path)
        type_model = MODELS["vgpu"] if is_gpu else found["model"]
        tables = found.pop("types")
        types = tuple(self.type_spec(key, tables[key], (*path, "types", key), type_model) for key in tables)
        spec = ParentSpec(name=name, types=types, bdf=name if is_gpu else None, **self.fields(found, PARENT))
        self.check_limits(spec, path)
        self.check_vfs(spec, path)
        return spec

    def find_vf_model(self, found: dict[str, Any], is_gpu: bool, path: tuple[str, ...]) -> None:
        """Replace the name of the virtual functions' model by the model."""
        for key in VF_KEYS:
            if key in found and not (is_gpu and "vfs" in found):
                self.fail((*path, key), 'is for a "gpu" with "vfs" (give it those, or leave the key out)')
        if "vfs" in found:
            named = found.get("vf_model", "vgpu")
            found["vf_model"] = self.model(named, MODELS, (*path, "vf_model"))

    def check_vfs(self, parent: ParentSpec, path: tuple[str, ...]) -> None:
        if parent.vfs > MAX_VFS:
            self.fail((*path, "vfs"), f"is more than {MAX_VFS} (give fewer)")
        if parent.vf_memory > parent.memory:
            self.fail((*path, "vf_memory"), f"is more than the parent's {parent.memory} bytes (give less)")
        try:
            if parent.vfs:
                VfLayout(parent, FIRST_OFFSET, self.aperture)
        except ValueError as error:
            self.fail((*path, "vfs"), f"{error} (see vf_model and vf_memory)")

    def type_spec(
        self, name: str, content: object, path: tuple[str, ...], model: type[PciDevice]
    ) -> TypeSpec:
        if PATH_NAME.fullmatch(name) is None:
            self.fail(path, f"cannot name a type ({values.NAME_HINT})")
        found = self.table(content, TYPE, path)
        named = found.get("model")
        found["model"] = model if named is None else self.model(named, MODELS, (*path, "model"))
        found["options"] = self.type_options(found, path)
        self.validate(found, path)
        return TypeSpec(name=name, **self.fields(found, TYPE))

    def type_options(self, found: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, int]:
        """The options of a type's model: its table of options, and the options that have keys of their
        own."""
        options = dict(found.get("options", {}))
        for key in ("weight", "frame_rate", "max_resolution"):
            if key in found:
                value = found[key]
                meant = resolution_options(value) if isinstance(value, Resolution) else {key: value}
                if meant.keys() & options.keys():
                    self.fail((*path, key), "is among the options, too (leave one out)")
                options |= meant
        return options

    def check_parent_name(self, name: str, kind: str, path: tuple[str, ...]) -> None:
        if kind not in KINDS:
            self.fail((*path, "kind"), f'{kind!r} is not a kind of parent (give "gpu" or "virtual")')
        if kind == "gpu":
            try:
                PciAddress.parse(name)
            except ValueError:
                self.fail(path, 'the name of a "gpu" is its PCI address (such as "0000:86:00.0")')
        if kind == "virtual" and PATH_NAME.fullmatch(name) is None:
            self.fail(path, f"cannot name a parent ({values.NAME_HINT})")

    def check_limits(self, parent: ParentSpec, path: tuple[str, ...]) -> None:
        if not parent.types:
            self.fail((*path, "types"), "is empty (a parent offers at least one type)")
        for spec in parent.types:
            where = (*path, "types", spec.name)
            if spec.memory > parent.memory:
                self.fail(
                    (*where, "memory"), f"is more than the parent's {parent.memory} bytes (give it more)"
                )
            if parent.slots is not None and spec.slots > parent.slots:
                self.fail((*where, "slots"), f"is more than the parent's {parent.slots} (give it more)")
            if not spec.memory and parent.slots is None and spec.instances is None:
                self.fail(where, "nothing bounds it (give it memory or instances, or the parent slots)")

    def model(
        self, name: str, known: Mapping[str, type[PciDevice]], path: tuple[str, ...]
    ) -> type[PciDevice]:
        try:
            return self.models.find(name, known)
        except ValueError as error:
            self.fail(path, str(error))

    def validate(self, found: Mapping[str, Any], path: tuple[str, ...]) -> None:
        """Have the model check its memory and options, because only the model knows them."""
        model: type[PciDevice] = found["model"]
        try:
            model.validate(found.get("memory", 0), found.get("options", {}))
        except ValueError as error:
            self.fail(path, f"{_line(error)} (as model {model.__name__.lower()!r} needs it)")
        except BaseException as error:  # also SystemExit: the code may be anybody's
            self.fail(path, f"the model's validate() failed: {reason(error)} (mend the model)")

    def table(self, content: object, schema: Schema, path: tuple[str, ...]) -> dict[str, Any]:
        """The values of a table by key, each read as the schema says. Unknown and missing keys are errors."""
        table = self.value(values.table, content, path)
        for key in table:
            if key not in schema:
                self.fail((*path, key), f"there is no such key ({_suggest(key, schema)})")
        for key, entry in schema.items():
            if entry.required and key not in table:
                self.fail((*path, key), "is missing (add it)")
        return {key: self.value(schema[key].read, value, (*path, key)) for key, value in table.items()}

    def value(self, read: Callable[[object], Any], content: object, path: tuple[str, ...]) -> Any:
        try:
            return read(content)
        except ValueError as error:
            self.fail(path, str(error))

    def fields(self, found: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
        """The fields of a spec that a table's values fill."""
        return {schema[key].field: value for key, value in found.items() if schema[key].field}

    def fail(self, path: tuple[str, ...], why: str) -> NoReturn:
        raise LabFileError(f"{self.source}: {'.'.join(map(_quoted, path)) or 'the file'}: {why}")


def _quoted(key: str) -> str:
    """A key as TOML spells it in a dotted path."""
    return key if _BARE_KEY.fullmatch(key) else '"' + key.encode("unicode_escape").decode() + '"'


def _line(error: ValueError) -> str:
    """The text of a model's error, in one line."""
    try:
        return str(error).encode("unicode_escape").decode()
    except Exception:
        return reason(error)


def _suggest(key: str, schema: Schema) -> str:
    close = difflib.get_close_matches(key, schema, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(schema)}"
