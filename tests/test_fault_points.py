# SPDX-License-Identifier: Apache-2.0
"""Fault rules, by the product of where, when and what: each thing that can happen, and each way to choose
calls, at each point of the dialogue.  What cannot happen at a point is refused.

The rules come while the files and devices are open that the calls are made on.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faultpoints import (
    FUNCTION,
    GET,
    LAB,
    POINTS,
    REFUSED,
    SET,
    SETS,
    WRITTEN,
    Point,
    Setting,
    prepared,
)
from tests.faultrules import aside
from tests.labs import MountedLab, described
from tests.vfio.devices import ERR, TRIGGER, eventfd, signals
from tests.waiting import wait_for
from vfsfuse.faults.counting import chosen
from vfsfuse.faults.keys import ACTIONS, CALLS, EFFECTS, KEYS, OF_VFS

MakePoint = Callable[[Setting], Point]
VALUES = {"errno": "ENODATA", "delay": "0.01", "value": "0x5", "flip": "0x1", "error": "nonfatal"}
OF_CALLS = tuple(what for what in EFFECTS if what not in OF_VFS)
OF_WRITES = ("duplicate",)
NOT_OF_PINS = ("value", "flip", "drop", "duplicate")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("points"), LAB) as mounted:
        yield mounted


@pytest.fixture
def own(lab: MountedLab) -> Iterator[Setting]:
    with prepared(lab) as made:
        yield made


def fits(point: Point, what: str) -> bool:
    """Whether there is such a rule, by the table of keys."""
    if what in OF_WRITES and point.reads and "read" in point.where:
        return False
    if what in NOT_OF_PINS and "dma=pin" in point.where:
        return False
    return not KEYS[what].fits or point.key in KEYS[what].fits


def made_by(point: Point) -> int:
    """Make the call; its errno."""
    try:
        point.call()
    except OSError as error:
        return error.errno or 0
    return 0


def rule_of(point: Point, what: str, *more: str) -> str:
    on = [f"device={point.on}"] if what in ACTIONS and point.on and "device=" not in point.where else []
    return " ".join(("name=rule", point.where, *on, f"{what}={VALUES.get(what, 'true')}", *more))


def test_each_kind_of_call_has_a_point(lab: MountedLab) -> None:
    found = set()
    for make in POINTS:
        with prepared(lab) as own:
            found.add(make(own).key)
    assert found == set(CALLS)


# ---- where and what ----


@pytest.mark.parametrize("what", OF_CALLS)
@pytest.mark.parametrize("make", POINTS, ids=lambda make: make.__name__)
def test_what_happens_where(own: Setting, make: MakePoint, what: str) -> None:
    point = make(own)
    assert made_by(point) == 0
    wait_for(lambda: point.made() == 1)
    if not fits(point, what):
        with pytest.raises(OSError, match=f"^.*{what}: .* \\(.*\\)") as refused:
            own.faults.write(f"add {rule_of(point, what)}\n")
        assert refused.value.errno == errno.EINVAL and own.faults.list() == []
        return
    EXPECTED[what](own, point)
    own.faults.write("clear")
    if what != "remove":
        assert made_by(point) == 0
        wait_for(lambda: point.made() == 1)


def _errno(own: Setting, point: Point) -> None:
    with own.faults.hold(rule_of(point, "errno")):
        found = made_by(point)
        assert found == REFUSED if point.told else found != 0
        assert point.made() == 0 and own.faults.said().startswith("1 hit")


def _delay(own: Setting, point: Point) -> None:
    with own.faults.hold(rule_of(point, "delay")):
        assert made_by(point) == 0
        wait_for(lambda: point.made() == 1)
        assert own.faults.said().startswith("1 hit")


def _hang(own: Setting, point: Point) -> None:
    with own.faults.hold(rule_of(point, "hang")), aside(point.call) as call:
        wait_for(lambda: own.faults.said().endswith("1 held"))
        assert point.made() == int(point.debt)
        own.faults.write("release")
        call.result(20)
        wait_for(lambda: point.made() == 1)


def _value(own: Setting, point: Point) -> None:
    assert point.data is not None
    with own.faults.hold(rule_of(point, "value")):
        assert made_by(point) == 0
        assert point.data() == 5


def _flip(own: Setting, point: Point) -> None:
    assert made_by(point) == 0
    before = 0 if point.data is None else point.data()
    with own.faults.hold(rule_of(point, "flip")):
        assert made_by(point) == 0
        assert point.made() == 1
        assert point.data is None or point.data() == before ^ 1


def _drop(own: Setting, point: Point) -> None:
    with own.faults.hold(rule_of(point, "drop")):
        assert made_by(point) == 0
        wait_for(lambda: own.faults.said().startswith("1 hit"))
        assert point.made() == 0
        if point.reads and point.data is not None:
            assert point.data() == 0


def _duplicate(own: Setting, point: Point) -> None:
    with own.faults.hold(rule_of(point, "duplicate")):
        assert made_by(point) == 0
        assert own.faults.said().startswith("1 hit") or point.key == "interrupt"
        if point.key in ("register", "region", "interrupt") and "config" not in point.where:
            wait_for(lambda: point.made() == 2)
        else:
            wait_for(lambda: point.made() == 1)


def _remove(own: Setting, point: Point) -> None:
    victim = own.function if _is_of_function(point) else own.lab.mdevs / _victim(own, point)
    with own.faults.hold(rule_of(point, "remove", "times=1")):
        with suppress(OSError):
            point.call()
        wait_for(lambda: not victim.exists())


def _reset(own: Setting, point: Point) -> None:
    own.write(SET, WRITTEN)
    with own.faults.hold(rule_of(point, "reset", "times=1")):
        with suppress(OSError):
            point.call()
        wait_for(lambda: own.faults.said().startswith("1 hit"))
        if not _is_of_function(point) and _victim(own, point) == own.vgpu.name:
            wait_for(lambda: own.read(SETS) == 0)
    own.device.set_config(4, 6)
    own.write(0x10, 4096, 8)


def _error(own: Setting, point: Point) -> None:
    with eventfd() as event:
        own.device.eventfds(ERR, TRIGGER, 0, event)
        with own.faults.hold(rule_of(point, "error", "times=1")):
            with suppress(OSError):
                point.call()
            wait_for(lambda: own.faults.said().startswith("1 hit"))
            if not _is_of_function(point) and _victim(own, point) == own.vgpu.name:
                assert signals(event) == 1
        own.device.tear_down(ERR)


EXPECTED: dict[str, Callable[[Setting, Point], None]] = {
    "errno": _errno,
    "delay": _delay,
    "hang": _hang,
    "value": _value,
    "flip": _flip,
    "drop": _drop,
    "duplicate": _duplicate,
    "remove": _remove,
    "reset": _reset,
    "error": _error,
}


def _is_of_function(point: Point) -> bool:
    return FUNCTION in f"{point.where} {point.on}"


def _victim(own: Setting, point: Point) -> str:
    """The vGPU that an action of the point's rule happens to."""
    if point.key == "create":
        return point.on
    return own.other.name if own.other.name in point.where else own.vgpu.name


# ---- where and when ----

CALLED = 6
WHENS = {
    "nth=3": [3],
    "every=2": [2, 4, 6],
    "times=2": [1, 2],
    "probability=0.5 seed=3": [number for number in range(1, CALLED + 1) if chosen(3, "rule", number, 0.5)],
    "every=2 times=1": [2],
}


def hits(own: Setting, point: Point, rule: str) -> list[int]:
    """Which of some calls a rule has hit."""
    found: list[int] = []
    with own.faults.hold(rule):
        for number in range(1, CALLED + 1):
            with suppress(OSError):
                point.call()
            if is_hit(own, point, len(found)):
                found.append(number)
    return found


def is_hit(own: Setting, point: Point, before: int) -> bool:
    """Whether the last call was hit, after so many ones that were.  An interrupt may still be on its way."""

    def hit() -> bool:
        return int(own.faults.said().split()[0]) > before

    if point.key == "interrupt":
        wait_for(lambda: point.made() or hit())
    return hit()


@pytest.mark.parametrize("make", POINTS, ids=lambda make: make.__name__)
def test_when_it_happens_where(own: Setting, make: MakePoint, tmp_path: Path) -> None:
    point = make(own)
    what = "drop" if point.key == "interrupt" else "errno"
    for when, expected in WHENS.items():
        assert hits(own, point, rule_of(point, what, when)) == expected
    path = tmp_path / "condition"
    assert hits(own, point, rule_of(point, what, f"while={path}")) == []
    path.touch()
    assert hits(own, point, rule_of(point, what, f"while={path}")) == [*range(1, CALLED + 1)]
    with own.faults.hold(rule_of(point, what, "after=1000")):
        assert made_by(point) == 0 and own.faults.said() == "0 hits of 0 calls"
    begun = time.monotonic()
    with own.faults.hold(rule_of(point, what, "after=0.05 nth=1")):

        def hit() -> bool:
            with suppress(OSError):
                point.call()
            return own.faults.said() == "1 hit of 1 call"

        wait_for(hit)
        assert time.monotonic() >= begun + 0.05


# ---- determinism ----


def test_two_clients_of_two_labs_meet_the_same_faults(tmp_path: Path) -> None:
    """Each client meets those of its device, whatever the other one does meanwhile."""

    start = threading.Barrier(2)

    def meet(client: Setting) -> list[int]:
        start.wait()
        return [number for number in range(200) if client.read(GET) == 1]

    met: list[list[list[int]]] = []
    for number in range(2):
        (folder := tmp_path / str(number)).mkdir()
        with described(folder, LAB) as lab, prepared(lab) as one, prepared(lab) as other:
            rules = (
                f"name={name} device={client.vgpu.name} register=GET probability=0.3 seed=7 value=1"
                for name, client in (("one", one), ("other", other))
            )
            with one.faults.hold(*rules), ThreadPoolExecutor(2) as threads:
                met.append(list(threads.map(meet, (one, other))))
    assert met[0] == met[1] and met[0][0] != met[0][1]
    assert met[0][0] == [number - 1 for number in range(1, 201) if chosen(7, "one", number, 0.3)]
