# SPDX-License-Identifier: Apache-2.0
"""Configuration spaces as text and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmodel.pci.dump import config_space, rows, rows_of

SPACES = st.sampled_from((64, 256, 4096)).flatmap(
    lambda size: st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 255)), max_size=40).map(
        lambda spots: bytes(dict(spots).get(at, 0) for at in range(size))
    )
)


@given(SPACES)
def test_rows_say_every_byte(data: bytes) -> None:
    text = "\n".join(rows(data))
    assert rows_of(text) == data
    assert config_space(text.encode()) == data
    assert config_space(b"0000:00:00.0 Host bridge: Made up\n\tFlags: fast devsel\n" + text.encode()) == data


def test_bytes_are_taken_as_they_are() -> None:
    data = bytes(range(256))
    assert config_space(data) == data


def test_rows_of_zeros_may_be_left_out() -> None:
    assert config_space(b"00: 86 80\n40: 01\n") == b"\x86\x80".ljust(64, b"\0") + b"\1" + bytes(191)
    assert rows_of("55 aa\n00 01\n10: 07") == b"\x55\xaa\0\1".ljust(16, b"\0") + b"\7"
    assert list(rows(bytes(64))) == ["00:" + " 00" * 16, "30:" + " 00" * 16]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "has no row"),
        (b"hello", "has no row"),
        (b"00: 86 80\nhello", "line 2 is no row"),
        (b"00: 86 80\n\n0000:00:01.0 Other\n", "line 3 .* a second function"),
        (b"00: 86 80\n00: 86\n", "line 2: no row can begin at 0x0"),
        (b"01: 86\n", "line 1: no row can begin at 0x1"),
        (b"00: 86 80 8", "has no row"),
        (b"00: 86 80\n86 8\n", "line 2 is no row"),
        (b"1000: 01\n", "has 4097 bytes"),
        (b"fff0:" + b" 00" * 16 + b"\n", "65536 bytes"),
        (b"\xff" * 100, "has 100 bytes and no text"),
    ],
)
def test_what_is_no_configuration_space_is_an_error(content: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        config_space(content)
