# SPDX-License-Identifier: Apache-2.0
"""GET_DEVICE_FD under `vfsfuse run`: what one program hands in holds up no other program of that run."""

from __future__ import annotations

import pytest

from tests.hostile.clients import Hostile
from tests.hostile.conftest import Lab, Place

ROWS = {
    "a file that answers nothing as the group": (["get-device-fd-of"], "ENOTTY"),
    "an O_PATH descriptor of it": (["get-device-fd-of", "-d", "hostile-path"], "EBADF"),
    "an O_PATH descriptor of the group": (["get-device-fd-of", "-d", "group-path"], "EBADF"),
    "the container": (["get-device-fd-of", "-d", "container"], "ENOTTY"),
    "a directory": (["get-device-fd-of", "-d", "directory"], "ENOTTY"),
    "a socket": (["get-device-fd-of", "-d", "socket"], "ENOTTY"),
    "a name in memory that waits": (["get-device-fd", "-m", "shared"], "0"),
    "a name in memory of userfaultfd": (["get-device-fd", "-m", "userfault"], "0"),
    "a name in memory whose lock is held": (["get-device-fd", "-m", "locked"], "0"),
}


@pytest.mark.parametrize("row", ROWS)
def test_another_program_gets_its_device(hostile_lab: Lab, vgpu: Place, row: str) -> None:
    (call, *options), outcome = ROWS[row]

    def go_on(client: Hostile) -> None:
        """The other program asks again and again: the second time that it says so, all was while this one is
        held."""
        before = client.said.count("asked")
        client.wait(lambda: client.said.count("asked") > before + 1, "another program's GET_DEVICE_FD waits")

    client = hostile_lab.hostile(vgpu, call, *options, "-a", run=True)
    hostile_lab.check(client, outcome, meanwhile=go_on)
