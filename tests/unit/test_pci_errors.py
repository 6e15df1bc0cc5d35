# SPDX-License-Identifier: Apache-2.0
"""What registers say of errors: which error happens, first errors, bits that a written 1 clears, resets; in
declared and in captured configuration spaces."""

from __future__ import annotations

import pytest

from devmodel.models.plain import PlainSpec, plain_model
from devmodel.pci import regs
from devmodel.pci.config import ConfigSpace
from devmodel.pci.errors import NO_ERRORS, ErrorCounts, Severity, log_error
from devmodel.pci.image import Image, ImageSpace
from devmodel.pci.regs import CapId, ExtCapId

CORRECTED, NONFATAL, FATAL = Severity


def declared(*words: str) -> ConfigSpace:
    return plain_model(PlainSpec(capabilities=words))("function").config


def captured() -> ConfigSpace:
    space = declared("express", "aer")
    return ImageSpace(Image.of(space.save()))


@pytest.fixture(params=[lambda: declared("express", "aer"), captured], ids=["declared", "captured"])
def config(request: pytest.FixtureRequest) -> ConfigSpace:
    made: ConfigSpace = request.param()
    return made


def aer(config: ConfigSpace, register: int) -> int:
    return config.value(config.extended(ExtCapId.AER) + register, 4)


def write(config: ConfigSpace, register: int, value: int) -> None:
    config.write(config.extended(ExtCapId.AER) + register, value.to_bytes(4, "little"))


def device_status(config: ConfigSpace) -> int:
    return config.value(config.find(CapId.EXP) + regs.EXP_DEVSTA, 2)


def test_each_severity_has_bits_of_its_own(config: ConfigSpace) -> None:
    assert [log_error(config, each) for each in Severity] == [0, 14, 4]
    assert device_status(config) == 0x7
    assert (aer(config, regs.AER_COR_STATUS), aer(config, regs.AER_UNCOR_STATUS)) == (1, 1 << 14 | 1 << 4)
    assert aer(config, regs.AER_CAP) & regs.AER_CAP_FEP == 14  # the first one


def test_a_written_1_clears_a_bit_and_a_0_does_not(config: ConfigSpace) -> None:
    for each in Severity:
        log_error(config, each)
    write(config, regs.AER_UNCOR_STATUS, 1 << 4)
    assert aer(config, regs.AER_UNCOR_STATUS) == 1 << 14
    write(config, regs.AER_COR_STATUS, 0xFFFFFFFF)
    assert aer(config, regs.AER_COR_STATUS) == 0
    config.write(config.find(CapId.EXP) + regs.EXP_DEVSTA, b"\x02\0")
    assert device_status(config) == 0x5


def test_the_severity_register_decides_which_error_happens(config: ConfigSpace) -> None:
    write(config, regs.AER_UNCOR_SEVER, 1 << 14)  # a completion timeout is fatal, nothing else is
    assert [log_error(config, FATAL), log_error(config, NONFATAL)] == [14, 4]
    write(config, regs.AER_UNCOR_SEVER, 0)
    assert log_error(config, FATAL) == 4  # nothing is: the usual one


def test_a_reset_keeps_what_is_sticky(config: ConfigSpace) -> None:
    write(config, regs.AER_UNCOR_MASK, 1 << 20)
    log_error(config, FATAL)
    config.reset()
    assert aer(config, regs.AER_UNCOR_STATUS) == 1 << 4 and aer(config, regs.AER_UNCOR_MASK) == 1 << 20
    assert device_status(config) == 0


def test_a_function_without_the_capability_has_its_device_status_alone() -> None:
    config = declared("express")
    assert log_error(config, NONFATAL) == 14
    assert device_status(config) == 0x2
    assert log_error(declared(), CORRECTED) == 0  # no PCI Express either: nothing to say


def test_the_text_of_counters() -> None:
    counts = ErrorCounts()
    for _ in range(2):
        counts.reported(CORRECTED, 0)
    counts.reported(FATAL, 18)
    counts.received(FATAL)
    assert counts.text(CORRECTED).splitlines() == [
        *("RxErr 2", "BadTLP 0", "BadDLLP 0", "Rollover 0", "Timeout 0", "NonFatalErr 0", "CorrIntErr 0"),
        *("HeaderOF 0", "TOTAL_ERR_COR 2"),
    ]
    lines = counts.text(FATAL).splitlines()
    assert "MalfTLP 1" in lines and lines[-2:] == ["TLPXlatBlocked 0", "TOTAL_ERR_FATAL 1"]
    assert len(lines) == 24
    assert counts.text(NONFATAL).splitlines()[-1] == "TOTAL_ERR_NONFATAL 0"
    assert (counts.messages(FATAL), counts.messages(CORRECTED)) == (1, 0)
    assert "TOTAL_ERR_COR 0" in NO_ERRORS.text(CORRECTED)
