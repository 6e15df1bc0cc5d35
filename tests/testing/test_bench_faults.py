# SPDX-License-Identifier: Apache-2.0
"""Fault rules of a bench: the DMA of a device fails, moves other data, is lost or comes twice."""

from __future__ import annotations

from typing import Any

import pytest

from examples.copier import COPY, DONE, FAULT, Copier
from vfsfuse.testing import Bench

IOVA = 0x10000


def copied(bench: Bench[Copier]) -> tuple[int, bytes]:
    """The status of a copy of five bytes, and what it has written."""
    bench.memory.write(IOVA, b"hello" + bytes(11))
    bench["SOURCE"], bench["TARGET"], bench["SIZE"], bench["COMMAND"] = IOVA, IOVA + 8, 5, COPY
    bench.settle()
    status, bench["STATUS"] = bench["STATUS"], DONE | FAULT
    return status, bench.memory.read(IOVA + 8, 5)


@pytest.fixture
def bench() -> Any:
    with Bench(Copier) as made:
        made.memory.map(IOVA, 0x1000)
        yield made


def test_the_second_read_fails_and_no_other(bench: Bench[Copier]) -> None:
    fault = bench.faults.add(name="second", dma="read", nth=2, errno="EFAULT")
    assert [copied(bench) for _ in range(3)] == [(DONE, b"hello"), (FAULT, bytes(5)), (DONE, b"hello")]
    assert (fault.name, fault.hits, fault.calls) == ("second", 1, 2)
    assert repr(fault) == "<BenchFault name=second dma=read nth=2 errno=EFAULT  # 1 hit of 2 calls>"


@pytest.mark.parametrize(
    ("rule", "result"),
    [
        ({"dma": "read", "flip": 0x20}, (DONE, b"Hello")),
        ({"dma": "write", "value": 0x4142434445}, (DONE, b"EDCBA")),
        ({"dma": "write", "drop": True}, (DONE, bytes(5))),
        ({"dma": "write", "errno": 14}, (FAULT, bytes(5))),
        ({"dma": "any", "iova": f"{IOVA:#x}-{IOVA + 4:#x}", "errno": "EFAULT"}, (FAULT, bytes(5))),
        ({"dma": "any", "iova": IOVA + 13, "errno": "EFAULT"}, (DONE, b"hello")),
        ({"dma": "any", "every": 2, "times": 1, "errno": "EFAULT"}, (FAULT, bytes(5))),
        ({"dma": "write", "duplicate": True}, (DONE, b"hello")),
    ],
)
def test_what_happens_to_dma(rule: Any, result: tuple[int, bytes]) -> None:
    with Bench(Copier, faults=[rule]) as bench:
        bench.memory.map(IOVA, 0x1000)
        assert copied(bench) == result
        bench.faults.clear()
        assert copied(bench) == (DONE, b"hello") and not bench.faults


def test_the_same_seed_gives_the_same_faults() -> None:
    def statuses(seed: int) -> list[int]:
        rule: Any = {"name": "r", "dma": "read", "probability": 0.5, "seed": seed, "errno": "EFAULT"}
        with Bench(Copier, faults=[rule]) as bench:
            bench.memory.map(IOVA, 0x1000)
            return [copied(bench)[0] for _ in range(20)]

    assert statuses(1) == statuses(1) != statuses(2)
    assert set(statuses(1)) == {DONE, FAULT}


def test_rules_come_and_go_by_name(bench: Bench[Copier]) -> None:
    first, second = bench.faults.add(dma="read", flip=1), bench.faults.add(dma="read", flip=2)
    assert list(bench.faults) == [first.name, second.name] and len(bench.faults) == 2
    assert bench.faults[second.name].name == second.name
    first.remove()
    first.remove()
    assert list(bench.faults) == [second.name]
    with pytest.raises(KeyError, match=f"there is no fault rule {first.name}"):
        bench.faults[first.name]


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"dma": "read", "delay": 1.0}, "delay: a bench has rules about DMA, without time"),
        ({"register": "STATUS", "value": 1}, "register: a bench has"),
        ({"errno": "EFAULT"}, "is about DMA"),
        ({"dma": "read"}, "errno"),
        ({"dma": "copy", "errno": "EFAULT"}, "copy"),
        ({"dma": "read", "errno": "EFAULT", "name": "a"}, "a: there is such a rule"),
    ],
)
def test_a_rule_that_a_bench_cannot_have(bench: Bench[Copier], rule: Any, says: str) -> None:
    bench.faults.add(name="a", dma="pin", errno="ENOMEM")
    with pytest.raises(ValueError, match=says):
        bench.faults.add(**rule)
    assert list(bench.faults) == ["a"]
    with pytest.raises(ValueError, match=says):
        Bench(Copier, faults=[{"name": "a", "dma": "pin", "errno": "ENOMEM"}, rule])
