# SPDX-License-Identifier: Apache-2.0
"""Tests of a VFIO program, here draw.py. Each test has a lab of its own, which ends with the command."""

import subprocess

UUID = "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01"
TYPE = "/sys/class/mdev_bus/0000:86:00.0/mdev_supported_types/vgpu-1"


def in_lab(script: str) -> subprocess.CompletedProcess[str]:
    command = [".venv/bin/vfsfuse", "run", "--", "sh", "-ec", script]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_it_draws_without_a_fault() -> None:
    done = in_lab(f"""
        echo {UUID} > {TYPE}/create
        python3 examples/draw.py {UUID}
        cat /sys/bus/mdev/devices/{UUID}/faults
    """)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_it_fails_without_a_vgpu() -> None:
    done = in_lab(f"python3 examples/draw.py {UUID}")
    assert done.returncode == 1 and "No such file or directory" in done.stderr
