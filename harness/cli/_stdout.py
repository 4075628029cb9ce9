"""Standard output that cannot be written: a full disk is said in one sentence, a reader that left is no error."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class OutputLost(Exception):
    """What a command prints could not be written; the sentence says why."""


@contextmanager
def stdout_that_says_so() -> Iterator[None]:
    """Write what is printed so that a failure is told from any other failing file.

    Raises:
        OutputLost: standard output is closed or cannot be written.
        BrokenPipeError: nobody reads it any more.
    """
    for each in (sys.stdout, sys.stderr):
        if isinstance(each, io.TextIOWrapper):
            each.reconfigure(errors="backslashreplace")  # what the terminal's encoding lacks is no error
    if sys.stdout is None:
        raise OutputLost("standard output is closed: send it to a file, or to /dev/null")
    stream: Any = sys.stdout
    write, flush = stream.write, stream.flush

    def said(act: Any) -> Any:
        def acting(*args: Any) -> Any:
            try:
                return act(*args)
            except BrokenPipeError:
                raise
            except OSError as error:
                from harness.files import reason_of  # help needs nothing of it

                _let_go()
                raise OutputLost(f"standard output cannot be written: {reason_of(error)}") from error

        return acting

    stream.write, stream.flush = said(write), said(flush)
    try:
        try:
            yield
        except SystemExit:
            stream.flush()  # of --help and --version, where Python would only note it at its end
            raise
    finally:
        stream.write, stream.flush = write, flush


def _let_go() -> None:
    """Point standard output nowhere: what is buffered would fail once more when Python ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return
