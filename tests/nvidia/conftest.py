# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a host that the tests of a module share, and its virtual functions without types."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.nvidia.host import Host, Vf, host_of


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host_of(tmp_path_factory.mktemp("host")) as found:
        yield found


@pytest.fixture
def vfs(host: Host) -> Iterator[list[Vf]]:
    """Virtual functions, which have no types again in the end."""
    found = host.enable()
    yield found
    for vf in found:
        if vf.nvidia.exists() and vf.type:
            vf.set(0)
    assert (host.vgpus, host.free) == (0, int((host.pf / "vram_total").read_text()))
