# SPDX-License-Identifier: Apache-2.0
"""How a client changes the state of a device that migrates, and what that gives it.

Threads: the device lane. State: under the lock of the device. Source: <linux/vfio.h>
(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE), "device_state transitions".
"""

from __future__ import annotations

import errno

from devmodel.device.base import Device
from devmodel.device.migration import DeviceState, Migrates, Migration, StateStream

STOP_COPY = 1
"""VFIO_MIGRATION_STOP_COPY: what a device that migrates can do."""
_ASKED = (DeviceState.STOP, DeviceState.RUNNING, DeviceState.STOP_COPY, DeviceState.RESUMING)


def migrates(device: Device) -> bool:
    """Whether the device has the features of migration. Any thread."""
    return isinstance(device, Migrates)


def state_of(device: Device) -> DeviceState:
    """What it does now. Any thread."""
    migration = device.migration
    return DeviceState.RUNNING if migration is None else migration.state


def check_state(device: Device, wanted: int) -> bool:
    """Whether the change to ``wanted`` gives the client a stream. Raises ``OSError(EINVAL)`` for a state that
    nothing leads to."""
    now = state_of(device)
    if wanted not in _ASKED or now is DeviceState.ERROR:
        raise OSError(errno.EINVAL, f"{device.name}: no way from state {now.name} to {wanted}")
    return wanted != now and wanted in (DeviceState.STOP_COPY, DeviceState.RESUMING)


def change_state(device: Device, wanted: int) -> StateStream | None:
    """Have the device do ``wanted``. Returns the stream that belongs to it, if that is new.

    Raises ``OSError``: as :func:`check_state`, ENODEV for a device that is gone, EINVAL for a written state
    that is none. What the model raises leaves the device in ERROR."""
    with device.lock:
        device.check_present()
        if not check_state(device, wanted) and wanted == state_of(device):
            return None
        if device.migration is None:
            device.migration = Migration()
        now = device.migration.state
        way = [DeviceState(wanted)]
        if DeviceState.STOP not in (now, wanted):
            way.insert(0, DeviceState.STOP)
        try:
            for state in way:
                _step(device, device.migration, state)
        except ValueError as error:
            device.migration.state = DeviceState.ERROR
            raise OSError(errno.EINVAL, f"{device.name}: {error}") from error
        except BaseException:
            device.migration.state = DeviceState.ERROR
            raise
        return device.migration.stream


def _step(device: Device, migration: Migration, state: DeviceState) -> None:
    """One step to or from STOP. Under the device's lock."""
    assert isinstance(device, Migrates)
    if state is DeviceState.STOP:
        written = migration.end_stream()
        if migration.state is DeviceState.RUNNING:
            device.pause()
        elif migration.state is DeviceState.RESUMING:
            device.load_state(written)
    elif state is DeviceState.RUNNING:
        device.resume()
    else:
        migration.stream = StateStream(device.save_state() if state is DeviceState.STOP_COPY else None)
    migration.state = state
