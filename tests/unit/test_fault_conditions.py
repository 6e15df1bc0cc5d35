# SPDX-License-Identifier: Apache-2.0
"""The files that fault rules wait for."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from tests.unit.faultcalls import (
    actions,
    hit,
    ioctl,
    lab,
    rules,
)
from tests.waiting import settled, wait_for
from vfsfuse.faults import conditions
from vfsfuse.faults.rule import Rule, RuleError, parse_line
from vfsfuse.faults.rules import FaultRules

__all__ = ["actions", "lab", "rules"]


def test_a_file_is_found_by_all_ways_to_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").touch()
    (tmp_path / "link").symlink_to("folder/../folder")
    (tmp_path / "whole").symlink_to(tmp_path / "folder/file")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "round").symlink_to("round")
    there = ("folder", "folder/", "folder/file", "folder/../folder//./file", "link/file", "whole")
    absent = ("none", "none/file", "dangling", "folder/file/none", "link/none")
    assert all(conditions.exists(f"{tmp_path}/{name}") for name in there)
    assert not any(conditions.exists(f"{tmp_path}/{name}") for name in absent)
    with pytest.raises(OSError) as caught:
        conditions.exists(f"{tmp_path}/round")
    assert caught.value.errno == errno.ELOOP
    (tmp_path / "away").symlink_to("/proc/self/status")
    for path in ("/proc/self/status", f"{tmp_path}/away", "/sys/kernel"):
        with pytest.raises(conditions.Foreign, match=r" is on a file system of type (proc|sysfs)"):
            conditions.exists(path)
    assert conditions.exists("/")


def test_a_rule_waits_for_a_file(rules: FaultRules, tmp_path: Path) -> None:
    path = tmp_path / "go on"
    rules.add(Rule.of({"name": "a", "call": "any", "while": str(path), "errno": "EIO", "nth": 1}))
    call = ioctl("VFIO_DEVICE_RESET")
    assert hit(rules, call) == "" and not rules.attends(call)
    path.touch()
    wait_for(lambda: rules.attends(call))
    assert hit(rules, call) == "a"
    rules.clear()
    wait_for(lambda: not any(thread.name == "fault-condition" for thread in threading.enumerate()))


def test_a_rule_that_stops_while_its_file_is_gone(rules: FaultRules, tmp_path: Path) -> None:
    path = tmp_path / "on"
    path.touch()
    rules.add(Rule.of({"name": "a", "call": "any", "while": str(path), "errno": "EIO"}))
    call = ioctl("VFIO_DEVICE_RESET")
    assert hit(rules, call) == "a"
    path.unlink()
    wait_for(lambda: not rules.attends(call))
    assert hit(rules, call) == ""


def test_a_file_comes_and_goes_in_many_ways(rules: FaultRules, tmp_path: Path) -> None:
    """Each change is noticed: on the way to the file, and through links."""
    (tmp_path / "link").symlink_to("one/two")
    rules.add(Rule.of({"name": "a", "call": "any", "while": str(tmp_path / "link/file"), "errno": "EIO"}))
    call = ioctl("VFIO_DEVICE_RESET")

    def there() -> None:
        wait_for(lambda: rules.attends(call))

    def gone() -> None:
        wait_for(lambda: not rules.attends(call))

    assert not rules.attends(call)
    (tmp_path / "one").mkdir()
    (tmp_path / "one/two").mkdir()
    (tmp_path / "one/two/file").touch()
    there()
    (tmp_path / "one").rename(tmp_path / "other")
    gone()
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "other/two")
    there()
    (tmp_path / "other/two/file").rename(tmp_path / "other/two/moved")
    gone()
    (tmp_path / "other/two/file").symlink_to("moved")
    there()
    (tmp_path / "other/two/moved").unlink()
    gone()
    (tmp_path / "other/two/moved").touch()
    there()
    (tmp_path / "other/two/file").unlink()
    (tmp_path / "other/two/file").symlink_to("/proc/self/status")
    gone()


def test_no_descriptor_is_left_behind(rules: FaultRules, tmp_path: Path) -> None:
    before = settled(lambda: len(os.listdir("/proc/self/fd")))
    for _ in range(3):
        rules.add(*(parse_line(f"call=any errno=EIO while={tmp_path}/{number}") for number in range(8)))
        with pytest.raises(RuleError):
            rules.add(
                parse_line(f"call=any errno=EIO while={tmp_path}/8"),
                parse_line("call=any errno=EIO while=/proc/a"),
            )
        with pytest.raises(OSError, match="there is such a rule"):
            rules.add(*[parse_line(f"name=a call=any errno=EIO while={tmp_path}/9")] * 2)
        rules.clear()
        wait_for(lambda: len(os.listdir("/proc/self/fd")) == before)
    assert not any(thread.name == "fault-condition" for thread in threading.enumerate())


def test_sixty_four_files_are_the_most(rules: FaultRules, tmp_path: Path) -> None:
    line = "call=any errno=EIO while={}".format
    rules.add(*(parse_line(line(tmp_path / str(number))) for number in range(conditions.MOST_PATHS)))
    rules.add(parse_line(line(tmp_path / "0")))
    with pytest.raises(RuleError, match="while: rules wait for 64 files already"):
        rules.add(parse_line(line(tmp_path / "another")))
