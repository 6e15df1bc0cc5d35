# SPDX-License-Identifier: Apache-2.0
"""Network interfaces on a mount: their files say and take what those of Linux do, and tools find them.

Where this machine lets a test make interfaces in a network namespace of its own, the same stores are made
there, and have to end as in the lab.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs, nic, virsh
from tests.commands import run, vfsfuse
from tests.labs import MountedLab, described
from tests.nic import CARD, LATE, enable, function, interfaces
from tests.tool import Tool, need
from tests.vfio.client import fails

NAME = "enp101s0f0"
SHOWN = {
    "addr_assign_type": "0",
    "addr_len": "6",
    "address": "52:54:00:ff:ff:ff",
    "broadcast": "ff:ff:ff:ff:ff:ff",
    "carrier": "1",
    "carrier_changes": "2",
    "carrier_down_count": "1",
    "carrier_up_count": "1",
    "dev_id": "0x0",
    "dev_port": "0",
    "dormant": "0",
    "duplex": "full",
    "flags": "0x1003",
    "gro_flush_timeout": "0",
    "ifalias": "",
    "link_mode": "0",
    "mtu": "1500",
    "name_assign_type": "4",
    "napi_defer_hard_irqs": "0",
    "netdev_group": "0",
    "operstate": "up",
    "phys_port_id": "EOPNOTSUPP",
    "phys_port_name": "EOPNOTSUPP",
    "phys_switch_id": "EOPNOTSUPP",
    "proto_down": "0",
    "speed": "25000",
    "testing": "0",
    "threaded": "0",
    "tx_queue_len": "1000",
    "type": "1",
}
LOOPBACK = {
    **SHOWN,
    "address": "00:00:00:00:00:00",
    "broadcast": "00:00:00:00:00:00",
    "carrier_changes": "0",
    "carrier_down_count": "0",
    "carrier_up_count": "0",
    "duplex": "EINVAL",
    "flags": "0x9",
    "ifindex": "1",
    "iflink": "1",
    "mtu": "65536",
    "name_assign_type": "2",
    "operstate": "unknown",
    "speed": "EINVAL",
    "type": "772",
}
for absent in ("phys_port_id", "phys_port_name", "phys_switch_id"):
    del LOOPBACK[absent]
DOWN = dict.fromkeys(("carrier", "dormant", "duplex", "speed", "testing"), "EINVAL") | {"operstate": "down"}
NUMBERS = ("ifindex", "iflink", "uevent")
STORES = [
    *(("mtu", text) for text in ("1400", "68", "9000", "67", "0", "-1", "x", "70000", "4294967296", "0x5dc")),
    *(("mtu", text) for text in ("18446744073709551616", " 1400", "1500")),
    *(("flags", text) for text in ("0x1003", "0x1002", "4099", "0", "x", "-1", "0xffffffff", "0x1003")),
    *(("carrier", text) for text in ("1", "0", "x")),
    *(("tx_queue_len", text) for text in ("5", "-1", "4294967295", "4294967296", "x", "1000")),
    *(("gro_flush_timeout", text) for text in ("5", "-1", "4294967296", "18446744073709551616", "x", "0")),
    *(("napi_defer_hard_irqs", text) for text in ("5", "-1", "2147483647", "2147483648", "x", "0")),
    *(("netdev_group", text) for text in ("5", "-1", "4294967301", "18446744073709551616", "x", "0")),
    *(("threaded", text) for text in ("0", "1", "2", "x")),
    *(("proto_down", text) for text in ("0", "1", "2", "x")),
    *(("ifalias", text) for text in ("to the rack", "a" * 255, "b" * 256, "c" * 255 + "\n", "\n")),
]
"""Files, and what is written to them one after the other."""
PROGRAM = """
import errno, json, os, sys
for name, text in json.loads(sys.argv[2]):
    fd = os.open(f"{sys.argv[1]}/{name}", os.O_WRONLY)
    try:
        os.write(fd, text.encode())
        end = "ok"
    except OSError as error:
        end = errno.errorcode[error.errno]
    os.close(fd)
    try:
        with open(f"{sys.argv[1]}/{name}") as file:
            said = file.read().strip()
    except OSError as error:
        said = errno.errorcode[error.errno]
    print(json.dumps([name, text, end, said]))
"""
IN_A_NAMESPACE = """
set -e
mount -t sysfs none "$1"
ip link add d0 type veth peer name d1
ip link set d1 up
"$2" -c "$3" "$1/class/net/d0" "$4"
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("nics"), nic.LAB) as made:
        yield made


def at(lab: MountedLab, name: str) -> Path:
    return lab.path / "sys/class/net" / name


def said(own: Path) -> dict[str, str]:
    """What the files of an interface say, or the errno of a read."""
    texts = {}
    for each in sorted(own.iterdir()):
        if each.is_file():
            try:
                texts[each.name] = each.read_text().strip()
            except OSError as error:
                texts[each.name] = errno.errorcode[error.errno or 0].replace("ENOTSUP", "EOPNOTSUPP")
    return texts


# ---- files ----


def test_what_an_interface_says(lab: MountedLab) -> None:
    found = said(at(lab, NAME))
    index = found["ifindex"]
    assert found == SHOWN | {
        "ifindex": index,
        "iflink": index,
        "uevent": f"INTERFACE={NAME}\nIFINDEX={index}",
    }
    assert int(index) > 1000
    own = function(lab, CARD).resolve() / "net" / NAME
    assert at(lab, NAME).resolve() == own and (own / "device").resolve() == own.parent.parent
    assert os.readlink(own / "device") == "../../../0000:65:00.0"
    assert (own / "subsystem").resolve() == lab.path / "sys/class/net"


def test_what_the_loopback_says(lab: MountedLab) -> None:
    assert said(at(lab, "lo")) == LOOPBACK | {"uevent": "INTERFACE=lo\nIFINDEX=1"}
    assert at(lab, "lo").resolve() == lab.path / "sys/devices/virtual/net/lo"
    assert not (at(lab, "lo") / "device").exists()


OF_ITS_TIME = {"name_assign_type", "phys_port_id", "phys_port_name", "phys_switch_id"}
"""Files of a loopback that differ among versions of Linux."""


@pytest.mark.parametrize("name", [NAME, "lo"])
def test_it_says_what_the_machines_says(lab: MountedLab, name: str) -> None:
    """The files of the machine's loopback have the same modes, and the loopback says the same."""
    real, own = Path("/sys/class/net/lo"), at(lab, name)
    if not real.exists():
        pytest.skip("the machine shows no loopback in /sys/class/net")
    theirs, ours = modes(real), modes(own)
    if needs.linux() == (6, 18):  # others have more or fewer
        assert theirs.keys() <= ours.keys() and len(theirs) > 25
    both = theirs.keys() & ours.keys() - OF_ITS_TIME
    assert {each: ours[each] for each in both} == {each: theirs[each] for each in both}
    assert set(os.listdir(real / "statistics")) == set(os.listdir(own / "statistics"))
    said_there, said_here = said(real), said(own)
    if name == "lo" and said_there["mtu"] == "65536":  # nobody has changed it
        assert {each: said_here[each] for each in both} == {each: said_there[each] for each in both}


def modes(own: Path) -> dict[str, int]:
    return {each.name: each.stat().st_mode for each in own.iterdir() if each.is_file()}


def test_nothing_has_passed(lab: MountedLab) -> None:
    counters = {each.name: each.read_text() for each in (at(lab, NAME) / "statistics").iterdir()}
    assert set(counters.values()) == {"0\n"} and len(counters) == 24


def test_addresses_follow_those_of_the_lab_file(lab: MountedLab) -> None:
    addresses = {name: (at(lab, name) / "address").read_text().strip() for name in interfaces(lab)}
    assert addresses == {
        "lo": "00:00:00:00:00:00",
        NAME: "52:54:00:ff:ff:ff",
        "ens1": "02:00:00:67:00:00",
        "ens2": "02:00:00:67:00:01",
        "eth9": "02:00:00:68:00:00",
    }
    assert [(at(lab, name) / "dev_port").read_text() for name in ("ens1", "ens2")] == ["0\n", "1\n"]


# ---- stores ----


def made_in(command: list[str]) -> list[list[str]]:
    """The stores, how each ended, and what the file said afterwards."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_stores_end_as_in_linux(lab: MountedLab, tmp_path: Path) -> None:
    """The machine's interface has another largest MTU, and its link depends on its peer."""
    ours = made_in([sys.executable, "-c", PROGRAM, str(at(lab, "eth9")), json.dumps(STORES)])
    ends = {(name, text): end for name, text, end, _ in ours}
    assert (
        ends["mtu", "67"]
        == ends["mtu", "70000"]
        == ends["flags", "x"]
        == ends["ifalias", "b" * 256]
        == "EINVAL"
    )
    assert ends["tx_queue_len", "4294967296"] == ends["mtu", "18446744073709551616"] == "ERANGE"
    assert ends["threaded", "1"] == ends["proto_down", "1"] == ends["carrier", "1"] == "ENOTSUP"
    assert said(at(lab, "eth9"))["flags"] == "0x1003"
    need("ip", "iproute2")
    if os.geteuid() or not needs.has_capability("CAP_SYS_ADMIN"):
        pytest.skip("an interface of the machine is made by root")
    (tmp_path / "sys").mkdir()
    shell = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", IN_A_NAMESPACE, "sh"]
    arguments = [str(tmp_path / "sys"), sys.executable, PROGRAM, json.dumps(STORES)]
    tried = run([*shell, arguments[0], "true", "", ""])
    if tried.returncode:
        pytest.skip(f"this machine makes no interfaces of type veth: {tried.stderr.strip()}")
    theirs = made_in([*shell, *arguments])
    assert len(ours) == len(theirs) == len(STORES)
    assert [each for each in ours if each[0] != "carrier"] == [
        each for each in theirs if each[0] != "carrier"
    ]
    assert [each[2] for each in ours] == [each[2] for each in theirs]


def test_an_interface_goes_down_and_up(lab: MountedLab) -> None:
    own = at(lab, "ens2")
    (own / "flags").write_text("0x1002")
    assert {name: text for name, text in said(own).items() if name in DOWN} == DOWN
    assert said(own)["carrier_changes"] == "3" and said(own)["carrier_down_count"] == "2"
    (own / "flags").write_text("0x1003")
    assert {name: text for name, text in said(own).items() if name not in NUMBERS} == SHOWN | {
        "address": "02:00:00:67:00:01",
        "carrier_changes": "4",
        "carrier_down_count": "2",
        "carrier_up_count": "2",
        "dev_port": "1",
    }


# ---- who looks for interfaces ----


def test_a_run_shows_those_of_the_lab(lab: MountedLab) -> None:
    shown = Tool(lab, "sh").quiet(
        "-c", "ls /sys/class/net; cat /sys/class/net/*/ifindex; ls /sys/devices/virtual/net"
    )
    names, numbers = shown.split()[:5], shown.split()[5:10]
    assert names == sorted(interfaces(lab)) and shown.split()[10:] == ["lo"]
    assert len(set(numbers)) == 5
    enable(lab, 1)
    assert "enp101s0f0v0" in Tool(lab, "ls").quiet("/sys/class/net").split()
    enable(lab, 0)


def test_a_run_in_a_lab_without_shows_those_of_the_machine(tmp_path: Path) -> None:
    with described(tmp_path, '[functions."0000:01:00.0"]\n') as own:
        assert os.listdir(own.path / "sys/class/net") == []
        assert sorted(Tool(own, "ls").quiet("/sys/class/net").split()) == sorted(os.listdir("/sys/class/net"))


def test_a_lab_whose_interfaces_are_all_gone_shows_none_of_the_machine(tmp_path: Path) -> None:
    text = '[functions."0000:01:00.0"]\ndriver = "nic"\nnet = "eth7"\n'
    with described(tmp_path, text) as own:
        (function(own, "0000:01:00.0") / "driver/unbind").write_text("0000:01:00.0")
        assert Tool(own, "ls").quiet("/sys/class/net") == "lo\n"


def test_systemd_gives_them_the_same_names(lab: MountedLab) -> None:
    """udevd's net_id names an interface by what sysfs says of it, and of its physical function."""
    need("udevadm", "udev")
    vfs = enable(lab, 2)
    try:
        names = {
            name: path_name(lab, name) for name in (NAME, *(os.listdir(vf / "net")[0] for vf in vfs), "ens2")
        }
    finally:
        enable(lab, 0)
    single = {
        name: found.replace("s0f0", "s0") for name, found in names.items()
    }  # older: no f0 for one function
    wanted = {NAME: "enp101s0", f"{NAME}v0": "enp101s0v0", f"{NAME}v1": "enp101s0v1", "ens2": "enp103s0d1"}
    assert single == wanted


def path_name(lab: MountedLab, name: str) -> str:
    done = Tool(lab, "udevadm").run("test-builtin", "net_id", f"/sys/class/net/{name}")
    lines = (done.stdout + done.stderr).splitlines()
    return next(line.split("=")[1] for line in lines if line.startswith("ID_NET_NAME_PATH="))


def test_udevadm_and_lstopo_find_them(lab: MountedLab) -> None:
    need("udevadm", "udev")
    told = Tool(lab, "udevadm")("info", "--query=property", f"/sys/class/net/{NAME}")
    assert f"INTERFACE={NAME}\n" in told and "SUBSYSTEM=net\n" in told
    need("lstopo-no-graphics", "hwloc-nox")
    drawn = Tool(lab, "lstopo-no-graphics")("--of", "console", "--no-collapse")
    lines = [line.strip() for line in drawn.splitlines()]
    assert lines[lines.index("PCI 65:00.0 (Ethernet)") + 1] == f'Net "{NAME}"'
    assert lines[lines.index("PCI 67:00.0 (Ethernet)") + 1 :][:2] == ['Net "ens1"', 'Net "ens2"']


DISCOVERY = """
import os, sys
DEVICES = "/sys/bus/pci/devices"

def link(path):
    return os.path.basename(os.readlink(path)) if os.path.islink(path) else ""

def names(path):
    return sorted(os.listdir(path)) if os.path.isdir(path) else []

def text(path):
    with open(path) as file:
        return file.read().strip()

pool = []
for address in sorted(os.listdir(DEVICES)):
    own = f"{DEVICES}/{address}"
    if not text(f"{own}/class").startswith("0x02"):
        continue
    if os.path.exists(f"{own}/sriov_totalvfs"):  # a physical function
        if int(text(f"{own}/sriov_numvfs")):
            continue  # it has virtual functions: those are what is handed out
    physical = link(f"{own}/physfn")
    uplink = names(f"{own}/physfn/net" if physical else f"{own}/net")
    up = all(text(f"{own}/net/{name}/operstate") == "up" for name in names(f"{own}/net"))
    try:
        switch = bool(text(f"/sys/class/net/{uplink[0]}/phys_switch_id")) if uplink else False
    except OSError:
        switch = False
    pool.append((address, text(f"{own}/vendor")[2:], text(f"{own}/device")[2:], link(f"{own}/driver"),
                 physical or address, uplink[:1], names(f"{own}/net")[:1], link(f"{own}/iommu_group") != "",
                 text(f"{own}/numa_node"), up, switch))
for each in sorted(os.listdir(DEVICES)):
    for name in sorted(os.listdir(f"{DEVICES}/{each}")):
        if name.startswith("virtfn"):
            assert os.readlink(f"{DEVICES}/{each}/{name}")[3:] in os.listdir(DEVICES)
for each in pool:
    print(*each)
"""
"""What sriov-network-device-plugin reads as it looks for devices, in the same files."""


def test_a_device_plugin_finds_what_it_hands_out(lab: MountedLab) -> None:
    vfs = enable(lab, 3)
    nic.to_vfio(lab, vfs[1])
    done = vfsfuse("run", "--mount", lab.path, "--", "/usr/bin/python3", "-c", DISCOVERY)
    enable(lab, 0)
    assert (done.returncode, done.stderr) == (0, "")
    first, second, third = (vf.name for vf in vfs)
    assert done.stdout.splitlines() == [
        f"{first} 8086 1889 iavf {CARD} ['{NAME}'] ['{NAME}v0'] True -1 True False",
        f"{second} 8086 1889 vfio-pci {CARD} ['{NAME}'] [] True -1 True False",
        f"{third} 8086 1889  {CARD} ['{NAME}'] [] True -1 True False",
        f"{LATE} 15b3 101d mlx5_core {LATE} ['ens1'] ['ens1'] True -1 True False",
    ]


def test_libvirt_finds_them_below_their_functions(lab: MountedLab, tmp_path: Path) -> None:
    vfs = enable(lab, 2)
    nic.to_vfio(lab, vfs[1])
    name, address = f"{NAME}v0", "02:00:00:65:fa:00"
    try:
        listed, card, interface = virsh.answers(
            tmp_path,
            ["--mount", str(lab.path)],
            "ask nodedev-list --cap net; ask nodedev-dumpxml pci_0000_65_00_0;"
            f" ask nodedev-dumpxml net_{name}_{address.replace(':', '_')}",
        )[:3]
    finally:
        enable(lab, 0)
    assert {each.split("_")[1] for each in listed.split()} == interfaces(lab) | {name}
    assert "<capability type='virt_functions' maxCount='8'>" in card
    assert card.count("<address domain='0x0000' bus='0x65' slot='0x1f'") == 2
    for line in (
        "<parent>pci_0000_65_1f_2</parent>",
        f"<interface>{name}</interface>",
        f"<address>{address}</address>",
        "<link speed='25000' state='up'/>",
    ):
        assert line in interface


PLUGIN = """
import os, sys

uplink, index, device = sys.argv[1:]
functions = f"/sys/class/net/{uplink}/device"
assert int(open(f"{functions}/sriov_numvfs").read()) > int(index)
address = os.path.basename(os.readlink(f"{functions}/virtfn{index}"))
assert address == device
own = f"/sys/bus/pci/devices/{device}"
assert os.listdir(f"{own}/physfn/net") == [uplink]
found = [int(name[6:]) for name in os.listdir(f"{own}/physfn/") if name.startswith("virtfn")
         and os.path.basename(os.readlink(f"{own}/physfn/{name}")) == device]
assert found == [int(index)]
driver = os.path.basename(os.readlink(f"{own}/driver"))
if driver == "vfio-pci":
    print(driver, os.path.basename(os.readlink(f"{own}/iommu_group")), os.path.exists(f"{own}/net"))
else:
    print(driver, *os.listdir(f"{own}/net"))
"""
"""What sriov-cni reads as it gives a virtual function to a pod, in the same files."""


def test_a_network_plugin_finds_the_function_of_an_uplink(lab: MountedLab) -> None:
    vfs = enable(lab, 2)
    group = nic.to_vfio(lab, vfs[1])
    said = [
        Tool(lab, "/usr/bin/python3").quiet("-c", PLUGIN, NAME, str(index), vf.name)
        for index, vf in enumerate(vfs)
    ]
    enable(lab, 0)
    assert said == [f"iavf {NAME}v0\n", f"vfio-pci {group} False\n"]


def test_a_directory_that_is_open_is_empty_when_the_interface_is_gone(lab: MountedLab) -> None:
    vf = enable(lab, 1)[0]
    net, own = os.open(vf / "net", os.O_RDONLY), os.open(vf / f"net/{NAME}v0", os.O_RDONLY)
    address = os.open(vf / f"net/{NAME}v0/address", os.O_RDONLY)
    try:
        enable(lab, 0)
        assert os.listdir(net) == os.listdir(own) == []
        fails(errno.ENODEV, os.read, address, 64)
        fails(errno.ENOENT, os.open, f"{NAME}v0", os.O_RDONLY, dir_fd=net)
        fails(errno.ENOENT, os.open, "mtu", os.O_RDONLY, dir_fd=own)
    finally:
        for fd in (net, own, address):
            os.close(fd)
