# SPDX-License-Identifier: Apache-2.0
"""Lab files: the built-in lab, every key, and errors that name file, key and remedy in one line."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devmodel.lifecycle.function import PciFunction
from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.mdev import Mdev
from devmodel.lifecycle.physical import PhysicalFunction
from devmodel.lifecycle.spec import IommuSpec
from devmodel.models.gpu import PhysicalGpu, Vgpu
from devmodel.models.mtty import Mtty
from devmodel.vfio.group import Assignable
from vfsfuse.labfile.outline import outline
from vfsfuse.labfile.reader import BUILT_IN, LabFileError, load
from vfsfuse.labfile.schema import FAULT, LAB, Schema

MIB = 1 << 20
DOCS = Path(__file__).parents[2] / "docs" / "lab.md"

GPU = """
[parents."0000:01:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "16M"
types.half = { memory = "8M", description = "half" }
"""


class Quiet:
    def added(self, mdev: Mdev) -> None:
        pass

    def removed(self, mdev: Mdev) -> None:
        pass

    def changed(self, mdev: Mdev) -> None:
        pass

    def bound(self, function: PciFunction) -> None:
        pass

    def unbound(self, function: PciFunction) -> None:
        pass

    def function_added(self, function: PciFunction) -> None:
        pass

    def function_removed(self, function: PciFunction) -> None:
        pass

    def vfs_enabled(self, function: PhysicalFunction) -> None:
        pass

    def recovering(self, function: PciFunction, event: str) -> None:
        pass

    def renewed(self, device: Assignable, change: Callable[[], None]) -> None:
        change()

    def mdev_bound(self, mdev: Mdev) -> None:
        pass

    def mdev_unbound(self, mdev: Mdev) -> None:
        pass


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "my.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_built_in_lab_has_the_promised_parents_and_types() -> None:
    spec = load()
    types = {parent.name: [type_.name for type_ in parent.types] for parent in spec.parents}
    assert types == {
        "0000:86:00.0": ["vgpu-1", "vgpu-2", "vgpu-4", "vgpu-8"],
        "mtty": ["mtty-1", "mtty-2"],
        "mdpy": ["mdpy-vga", "mdpy-xga", "mdpy-hd"],
        "mbochs": ["mbochs-small", "mbochs-medium", "mbochs-large"],
    }
    gpu = spec.parents[0]
    assert (gpu.kind, gpu.driver, gpu.bdf, gpu.memory) == ("gpu", "vgpu", gpu.name, 256 * MIB)
    assert [type_.memory // MIB for type_ in gpu.types] == [256, 128, 64, 32]
    assert (spec.vendor, spec.device_mode, spec.device_uid) == ("vfsfuse", 0o600, None)


def test_the_built_in_lab_can_be_made_with_the_kernels_counts() -> None:
    lab = Lab(load(), Quiet())
    available = {
        type_.name: type_.available_instances
        for parent in lab.parents.values()
        for type_ in parent.types.values()
    }
    assert available == {
        "vgpu-1": 1,
        "vgpu-2": 2,
        "vgpu-4": 4,
        "vgpu-8": 8,
        "mtty-1": 24,
        "mtty-2": 12,
        "mdpy-vga": 4,
        "mdpy-xga": 4,
        "mdpy-hd": 4,
        "mbochs-small": 64,
        "mbochs-medium": 16,
        "mbochs-large": 4,
    }
    lab.close()


def test_every_key_arrives_where_it_belongs(write: Callable[[str], Path]) -> None:
    spec = load(
        write(
            """
            vendor = "acme"
            [mount]
            cache = 0
            cdevs = false
            container = "iommufd"
            groups = false
            device_owner = "root"
            device_group = 0
            device_mode = "0666"
            [iommu]
            dirty_tracking = false
            page_requests = true
            hw_info = "intel-vtd"
            [parents.card]
            kind = "virtual"
            driver = "serial"
            model = "mtty"
            memory = 4096
            slots = 3
            [parents.card.types.a]
            description = "A"
            pretty_name = "An A"
            memory = "4 KiB"
            slots = 2
            instances = 9
            model = "mtty"
            options = { ports = 2 }
            """
        )
    )
    assert (spec.vendor, spec.cache, spec.device_uid, spec.device_gid, spec.device_mode) == (
        "acme",
        0.0,
        0,
        0,
        0o666,
    )
    assert spec.iommufd_container and not spec.cdevs and not spec.groups
    assert spec.iommu == IommuSpec(dirty_tracking=False, vtd_info=True, page_requests=True)
    (card,) = spec.parents
    assert (card.name, card.kind, card.driver, card.types[0].model, card.bdf) == (
        "card",
        "virtual",
        "serial",
        Mtty,
        None,
    )
    assert (card.memory, card.slots) == (4096, 3)
    (only,) = card.types
    assert (only.name, only.description, only.pretty_name, only.model) == ("a", "A", "An A", Mtty)
    assert (only.memory, only.slots, only.instances, only.options) == (4096, 2, 9, {"ports": 2})


def test_defaults_follow_the_kind(write: Callable[[str], Path]) -> None:
    spec = load(write(GPU))
    assert spec.iommu == IommuSpec(dirty_tracking=True, vtd_info=False, page_requests=False)
    (parent,) = spec.parents
    assert parent.function is not None and parent.function.model is PhysicalGpu
    assert (parent.bdf, parent.types[0].model) == ("0000:01:00.0", Vgpu)


@pytest.mark.parametrize(
    ("value", "size"), [("16M", 16 * MIB), ("16384K", 16 * MIB), ("16 MiB", 16 * MIB), (16777216, 16 * MIB)]
)
def test_sizes(write: Callable[[str], Path], value: object, size: int) -> None:
    text = GPU.replace('"16M"', repr(value).replace("'", '"'))
    assert load(write(text)).parents[0].memory == size


CARD = '[parents.card]\nkind = "virtual"\ndriver = "mtty"\n'
TYPES = 'slots = 1\ntypes.a = { description = "A" }\n'
PORT = CARD + 'slots = 2\n[parents.card.types.a]\ndescription = "A"\n'
GPU_PATH = 'parents."0000:01:00.0"'


@pytest.mark.parametrize(
    ("text", "path", "why"),
    [
        ("", "the file", "has no functions"),
        ("parents = 3", "parents", "not a table"),
        (GPU + "[mounts]\n", "mounts", "did you mean 'mount'?"),
        (
            "flavour = 1\n" + GPU,
            "flavour",
            "known are include, vendor, models, mount, ",
        ),
        ('vendor = "a/b"\n' + GPU, "vendor", "cannot be a name"),
        ('vendor = "vgpu_start"\n' + GPU, "vendor", "is a file of"),
        (GPU + "[mount]\ncache = -1\n", "mount.cache", "not a time"),
        (GPU + "[mount]\ncache = true\n", "mount.cache", "not a time"),
        (GPU + "[mount]\ncache = nan\n", "mount.cache", "not a time"),
        (GPU + "[mount]\ncdevs = 0\n", "mount.cdevs", "neither true nor false"),
        (GPU + '[mount]\ngroups = "no"\n', "mount.groups", "neither true nor false"),
        (GPU + "[mount]\ndevice_mode = 600\n", "mount.device_mode", "octal digits in quotes"),
        (GPU + '[mount]\ndevice_mode = "0999"\n', "mount.device_mode", "octal digits in quotes"),
        (GPU + '[mount]\ndevice_owner = "no-such-user-here"\n', "mount.device_owner", "there is no user"),
        (GPU + '[mount]\ndevice_group = "no-such-group-here"\n', "mount.device_group", "there is no group"),
        (GPU + "[mount]\ndevice_owner = -1\n", "mount.device_owner", "not an id"),
        (GPU + "[mount]\ndevice_owner = true\n", "mount.device_owner", "not a whole number"),
        (GPU + "[iommu]\ndirty_tracking = 1\n", "iommu.dirty_tracking", "neither true nor false"),
        (GPU + "[iommu]\npage_requests = 1\n", "iommu.page_requests", "neither true nor false"),
        (GPU + "[mount]\ncontainer = true\n", "mount.container", 'neither "vfio" nor "iommufd"'),
        (GPU + '[mount]\ncontainer = "type1"\n', "mount.container", 'neither "vfio" nor "iommufd"'),
        (GPU + "[iommu]\nhw_info = true\n", "iommu.hw_info", 'neither "none" nor "intel-vtd"'),
        (GPU + "[iommu]\nhw_info = []\n", "iommu.hw_info", 'neither "none" nor "intel-vtd"'),
        (GPU + "[iommu]\npasid = true\n", "iommu.pasid", "known are dirty_tracking, page_requests, hw_info"),
        (GPU.replace('"gpu"', '"pci"'), f"{GPU_PATH}.kind", "not a kind of parent"),
        (GPU.replace('kind = "gpu"\n', ""), f"{GPU_PATH}.kind", "is missing"),
        (GPU.replace('"vgpu"', '"vfio-pci"'), f"{GPU_PATH}.driver", "a meaning of its own"),
        (
            CARD.replace('"mtty"', '"vgpu"\nmodel = "mtty"') + TYPES,
            "parents.card.driver",
            "a meaning of its own",
        ),
        (GPU.replace("0000:01:00.0", "card0"), "parents.card0", "PCI address"),
        (GPU.replace("0000:01:00.0", "0000:01:00.9"), 'parents."0000:01:00.9"', "PCI address"),
        (CARD.replace("card", '"a b"') + TYPES, 'parents."a b"', "cannot name a parent"),
        (GPU.replace('"16M"', '"16Q"'), f"{GPU_PATH}.memory", "not a whole number"),
        (GPU.replace('"16M"', '"16T"'), f"{GPU_PATH}.memory", "out of range"),
        (GPU.replace('"16M"', "0"), GPU_PATH, "video memory"),
        (GPU + 'model = "vgpu"\n', f"{GPU_PATH}.model", "there is no model 'vgpu' (there is gpu)"),
        (GPU + "options = { heads = 2 }\n", GPU_PATH, "no option 'heads'"),
        (GPU.replace('"8M"', '"32M"'), f"{GPU_PATH}.types.half.memory", "more than the parent's"),
        (GPU.replace('"8M"', "3000000"), f"{GPU_PATH}.types.half", "in units of 64K"),
        (GPU.replace("half =", '"a:b" ='), f'{GPU_PATH}.types."a:b"', "cannot name a type"),
        (GPU.replace("half =", '"a\\nb" ='), f'{GPU_PATH}.types."a\\nb"', "cannot name a type"),
        (
            GPU.replace('description = "half"', 'description = "a\\nb"'),
            f"{GPU_PATH}.types.half.description",
            "line",
        ),
        (GPU.replace(', description = "half"', ""), f"{GPU_PATH}.types.half.description", "is missing"),
        (CARD + "types = {}\n", "parents.card.types", "is empty"),
        (CARD + "options = { a = 1 }\n" + TYPES, "parents.card.options", "give them to its types"),
        (CARD.replace('"mtty"', '"tty"') + TYPES, "parents.card.model", "there is no model 'tty'"),
        (CARD + 'types.a = { description = "A" }\n', "parents.card.types.a", "nothing bounds it"),
        (GPU + "numa_node = 1024\n", f"{GPU_PATH}.numa_node", "out of range"),
        (GPU + "numa_node = -2\n", f"{GPU_PATH}.numa_node", "out of range"),
        (GPU + 'numa_node = "0"\n', f"{GPU_PATH}.numa_node", "not a whole number"),
        (CARD + "numa_node = 0\n" + TYPES, "parents.card.numa_node", 'only a "gpu"'),
        (PORT + "slots = 3\n", "parents.card.types.a.slots", "more than the parent's 2"),
        (PORT + "instances = 0\n", "parents.card.types.a.instances", "out of range"),
        (PORT + "options = { ports = 3 }\n", "parents.card.types.a", "not in 1 to 2"),
        (PORT + 'options = { ports = "2" }\n', "parents.card.types.a.options", "for option 'ports'"),
        (PORT + "memroy = 1\n", "parents.card.types.a.memroy", "did you mean 'memory'?"),
    ],
)
def test_errors_are_one_line_with_file_key_and_why(
    write: Callable[[str], Path], text: str, path: str, why: str
) -> None:
    source = write(text)
    with pytest.raises(LabFileError) as caught:
        load(source)
    message = str(caught.value)
    assert message.startswith(f"{source}: {path}: ")
    assert why in message
    assert "\n" not in message and re.search(r"\(.+\)$", message)


def test_all_errors_of_a_file_are_found_at_once(write: Callable[[str], Path]) -> None:
    source = write(
        """
        vendor = "a/b"
        flavour = 1
        [models]
        own = "none.py:Card"
        [mount]
        cache = -1
        device_mode = 600
        [iommu]
        hw_info = 3
        [parents."0000:01:00.0"]
        memory = "16M"
        [parents.a]
        kind = "virtual"
        model = "own"
        iommu = false
        driver = "net"
        types.one = { weight = 0 }
        types.two = { description = "two", options = { weight = 1 }, weight = 2 }
        [parents."b c"]
        kind = "virtual"
        driver = "mtty"
        memory = "1M"
        types.half = { memory = "2M", description = "half" }
        types.none = { description = "none" }
        """
    )
    with pytest.raises(LabFileError) as caught:
        load(source)
    expected = [
        ("vendor", "'a/b' cannot be a name"),
        ("flavour", "there is no such key"),
        ("models.own", "there is no file"),
        ("mount.cache", "-1 is not a time"),
        ("mount.device_mode", "600 is not a mode"),
        ("iommu.hw_info", "3 is neither"),
        (f"{GPU_PATH}.kind", "is missing"),
        (f"{GPU_PATH}.driver", "is missing"),
        (f"{GPU_PATH}.types", "is missing"),
        ("parents.a.driver", "'net' has a meaning of its own"),
        ("parents.a.iommu", 'only a "gpu"'),
        ("parents.a.types.one.weight", "0 is out of range"),
        ("parents.a.types.one.description", "is missing"),
        ("parents.a.types.two.weight", "is among the options, too"),
        ('parents."b c"', "cannot name a parent"),
        ('parents."b c".types.half.memory', "is more than the parent's"),
        ('parents."b c".types.none', "nothing bounds it"),
    ]
    found = list(caught.value.lines)
    assert str(caught.value) == "\n".join(found)
    assert [line.removeprefix(f"{source}: ").partition(": ")[0] for line in found] == [
        key for key, _ in expected
    ]
    assert not [line for line, (_, why) in zip(found, expected, strict=True) if why not in line]


def test_a_file_full_of_errors_shows_a_hundred(write: Callable[[str], Path]) -> None:
    source = write("parents = {}\n" + "".join(f"k{number} = 1\n" for number in range(150)))
    with pytest.raises(LabFileError) as caught:
        load(source)
    assert len(caught.value.lines) == 101
    assert caught.value.lines[-1] == f"{source}: has 50 more errors (mend these first)"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[functions.0000:01:00.0]", "not TOML"),
        (b"vendor = ", "are in quotes"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a = 1\na = 2", "not TOML"),
    ],
)
def test_what_is_not_toml_says_so(tmp_path: Path, content: bytes, why: str) -> None:
    source = tmp_path / "my.toml"
    source.write_bytes(content)
    with pytest.raises(LabFileError) as caught:
        load(source)
    assert str(caught.value).startswith(f"{source}: ") and why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(LabFileError, match=r"No such file or directory \(check the path\)"):
        load(os.fspath(tmp_path / "none.toml"))
    with pytest.raises(LabFileError, match="Is a directory"):
        load(tmp_path)


def schemas(top: Schema) -> Iterator[Schema]:
    """A table's schema, and those of all tables in it."""
    yield top
    for key in top.values():
        for below in filter(None, (key.table, key.each)):
            yield from schemas(below)


def test_every_key_is_documented() -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    documented = {key for row in rows for key in re.findall(r"\w+", row)}
    tables = {"mount", "iommu", "units", "nodes", "roots", "functions", "parents", "types", "vgpus"}
    tables |= {"modules", "iommufd", "vfio", "vfio_iommu_type1", "vfio_pci", "nvidia", "faults"}
    own = {key for schema in schemas(LAB) if schema is not FAULT for key in schema}  # FAULT: docs/faults.md
    assert own - tables <= documented


def test_the_examples_in_the_documentation_load(write: Callable[[str], Path]) -> None:
    """The first one is a whole lab, the others are parts of one."""
    whole, *parts = re.findall(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    spec = load(write(whole))
    assert len(spec.parents) == 2
    for part in parts:
        assert load(write(whole + part)) != spec
    assert BUILT_IN.name in DOCS.read_text(encoding="utf-8")


def test_the_outline_in_the_documentation_is_that_of_its_example(write: Callable[[str], Path]) -> None:
    text = DOCS.read_text(encoding="utf-8")
    shown = re.search(r"    \$ vfsfuse check my.toml\n((?:    .*\n)+)", text)
    example = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert shown is not None and example is not None
    assert list(outline(load(write(example[1])))) == [line[4:] for line in shown[1].splitlines()]
