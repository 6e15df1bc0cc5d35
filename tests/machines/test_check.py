# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse check` of the examples says what is found when they are mounted."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.commands import vfsfuse
from tests.machines.machine import EXAMPLES, driver_of, example, group_of, partition

MACHINES = sorted(path.name for path in EXAMPLES.glob("*.toml") if "catalogue" not in path.name)
FUNCTION = re.compile(
    r"^[ │├└─]*(\w{4}:\w\w:\w\w\.\w) \[\w+\] .*?(no driver|driver [\w-]+), group (\d+)", re.MULTILINE
)
GROUP = re.compile(r"^[├└]── (\d+): (.*)$", re.MULTILINE)


@pytest.mark.parametrize("name", MACHINES)
def test_functions_drivers_and_groups(tmp_path: Path, name: str) -> None:
    done = vfsfuse("check", EXAMPLES / name)
    assert (done.returncode, done.stderr) == (0, "")
    functions = {found[0]: found[1:] for found in FUNCTION.findall(done.stdout)}
    listed = done.stdout.partition("\nIOMMU groups\n")[2].partition("\nNUMA")[0]
    groups = {number: sorted(members.split(", ")) for number, members in GROUP.findall(listed)}
    with example(tmp_path, name) as lab:
        assert sorted(functions) == sorted(os.listdir(lab.path / "sys/bus/pci/devices"))
        for function, (driver, group) in functions.items():
            assert driver.removeprefix("driver ") == (driver_of(lab, function) or "no driver"), function
            assert group == group_of(lab, function), function
        assert [groups[number] for number in sorted(groups, key=int)] == partition(lab)
