"""What stops a call that follows runs elsewhere, and a worker that does one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM stop as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def hear_interrupts() -> None:
    """Let SIGINT interrupt this process, also where it was born ignoring it, as what a script begins with ``&`` is.

    Ray interrupts a worker by a handler of Python's, and does nothing where there is none.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
