"""The template of a command's runs: a process with everything imported, of which each run's child is a fork.

``python -m harness.runs.template ARCHITECTURE...``: to import torch, transformers and peft takes longer than a small
run does. The template imports them once, computes nothing and has no thread when it forks: what runs compute, allocate,
print and leave is in processes of their own as before. Requests come over standard input, a socket: environment
variables as JSON, with the child's standard input, output and error output as descriptors; the answer is its process
id, told by itself. The child is a fork of a fork, so that the kernel gives it to the harness, which is the reaper of
its orphans (PR_SET_CHILD_SUBREAPER): it waits for it, reads what it used, and kills it as one that it started itself,
and no end of the template's reaches it.

:mod:`harness.runs.starting` is the other end.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from harness.runs import child

UNFIT = 19
"""Exit status of a template that cannot be forked safely: something that it imported keeps a thread."""
PR_SET_CHILD_SUBREAPER = 36
"""Of <linux/prctl.h>."""
REQUEST_BYTES = 1 << 16
GIVEN_SECONDS = 30.0
"""How long it may take until a child is the harness's; that is gone where it takes longer."""


def main() -> None:
    """Import what runs of the named architectures begin with, then fork until the other end is gone."""
    child.die_with_parent()
    set_reaper(False)  # whoever started this process may have had it be one: orphans are the harness's
    line = _line_in_place_of_input()
    child.import_libraries(sys.argv[1:])
    # What is there now is no garbage, and stays where it is: a collection would copy its pages in every fork.
    gc.collect()
    gc.freeze()
    if not forks_alone():
        sys.exit(UNFIT)
    serve(line, os.getppid())


def serve(line: socket.socket, parent: int) -> None:
    """Fork for every request.

    Args:
        line: Of messages, one a request.
        parent: Process id of the harness, which the children are given to.
    """
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(line, REQUEST_BYTES, 3)
        except OSError:
            return
        if not message:
            return
        between = os.fork()
        if between == 0:
            if os.fork() == 0:
                _become(json.loads(message), descriptors, line, parent)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        os.waitpid(between, 0)


def forks_alone() -> bool:
    """Return whether a fork of this process copies its only thread.

    Libraries such as OpenBLAS end their threads before a fork and begin them anew when they compute: so one is tried.
    """
    trial = os.fork()
    if trial == 0:
        os._exit(0)
    os.waitpid(trial, 0)
    return len(list(Path("/proc/self/task").iterdir())) == 1


def set_reaper(reaper: bool) -> None:
    """Say whether this process is given the orphans among its descendants."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(reaper), 0, 0, 0)


def _line_in_place_of_input() -> socket.socket:
    line = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return line


def _become(variables: Mapping[str, str], ends: Sequence[int], line: socket.socket, parent: int) -> NoReturn:
    """Be a run's child to its end: with a session, descriptors and variables as if it had been started."""
    status = 1
    try:
        os.setsid()
        for number, end in enumerate(ends):
            os.dup2(end, number)
            os.close(end)
        os.environ.update(variables)
        deadline = time.monotonic() + GIVEN_SECONDS
        while os.getppid() != parent:  # until the one between has ended
            if time.monotonic() > deadline:
                os._exit(child.ORPHANED)
            os.sched_yield()
        line.send(str(os.getpid()).encode())  # only now: it can be waited for, and leads a group that can be killed
        line.close()
        _reseed()
        child.main()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _reseed() -> None:
    """Give numpy's global generator a seed of its own, as at the start of a process; Python's own does so itself."""
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()


if __name__ == "__main__":
    main()
