# SPDX-License-Identifier: Apache-2.0
"""For tests of drivers and of device models: a bench for a model, and fixtures for pytest.

The names of this package are imported when they are first used, because the fixtures are in every run of
pytest.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from devmodel.lifecycle.spec import VfSpec
    from vfsfuse.testing.bench import Bench
    from vfsfuse.testing.errors import BenchError, BenchTimeout, ModelFailed, ModelHangs
    from vfsfuse.testing.interrupts import Interrupt
    from vfsfuse.testing.rig import Physical

__all__ = [
    "Bench",
    "BenchError",
    "BenchTimeout",
    "Interrupt",
    "ModelFailed",
    "ModelHangs",
    "Physical",
    "VfSpec",
]

_MODULES = {
    "Bench": "bench",
    "BenchError": "errors",
    "BenchTimeout": "errors",
    "Interrupt": "interrupts",
    "ModelFailed": "errors",
    "ModelHangs": "errors",
    "Physical": "rig",
    "VfSpec": "rig",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
