# SPDX-License-Identifier: Apache-2.0
"""Shares of a parent, memory that is less than its BAR, and monitors with limits."""

from __future__ import annotations

import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmodel.lifecycle.resources import Resolution, Share, parse_resolution, parse_size
from devmodel.lifecycle.spec import TypeSpec
from devmodel.models import edid
from devmodel.models.gpu import Vgpu
from devmodel.models.mtty import Mtty
from devmodel.region.backing import Backing
from devmodel.region.region import Memory

MIB = 1 << 20
VGPU = TypeSpec("t", "t", Vgpu, memory=4 * MIB, slots=2, options={"max_width": 1280, "max_height": 1024})
PAGE = mmap.PAGESIZE


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("64K", 65536), ("96M", 96 * MIB), ("2GiB", 2 << 30), ("1 T", 1 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "1.5M", "-1", "+1", "0x10", "1m", "1MB B", "2T", "1" * 16, "\u0661M"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"whole number|out of range"):
        parse_size(text)


@given(st.integers(1, 99999), st.integers(1, 99999))
def test_resolutions(width: int, height: int) -> None:
    found = parse_resolution(f"{width}x{height}")
    assert found == (width, height) and str(found) == f"{width}x{height}"


@pytest.mark.parametrize(
    "text", ["", "640", "640x", "x480", "640x480x2", "0x480", "640x0", "0640x480", "-1x1"]
)
def test_what_is_no_resolution(text: str) -> None:
    with pytest.raises(ValueError, match="not a resolution"):
        parse_resolution(text)


def test_a_share_is_its_types_unless_changed() -> None:
    share = Share.of(VGPU)
    assert (share.memory, share.slots, share.max_resolution) == (4 * MIB, 2, Resolution(1280, 1024))
    assert share.options == Vgpu.with_defaults(VGPU.options)
    changed = share.changed(
        VGPU, {"vram": "3M", "max_resolution": "800x600", "weight": "2", "frame_rate": "30"}
    )
    assert (changed.memory, changed.slots, changed.max_resolution) == (3 * MIB, 2, (800, 600))
    assert (changed.options["weight"], changed.options["frame_rate"]) == (2, 30)
    assert share == Share.of(VGPU)
    assert share.changed(VGPU, {}) == share


@pytest.mark.parametrize("overrides", [{"vram": "1"}, {"colour": "1"}, {"weight": "0"}, {"frame_rate": "99"}])
def test_what_the_model_cannot_have_is_refused(overrides: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        Share.of(VGPU).changed(VGPU, overrides)


@pytest.mark.parametrize("key", ["weight", "frame_rate"])
def test_a_model_without_an_option_does_not_get_it(key: str) -> None:
    spec = TypeSpec("t", "t", Mtty)
    assert Share.of(spec).max_resolution is None
    with pytest.raises(ValueError, match=f"no option '{key}'"):
        Share.of(spec).changed(spec, {key: "60"})


# ---- memory that is less than its BAR ----


@pytest.mark.parametrize(
    ("size", "backed"), [(PAGE, 0), (PAGE, 2 * PAGE), (2 * PAGE, 5), (5, None), (0, None)]
)
def test_memory_is_whole_pages(size: int, backed: int | None) -> None:
    with pytest.raises(ValueError, match="not whole pages"):
        Memory(size, backed)


@given(st.integers(0, 8 * PAGE - 1), st.integers(0, 3 * PAGE))
def test_beyond_its_end_there_is_nothing(offset: int, size: int) -> None:
    backing, memory = Backing({0: 3 * PAGE}), Memory(8 * PAGE, 3 * PAGE)
    memory.bind(backing, 0)
    size = min(size, 8 * PAGE - offset)
    data = bytes(index % 251 + 1 for index in range(size))
    memory.write(offset, data)
    kept = data[: max(3 * PAGE - offset, 0)]
    assert memory.read(offset, size) == kept.ljust(size, b"\xff")
    assert backing.allocated <= 3 * PAGE
    memory.close()
    backing.close()


def test_memory_that_is_all_there_may_be_mapped_whole() -> None:
    assert Memory(PAGE).areas is None
    assert Memory(4 * PAGE, 3 * PAGE).areas == ((0, 3 * PAGE),)


def test_looking_at_what_is_used_allocates_nothing() -> None:
    backing = Backing({0: PAGE})
    assert backing.allocated == 0 and not backing.created
    backing.close()


# ---- monitors ----


@pytest.mark.parametrize("refresh", [30, 45, 59, 60])
@pytest.mark.parametrize("mode", edid.MODES)
def test_a_monitor_says_its_rate_within_its_own_limits(mode: edid.Mode, refresh: int) -> None:
    block = edid.block(mode, "monitor", 1, refresh)
    assert len(block) == 128 and sum(block) % 256 == 0
    timing = block[54:72]
    pixels = [timing[i] | (timing[i + 2] & 0xF0) << 4 for i in (2, 5)]
    blank = [timing[i] | (timing[i + 1] & 0x0F) << 8 for i in (3, 6)]
    lines = pixels[1] + blank[1]
    clock = int.from_bytes(timing[:2], "little") * 10_000
    rate = clock / ((pixels[0] + blank[0]) * lines)
    assert tuple(pixels) == mode and 0.95 * refresh < rate <= refresh
    limits = next(block[i : i + 18] for i in range(54, 126, 18) if block[i + 3] == 0xFD)
    assert limits[5] <= rate <= limits[6]
    assert limits[7] <= clock / (pixels[0] + blank[0]) / 1000 <= limits[8]
    assert clock <= limits[9] * 10_000_000
    if refresh < edid.REFRESH:  # the short forms of timings say 60 Hz and more
        assert block[35:38] == bytes(3) and block[38:54] == b"\x01" * 16


def test_the_best_mode_is_within_memory_and_limits() -> None:
    assert edid.best_mode(64 * MIB, 16384, 16384) == (3840, 2160)
    assert edid.best_mode(64 * MIB, 1920, 1080) == (1920, 1080)
    assert edid.best_mode(64 * MIB, 1900, 16384) == (1600, 900)
    assert edid.best_mode(4 * MIB, 1920, 1080) == (800, 600)
    assert edid.best_mode(0, 1, 1) == edid.MODES[-1]
