# SPDX-License-Identifier: Apache-2.0
"""What a bench raises when something is wrong with a test or with a model.

State: none.
"""


class BenchError(Exception):
    """The bench cannot do what it is asked for. The text says why, and often how to do it."""


class BenchTimeout(BenchError, TimeoutError):
    """What a test waits for did not come in the virtual time that it gave."""


class ModelFailed(BenchError):
    """Code of the model has failed where no client is told: in a task, or in a hook that ends something. The
    exception of the model is the ``__cause__``; further ones are in the notes."""


class ModelHangs(BenchError):
    """Code of the model does not come to an end, or its tasks do not come to rest. The bench cannot be used
    any more."""
