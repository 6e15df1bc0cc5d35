# SPDX-License-Identifier: Apache-2.0
"""How a client changes the state of a device that migrates, and what that gives it.

Threads: those that may wait. State: under the lock of the device. Source: <linux/vfio.h>
(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE), "device_state transitions".
"""

from __future__ import annotations

import errno

from devmodel.device.base import Device
from devmodel.device.migration import REGISTERS_STATE, DeviceState, Migrates, Migration, StateStream

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
    """Have the device do ``wanted``. Returns the stream that belongs to it, if that is new. A thread that may
    wait: a device that stops has no DMA under way when this returns.

    Raises ``OSError``: as :func:`check_state`, ENODEV for a device that is gone, EBUSY for a DMA that does
    not end, with the device running as before, EINVAL for a written state that is none. What the model raises
    leaves the device in ERROR."""
    with device.lock:
        device.check_present()
        check_state(device, wanted)
        migration = device.migration = device.migration or Migration()
        stops = migration.state is DeviceState.RUNNING and wanted != DeviceState.RUNNING
        if stops:
            _step(device, migration, DeviceState.STOP)
    if stops:
        _settle(device, migration)
    with device.lock:
        device.check_present()
        if device.migration is not migration:
            raise OSError(errno.EBUSY, f"{device.name} was reset meanwhile")
        if not check_state(device, wanted) and wanted == migration.state:
            return None
        return _lead(device, migration, DeviceState(wanted))


def _settle(device: Device, migration: Migration) -> None:
    """Wait for the DMA of a device that has just stopped. It runs again if some does not end."""
    try:
        device.dma.settle()
    except OSError:
        with device.lock:
            if device.migration is migration and migration.state is DeviceState.STOP:
                _step(device, migration, DeviceState.RUNNING)
        raise


# ---- under the device's lock ----


def _lead(device: Device, migration: Migration, wanted: DeviceState) -> StateStream | None:
    way = [wanted]
    if DeviceState.STOP not in (migration.state, wanted):
        way.insert(0, DeviceState.STOP)
    try:
        for state in way:
            _step(device, migration, state)
    except ValueError as error:
        migration.state = DeviceState.ERROR
        raise OSError(errno.EINVAL, f"{device.name}: {error}") from error
    except BaseException:
        migration.state = DeviceState.ERROR
        raise
    return migration.stream


def _step(device: Device, migration: Migration, state: DeviceState) -> None:
    """One step to or from STOP."""
    assert isinstance(device, Migrates)
    if state is DeviceState.STOP:
        written = migration.end_stream()
        if migration.state is DeviceState.RUNNING:
            device.pause()
        elif migration.state is DeviceState.RESUMING:
            device.load_state(written)
    elif state is DeviceState.RUNNING:
        device.resume()
    elif state is DeviceState.STOP_COPY:
        migration.stream = StateStream(device.save_state())
    else:
        regions = sum(region.size for region in device.regions if region is not None)
        migration.stream = StateStream(limit=REGISTERS_STATE + regions)
    migration.state = state
