"""Where memory is meant to lie, for code that keeps tensors on the host while it trains on a device.

On a CPU the two places cannot be told apart by looking at a tensor, so whoever moves one says so: what is allocated
inside ``with on_host():`` counts as host memory, in measurements and predictions alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_HOST: ContextVar[bool] = ContextVar("harness_on_host", default=False)


@contextmanager
def on_host() -> Iterator[None]:
    """Count what is allocated inside as host memory."""
    token = _HOST.set(True)
    try:
        yield
    finally:
        _HOST.reset(token)


def meant_for_host() -> bool:
    """Return True inside :func:`on_host`."""
    return _HOST.get()
