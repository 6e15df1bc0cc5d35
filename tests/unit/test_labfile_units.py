# SPDX-License-Identifier: Apache-2.0
"""IOMMU units of a lab file: which function is behind which, and scopes that cannot be."""

from __future__ import annotations

import pytest

from devmodel.lifecycle.lab import Lab
from devmodel.lifecycle.spec import LabSpec
from tests.unit.labtexts import Load, errors_of
from tests.unit.test_lab import Recorder
from vfsfuse.labfile.reader import LabFileError

MACHINE = """
roots."0000:80" = {}
functions."0000:00:02.0" = { driver = "i915" }
functions."0000:00:1c.0" = { bridge = "root-port", secondary = 0x01 }
functions."0000:01:00.0" = { bridge = "switch-upstream", secondary = 0x02 }
functions."0000:02:00.0" = { bridge = "switch-downstream", secondary = 0x03 }
functions."0000:02:01.0" = { bridge = "switch-downstream", secondary = 0x04 }
functions."0000:03:00.0" = { driver = "nvme", vfs = 2 }
functions."0000:04:00.{0-1}" = { driver = "ice" }
functions."0000:81:00.0" = { driver = "ice" }
functions."0000:83:00.0" = { driver = "ice", iommu = false }
"""
PORT_81, PORT_83 = "0000:80:01.0", "0000:80:02.0"


def behind(spec: LabSpec) -> dict[str, list[str]]:
    """The functions behind each unit, and those behind none under an empty name."""
    recorder = Recorder()
    recorder.lab = lab = Lab(spec, recorder)
    found: dict[str, list[str]] = {unit.name: [] for unit in lab.iommu_units}
    for name, function in sorted(lab.drivers.functions.items()):
        found.setdefault("" if function.unit is None else function.unit.name, []).append(name)
    lab.close()
    return found


def test_a_unit_for_each_domain_without_any(load_text: Load) -> None:
    found = behind(load_text(MACHINE + 'functions."0001:00:05.0" = {}\n'))
    assert list(found) == ["dmar0", "dmar1", ""]
    assert found["dmar1"] == ["0001:00:05.0"] and found[""] == [PORT_83, "0000:83:00.0"]


def test_the_nearest_scope_decides(load_text: Load) -> None:
    units = """
    [iommu.units]
    dmar0 = { scope = ["0000:00:02.0"] }
    dmar1 = { scope = ["0000:80", "0000:01:00.0", "0000:04:00.0", "0000:04:00.1"] }
    dmar3 = { scope = ["0000:02:01.0"] }
    dmar2 = {}
    """
    assert behind(load_text(MACHINE + units)) == {
        "dmar0": ["0000:00:02.0"],
        "dmar1": [
            *("0000:01:00.0", "0000:02:00.0", "0000:03:00.0", "0000:04:00.0", "0000:04:00.1"),
            *(PORT_81, "0000:81:00.0"),
        ],
        "dmar3": ["0000:02:01.0"],
        "dmar2": ["0000:00:1c.0"],
        "": [PORT_83, "0000:83:00.0"],
    }


@pytest.mark.parametrize(
    ("units", "key", "why"),
    [
        (
            'a = { scope = ["0000:40"] }\nb = {}',
            "iommu.units.a.scope",
            "0000:40 is not there (name a root bus",
        ),
        (
            'a = { scope = ["0000:03"] }\nb = {}',
            "iommu.units.a.scope",
            "0000:03 is not there (name a root bus",
        ),
        ('a = { scope = ["0000:09:00.0"] }\nb = {}', "iommu.units.a.scope", "0000:09:00.0 is not there"),
        ('a = { scope = ["0000:00"] }', "iommu.units", "leave out 0000:81:00.0 and 1 more (add"),
        (
            'a = { scope = ["0000:04:00.1"] }\nb = {}',
            "iommu.units",
            "0000:04:00.0 and 0000:04:00.1 are in one IOMMU group, but behind b and a (put both behind one",
        ),
    ],
)
def test_scopes_that_cannot_be(load_text: Load, units: str, key: str, why: str) -> None:
    (line,) = errors_of(load_text, f"{MACHINE}[iommu.units]\n{units}")
    assert f": {key}: {why}" in line and line.endswith(")")


def test_a_group_is_for_functions_behind_an_iommu(load_text: Load) -> None:
    with pytest.raises(LabFileError) as caught:
        load_text('functions."0000:03:00.0" = { iommu = false, group = 3 }')
    assert 'functions."0000:03:00.0".group: is for functions behind an IOMMU (leave out one' in str(
        caught.value
    )
