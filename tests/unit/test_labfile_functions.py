# SPDX-License-Identifier: Apache-2.0
"""PCI functions in a lab file: every key arrives in its spec, patterns of addresses, and what cannot be."""

import re
import time
from pathlib import Path

import pytest

from devmodel.lifecycle.spec import (
    BridgeKind,
    BridgeSpec,
    FunctionSpec,
    RootSpec,
    SpecError,
    UnitSpec,
    VfSpec,
)
from devmodel.models.gpu import PhysicalGpu, Vgpu
from devmodel.models.mtty import Mtty
from devmodel.models.plain import PlainBar, PlainDevice, PlainSpec
from devmodel.pci.barkind import BarKind
from tests.unit.labtexts import Load, check_error, errors_of
from tests.waiting import wait_for
from vfsfuse.labfile.outline import outline
from vfsfuse.labfile.reader import LabFileError

CONFIG = bytes.fromhex("86801a89") + bytes(4) + bytes.fromhex("01000002") + bytes(244)
ROWS = "\n".join(f"{row:02x}: {CONFIG[row : row + 16].hex(' ')}" for row in range(0, 256, 16))


def plain_of(function: FunctionSpec) -> PlainSpec:
    assert function.model is not None and issubclass(function.model, PlainDevice)
    return function.model.SPEC


def test_every_key_of_a_function_arrives(load_text: Load) -> None:
    (function,) = load_text(
        """
        [functions."0000:65:00.1"]
        driver = "ice"
        memory = "4M"
        iommu = false
        numa_node = 2
        acs = true
        slot = "3"
        plugged = false
        net = ["enp1s0f0", "enp1s0f1"]
        mac = "52:54:00:12:34:56"
        vendor = 0x8086
        device = 0x1592
        subsystem_vendor = 1
        subsystem_device = 2
        class = 0x020000
        revision = 3
        interrupt_pin = 4
        rom_size = "64K"
        capabilities = ["pm", "msix:8", "express"]
        serial = "00-11-22-33-44-55-66-77"
        bars.0 = { size = "64K", kind = "mem64-prefetch", address = "0x80000000000" }
        bars.5 = { size = 128, kind = "io", address = 0x4000 }
        vfs = 8
        vf = { model = "vgpu", driver = "iavf", memory = "1M", options = { vectors = 2 }, offset = 16, \
stride = 2, group = "physical", delay = 1.5, failing = [2, 3], net = "eth0", \
enabled = 4, revision = 9 }
        """.replace('model = "vgpu", ', "").replace(", options = { vectors = 2 }", "")
    ).functions
    assert (function.address, function.name, function.driver) == ("0000:65:00.1", "0000:65:00.1", "ice")
    assert (function.memory, function.iommu, function.numa_node) == (4 << 20, False, 2)
    assert (function.acs, function.slot, function.plugged) == (True, "3", False)
    assert (function.net, function.mac) == (("enp1s0f0", "enp1s0f1"), bytes.fromhex("525400123456"))
    assert (function.bridge, function.parent) == (None, None)
    assert plain_of(function) == PlainSpec(
        0x8086,
        0x1592,
        1,
        2,
        0x020000,
        3,
        4,
        (
            PlainBar(0, 64 << 10, BarKind.MEM64_PREFETCH, 0x80000000000),
            PlainBar(5, 128, BarKind.IO, 0x4000),
        ),
        rom_size=64 << 10,
        capabilities=("pm", "msix:8", "express"),
        serial=0x0011223344556677,
    )
    vf = function.vf
    assert vf is not None
    assert (vf.count, vf.driver, vf.memory, vf.offset, vf.stride) == (8, "iavf", 1 << 20, 16, 2)
    assert (vf.shares_group, vf.delay, vf.failing, vf.net) == (True, 1.5, frozenset({2, 3}), ("eth0",))
    assert (vf.enabled, vf.model.identity.revision) == (4, 9)
    assert (vf.model.identity.vendor, vf.model.identity.device) == (0x8086, 0x1592)


def test_what_is_left_out(load_text: Load) -> None:
    (function,) = load_text('[functions."0000:65:00.0"]').functions
    assert plain_of(function) == PlainSpec()
    assert function == FunctionSpec("0000:65:00.0", function.model)


def test_virtual_functions_look_like_their_function_unless_they_have_a_model(load_text: Load) -> None:
    text = '[functions."0000:65:00.0"]\nvfs = 2\ncapabilities = ["express"]\n'
    (plain,) = load_text(text + "vf = { device = 7, bars = { 0 = { size = 4096 } } }").functions
    assert plain.vf is not None and issubclass(plain.vf.model, PlainDevice)
    assert PlainSpec(device=7, bars=(PlainBar(0, 4096),)) == plain.vf.model.SPEC
    gpu = '[functions."0000:65:00.0"]\nvfs = 2\nmodel = "gpu"\nmemory = "16M"\ndriver = "card"\n'
    (of_a_gpu,) = load_text(gpu).functions
    assert of_a_gpu == FunctionSpec("0000:65:00.0", PhysicalGpu, "card", 16 << 20, vf=VfSpec(2, Vgpu))
    (named,) = load_text(gpu + 'vf = { model = "vgpu", options = { vectors = 2 } }').functions
    assert named.vf == VfSpec(2, Vgpu, options={"vectors": 2})


def test_any_model_may_be_a_function(load_text: Load) -> None:
    (function,) = load_text('[functions."0000:65:00.0"]\nmodel = "mtty"\noptions = { ports = 2 }').functions
    assert function == FunctionSpec("0000:65:00.0", Mtty, options={"ports": 2})


def test_a_bridge(load_text: Load) -> None:
    port, switch = load_text(
        """
        functions."0000:00:1c.0" = { bridge = "root-port", secondary = 0x65, \
serial = "00-11-22-33-44-55-66-77" }
        functions."0000:65:00.0" = { bridge = "pci", secondary = 0x66, subordinate = 0x6f, \
vendor = 1, serial = "00-00-00-00-00-00-00-01" }
        """
    ).functions
    assert (port.driver, switch.driver) == ("pcieport", None)
    assert (port.serial, switch.serial) == (0x0011223344556677, 1)
    assert plain_of(switch).serial is None
    assert port.bridge == BridgeSpec(BridgeKind.ROOT_PORT, 0x65) and port.model is None
    assert switch.bridge == BridgeSpec(BridgeKind.PCI, 0x66, 0x6F) and plain_of(switch).vendor == 1


def test_root_buses_and_iommu_units(load_text: Load) -> None:
    lab = load_text(
        """
        functions."0000:00:02.0" = {}
        [roots]
        "0000:80" = { numa_node = 1 }
        "0001:00" = {}
        [iommu.units]
        dmar0 = { scope = ["0000:80", "0000:00:02.0"] }
        dmar1 = {}
        [parents]
        """
    )
    assert lab.roots == (RootSpec("0000:80", 1), RootSpec("0001:00"))
    assert lab.units == (UnitSpec("dmar0", ("0000:80", "0000:00:02.0")), UnitSpec("dmar1"))


def test_a_parent_has_the_keys_of_a_function(load_text: Load) -> None:
    (parent,) = load_text(
        """
        [parents."0000:65:00.0"]
        kind = "gpu"
        driver = "card"
        memory = "16M"
        group = 4
        slot = 2
        net = "ib0"
        vfs = 2
        vf = { driver = "card", delay = 1 }
        options = { vectors = 2 }
        types.a = { memory = "8M", description = "A" }
        """
    ).parents
    assert (parent.kind, parent.bdf, parent.memory, parent.driver) == ("gpu", parent.name, 16 << 20, "card")
    assert parent.function == FunctionSpec(
        "0000:65:00.0",
        PhysicalGpu,
        "card",
        16 << 20,
        {"vectors": 2},
        group=4,
        slot="2",
        net=("ib0",),
        vf=VfSpec(2, Vgpu, driver="card", delay=1),
        parent=parent,
    )


TEXTS = """
from devmodel.sdk import Identity, PciDevice
from devmodel.device.options import Option, TextOption
class Card(PciDevice):
    identity = Identity(1, 2, 3, 4, 0)
    OPTIONS = {"ports": Option(1, 1, 2)}
    TEXTS = {"disk": TextOption(path=True), "label": TextOption(pattern="[a-z]+", hint="write abc")}
"""


def test_options_are_numbers_and_texts_and_paths_begin_at_the_file(load_text: Load, tmp_path: Path) -> None:
    (tmp_path / "card.py").write_text(TEXTS)
    top = '[models]\ncard = "card.py:Card"\n[functions."0000:65:00.0"]\nmodel = "card"\n'
    (function,) = load_text(top + 'options = { ports = 2, disk = "a/b.img", label = "abc" }').functions
    assert function.options == {"ports": 2}
    assert function.texts == {"disk": str(tmp_path / "a/b.img"), "label": "abc"}
    for wrong, why in (
        ('label = "ABC"', "option 'label' cannot be 'ABC' (write abc)"),
        ('other = "abc"', "'abc' for option 'other' is a text (options that are: disk, label)"),
        ("label = 3", "no option 'label'"),
        ('label = "A", ports = 9, other = "a"', "option 'label' cannot be 'A'"),
        ('label = "A", ports = 9, other = "a"', "option 'ports' is 9, not in 1 to 2"),
        ('label = "A", ports = 9, other = "a"', "'a' for option 'other' is a text"),
    ):
        with pytest.raises(LabFileError) as caught:
            load_text(top + f"options = {{ {wrong} }}")
        assert why in str(caught.value)


# ---- contents ----


@pytest.mark.parametrize("content", [CONFIG, ("65:00.0 A card\n" + ROWS).encode(), ROWS.encode()])
def test_a_config_space_is_a_file(load_text: Load, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config").write_bytes(content)
    (function,) = load_text('[functions."0000:65:00.0"]\nconfig = "config"').functions
    assert plain_of(function).config == CONFIG


def test_contents_are_in_the_lab_file(load_text: Load) -> None:
    (function,) = load_text(
        f"[functions.\"0000:65:00.0\"]\nconfig = '''\n{ROWS}\n'''\nrom = '''\n00: 55 aa\n10: 01\n'''"
    ).functions
    assert (plain_of(function).config, plain_of(function).rom) == (
        CONFIG,
        b"\x55\xaa".ljust(16, b"\0") + b"\1",
    )


@pytest.mark.parametrize("row", ['"00: 55 aa"', '"""\n00: 55 aa"""', '"""\n00: 55 aa\n"""', '"\\n55 aa"'])
def test_one_row_is_content(load_text: Load, row: str) -> None:
    (function,) = load_text(f'[functions."0000:65:00.0"]\nrom = {row}').functions
    assert plain_of(function).rom == b"\x55\xaa"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            "55 aa",
            "55 aa cannot be read: No such file or directory (write the offset of a row, as in 00: 55 aa)",
        ),
        ("none", "none cannot be read: No such file or directory (paths begin at the lab file)"),
        (".", "cannot be read: Is a directory"),
        ("a\\u0000b", "cannot be a path"),
        ("00: 12 34\\n03: 56", "no row can begin at 0x3 there (sort the rows)"),
        ("00: 12\\nno row", 'line 2 is no row such as "10: 04 00" (take it out)'),
        ("short", 'short: has no row such as "00: 86 80 ..."'),
    ],
)
def test_contents_that_cannot_be(load_text: Load, tmp_path: Path, config: str, why: str) -> None:
    (tmp_path / "short").write_text("nothing")
    with pytest.raises(LabFileError) as caught:
        load_text(f'[functions."0000:65:00.0"]\nconfig = "{config}"')
    assert 'functions."0000:65:00.0".config: ' in str(caught.value) and why in str(caught.value)


def test_all_contents_that_cannot_be_are_told(load_text: Load) -> None:
    with pytest.raises(LabFileError) as caught:
        load_text('[functions."0000:65:00.0"]\nrom = "none"\nconfig = "none"\nvpd = "none"')
    keys = [line.partition(f"{HERE}.")[2].partition(": ")[0] for line in caught.value.lines]
    assert keys == ["rom", "vpd", "config"]


# ---- patterns ----


def test_a_pattern_stands_for_many_functions(load_text: Load) -> None:
    functions = load_text(
        """
        [functions."0000:41:00.0"]
        [functions."{0000-0001}:40:{0e-11}.{0-1}"]
        vendor = 1
        """
    ).functions
    assert [each.address for each in functions] == [
        "0000:41:00.0",
        *(
            f"000{domain}:40:{device:02x}.{n}"
            for domain in (0, 1)
            for device in range(14, 18)
            for n in (0, 1)
        ),
    ]
    assert len({each.model for each in functions[1:]}) == 1


def test_the_table_for_the_fewest_addresses_wins(load_text: Load) -> None:
    functions = load_text(
        """
        [functions."0000:40:00.1"]
        device = 3
        bars.0.size = 4096
        [functions."0000:40:00.{0-2}"]
        vendor = 1
        device = 1
        bars.2.size = 8192
        [functions."0000:40:00.{1-2}"]
        device = 2
        driver = "two"
        """
    ).functions
    found = {
        each.address[-1]: (plain_of(each).vendor, plain_of(each).device, each.driver) for each in functions
    }
    assert found == {"1": (1, 3, "two"), "0": (1, 1, None), "2": (1, 2, "two")}
    assert plain_of(functions[0]).bars == (PlainBar(2, 8192), PlainBar(0, 4096))


def test_ten_thousand_functions_are_read_quickly(load_text: Load) -> None:
    """What TOML itself takes is more.  It takes long on a busy machine, but not each time."""

    def seconds(text: str, count: int) -> float:
        start = time.process_time()
        assert len(load_text(text).functions) == count
        return time.process_time() - start

    pattern = '[functions."0000:{40-67}:{00-1f}.{0-7}"]\nvendor = 1\nnuma_node = 0'
    wait_for(lambda: seconds(pattern, 10240) < 1)
    rows = "".join(
        f'[functions."0000:{0x40 + (n >> 8):02x}:{n >> 3 & 31:02x}.{n & 7}"]\nvendor = 1\n'
        for n in range(10000)
    )
    wait_for(lambda: seconds(rows, 10000) < 2)


def test_patterns_have_an_end(load_text: Load) -> None:
    pattern = '[functions."{domain:04x}:{{00-ff}}:{{00-1f}}.{{0-7}}"]\n'
    with pytest.raises(LabFileError, match="comes to more than 262144 addresses") as caught:
        load_text("".join(pattern.format(domain=domain) for domain in range(100)))
    assert len(caught.value.lines) == 1


# ---- what cannot be ----

HERE = 'functions."0000:65:00.0"'


@pytest.mark.parametrize(
    ("keys", "key", "why"),
    [
        (
            "vendor = 0x10000",
            "vendor",
            "65536 is out of range (an id of 16 bits, such as 0x10de: give 0 to 0xffff)",
        ),
        ('vendor = "8086"', "vendor", "'8086' is not a whole number (an id of 16 bits"),
        ("class = 0x1000000", "class", "is out of range"),
        ("interrupt_pin = 5", "interrupt_pin", "give 0 to 4"),
        ('kind = "gpu"', "kind", "there is no such key"),
        ('model = "none"', "model", "there is no model 'none' (there is gpu, vgpu, "),
        ('model = "gpu"\nrom_size = "4K"', "rom_size", 'is for the model "plain" (leave it out)'),
        ('model = "gpu"', "", "video memory"),
        ('driver = "vfio-pci"', "driver", "a meaning of its own"),
        ('driver = "pcieport"', "driver", "a meaning of its own"),
        ("bars = 3", "bars", "not a table"),
        ("bars.6.size = 4096", "bars.6", "there is no such BAR (give 0 to 5)"),
        ("bars.0 = {}", "bars.0.size", "is missing"),
        ('bars.0 = { size = 4096, kind = "mem16" }', "bars.0.kind", "is not a kind of BAR (give one of"),
        ('bars.0 = { size = 4096, address = "e000" }', "bars.0.address", "is not a whole number (an address"),
        ("bars.0 = { size = 4096, address = -1 }", "bars.0.address", "is not an address"),
        ("bars.0.size = 5000", "bars.0.size", "5000 is not a power of two"),
        ('bars.0.size = "3K"', "bars.0.size", "'3K' is not a power of two"),
        ("bars.0.size = 8", "", "not a power of two of 16"),
        ('serial = "1234"', "serial", "is not a serial number"),
        ('capabilities = "pm"', "capabilities", "is not an array of words"),
        ('capabilities = ["pn"]', "capabilities", "'pn' is no capability"),
        ('capabilities = ["msi:3"]', "capabilities", "MSI cannot have 3 vectors"),
        ('capabilities = ["aer"]', "", 'add "express"'),
        ('mac = "52:54"', "mac", "is not an Ethernet address"),
        ('mac = "53:54:00:12:34:56"', "mac", "is the address of no single interface"),
        ('mac = "00:00:00:00:00:00"', "mac", "is the address of no single interface"),
        ('mac = "52:54:00:12:34:56"', "mac", "is that of an interface (name it with net)"),
        ('net = "a name"', "net", "is not the name of an interface"),
        ('net = ["a", "a"]', "net", "has a name twice"),
        ("group = true", "group", "is not a whole number (nor a name)"),
        ("group = -1", "group", "is not the number of a group"),
        ('slot = "x"', "slot", "is not the number of a slot"),
        ("slot = 8192", "slot", "is not the number of a slot"),
        ('bridge = "port"', "bridge", "is not a kind of bridge (give one of"),
        ('bridge = "root-port"', "secondary", "is missing (add it)"),
        ("secondary = 3", "secondary", "is for a bridge"),
        ('bridge = "pci"\nsecondary = 9\nsubordinate = 8', "subordinate", "is less than secondary, 0x09"),
        ('bridge = "pci"\nsecondary = 256', "secondary", "is out of range"),
        ('bridge = "pci"\nsecondary = 9\nvfs = 1', "vfs", "is for functions that are no bridges"),
        ("vf = {}", "vf", "describes virtual functions, of which it has none (give vfs)"),
        ('net = "eth0"', "net", "is what a host driver registers (name it with driver)"),
        ('driver = "nic"\nnet = "lo"', "net", "'lo' is an interface of the machine itself, too"),
        ("vfs = 1025", "vfs", "is more than 1024"),
        ('vfs = 1\nvf.group = "other"', "vf.group", 'neither "own" nor "physical"'),
        ("vfs = 1\nvf.enabled = 2", "vf.enabled", "is more than vfs, 1 (give it or fewer)"),
        ("vfs = 1\nvf.groups = 1", "vf.groups", "is not an array of numbers"),
        ("vfs = 1\nvf.groups = [-1]", "vf.groups", "is not the number of a group"),
        ("vfs = 1\nvf.groups = [1, 2]", "vf.groups", "has more numbers than the 1 virtual functions"),
        ('vfs = 1\nvf = { group = "physical", groups = [1] }', "vf.groups", "in groups of their own"),
        ("vfs = 1\nvf.failing = 1", "vf.failing", "is not an array of numbers"),
        ("vfs = 1\nvf.failing = [1024]", "vf.failing", "is not the index of a virtual function"),
        ('vfs = 1\nvf = { driver = "a", failing = [1] }', "vf.failing", "1 is no index of 1 virtual"),
        ("vfs = 1\nvf.failing = [0]", "vf.failing", "is for functions with a host driver"),
        ('vfs = 1\nvf.net = "a"', "vf.net", "is for functions with a host driver (name it with driver)"),
        ('vfs = 1\nvf = { driver = "a", net = ["a", "b"] }', "vf.net", "has more names than the 1 virtual"),
        ("vfs = 1\nvf.vectors = 8", "vfs", "vectors are shared out among functions with MSI-X"),
        ("vfs = 1\nvf.vectors = 0", "vf.vectors", "is out of range"),
        (
            'driver = "a"\nnet = "a_name_of_15chr"\nvfs = 1\nvf.driver = "a"',
            "vf.net",
            "'a_name_of_15chrv0' of a virtual function is longer than 15 characters (give names)",
        ),
        (
            'driver = "a"\nnet = ["a", "av1"]\nvfs = 2\nvf.driver = "a"',
            "vf.net",
            "'av1' is an interface of 0000:65:00.0, too",
        ),
        ('vfs = 1\nvf.driver = "vfio-pci"', "vf.driver", "a meaning of its own"),
        ('vfs = 1\nvf = { model = "vgpu", device = 1 }', "vf.device", 'is for the model "plain"'),
        ("vfs = 1\nvf.stride = 0", "vf.stride", "is out of range (routing ids: give 1 to"),
        ('vfs = 1\nvf.model = "vgpu"', "vfs", "vendor"),
        ("numa_node = 1024", "numa_node", "out of range"),
        ("absent = true", "absent", "takes nothing away: no included file has it (check the name)"),
    ],
)
def test_errors_of_a_function(load_text: Load, keys: str, key: str, why: str) -> None:
    (line,) = errors_of(load_text, f'[functions."0000:65:00.0"]\n{keys}')
    assert f": {HERE}.{key}: " in line if key else f": {HERE}: " in line
    assert why in line and line.endswith(")")


def test_errors_in_all_tables_of_a_function_are_found_at_once(load_text: Load) -> None:
    with pytest.raises(LabFileError) as caught:
        load_text(
            """
            [functions."0000:65:00.0"]
            flavour = 1
            vendor = -1
            capabilities = ["bla"]
            bars = { 0 = { size = "3K" }, 1 = { kind = "io" }, 7 = { size = 16 } }
            vfs = 2
            vf = { offset = 0, bars.0.size = 3 }
            """
        )
    assert [line.partition(f"{HERE}.")[2].partition(": ")[0] for line in caught.value.lines] == [
        "flavour",
        "vendor",
        "capabilities",
        "bars.0.size",
        "bars.1.size",
        "bars.7",
        "vf.offset",
        "vf.bars.0.size",
    ]


def test_bridges_that_cannot_be_are_errors_of_one_of_them(load_text: Load) -> None:
    port = 'functions."0000:00:0{}.0" = {{ bridge = "root-port", secondary = 0x01 }}\n'
    (line,) = errors_of(load_text, port.format(1) + port.format(2))
    assert line.partition("/my.toml: ")[2] == (
        'functions."0000:00:01.0": bus 01 is below two bridges, 0000:00:01.0 and 0000:00:02.0 '
        "(give one of them another secondary)"
    )


def test_bars_without_room_are_errors_of_their_function(load_text: Load) -> None:
    lab = load_text('[functions."0000:65:{00-0f}.0"]\nbars.0.size = "1G"\n')
    with pytest.raises(SpecError) as caught:
        list(outline(lab))
    assert re.fullmatch(
        rf'{lab.source}: functions."0000:65:0\w.0": no room at 0x\w+ for 1 BARs of 1073741824 bytes '
        r'\(make it smaller, or its kind "mem64"\)',
        str(caught.value),
    )


@pytest.mark.parametrize(
    ("text", "key", "why"),
    [
        (
            'functions."65:00.0" = {}',
            'functions."65:00.0"',
            "'65:00.0' is not a PCI address (write \"0000:65:00.0\")",
        ),
        ('functions."0000:0A:00.0" = {}', 'functions."0000:0A:00.0"', '(write "0000:0a:00.0")'),
        ('functions."0000:65:20.0" = {}', 'functions."0000:65:20.0"', '(such as "0000:86:00.0")'),
        (
            'functions."0000:65:00.{0-8}" = {}',
            'functions."0000:65:00.{0-8}"',
            "is not a pattern of addresses",
        ),
        ('functions."0000:65:{1-2}.0" = {}', 'functions."0000:65:{1-2}.0"', "is not a pattern of addresses"),
        ('functions."0000:65:{1f-00}.0" = {}', 'functions."0000:65:{1f-00}.0"', "the lower one first"),
        (
            'functions."{0000-0001}:{00-ff}:{00-1f}.{0-7}" = {}',
            'functions."{0000-0001}:{00-ff}:{00-1f}.{0-7}"',
            "stands for more than 65536 addresses",
        ),
        ('roots."0000:00:01" = {}', 'roots."0000:00:01"', "is no root bus"),
        ('roots."0000:80".numa_node = -2', 'roots."0000:80".numa_node', "out of range"),
        ('iommu.units."a b" = {}', 'iommu.units."a b"', "cannot name an IOMMU unit"),
        (
            "iommu.units = { a = {}, b = {} }",
            "iommu.units.b.scope",
            "takes all functions that are left, as a does",
        ),
        ("iommu.units.a.scope = []", "iommu.units.a.scope", "is not a scope"),
        ('iommu.units.a.scope = ["80"]', "iommu.units.a.scope", "neither a root bus"),
        (
            'iommu.units = { a = { scope = ["0000:80"] }, b = { scope = ["0000:80"] } }',
            "iommu.units.b.scope",
            "0000:80 is behind a, too",
        ),
        (
            'functions = { "0000:01:00.0" = { driver = "d", net = "a" }, '
            '"0000:02:00.0" = { driver = "d", net = "a" } }',
            'functions."0000:02:00.0".net',
            "'a' is an interface of 0000:01:00.0, too",
        ),
        (
            'nodes.0 = { cpus = "0", memory = "1G" }\nfunctions."0000:01:00.0".numa_node = 3\n'
            'roots."0000:80".numa_node = 4',
            'functions."0000:01:00.0".numa_node',
            "there is no node 3 (add [nodes.3])",
        ),
        ("nodes.0.absent = true", "nodes.0.absent", "takes nothing away"),
        ('roots."0000:80".absent = true', 'roots."0000:80".absent', "takes nothing away"),
    ],
)
def test_errors_of_a_machine(load_text: Load, text: str, key: str, why: str) -> None:
    check_error(load_text, "parents = {}\n" + text, key, why)


def test_a_parent_is_no_function_twice(load_text: Load) -> None:
    gpu = '[parents."0000:01:00.0"]\nkind = "gpu"\ndriver = "a"\nmemory = "2M"\n'
    types = 'types.a = { memory = "1M", description = "A" }\n'
    with pytest.raises(LabFileError, match=r'functions\."0000:01:00\.0": is a parent, too'):
        load_text(gpu + types + '[functions."0000:01:00.0"]')
    with pytest.raises(LabFileError, match=r"vf\.memory: is vf_memory, too"):
        load_text(gpu + 'vfs = 1\nvf_memory = "1M"\nvf.memory = "1M"\n' + types)
    with pytest.raises(LabFileError, match=r"parents\.card\.slot: is for a"):
        load_text('[parents.card]\nkind = "virtual"\ndriver = "mtty"\nslots = 1\nslot = 3\n' + types[:-1])
