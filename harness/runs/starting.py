"""How a run's child begins: started anew, or forked from the command's template. Imports no torch."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

from harness.runs.child import RANK_VARIABLE
from harness.runs.template import set_reaper

COMMAND = (sys.executable, "-P", "-m", "harness.runs.template")
PATIENCE_SECONDS = 120.0
"""How long a template may take to import what runs need, and to answer, before a child is started anew instead."""
POLL_SECONDS = 0.1
_PR_GET_CHILD_SUBREAPER = 37
"""Of <linux/prctl.h>."""


@dataclass
class Forked:
    """A child that a template forked: what :class:`_Child` uses of ``subprocess.Popen``."""

    pid: int
    stdin: IO[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]
    returncode: int | None = None


Process = subprocess.Popen[bytes] | Forked
Hurried = Callable[[], bool]
"""Whether nobody wants to wait any more."""


class Start(Protocol):
    """Begins a run's child."""

    def __call__(self, variables: Mapping[str, str], hurried: Hurried) -> Process:
        """Return a child that waits for its task; it leads a session of its own.

        Args:
            variables: Environment variables beside this process's.
            hurried: Whether nobody wants to wait any more.

        Raises:
            OSError: it cannot be started.
        """


def start_anew(variables: Mapping[str, str], hurried: Hurried) -> Process:
    """Start a Python process; see :class:`Start`."""
    return subprocess.Popen(
        # -P: the child imports the harness that its parent runs, not a folder of that name where it was started.
        [sys.executable, "-P", "-m", "harness.runs.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, **variables},
    )


class Template:
    """A process with what runs need imported, which forks their children; Linux alone.

    A fork is asked for only where a process that is started would see the environment in which the template began: the
    libraries have read its variables. Where the template cannot be had, children are started anew. Killed, it is
    replaced; runs that it forked go on.
    """

    def __init__(self, architectures: Sequence[str]) -> None:
        """Begin it; it imports while this process goes on.

        Args:
            architectures: Names of model classes of transformers.
        """
        self._architectures = list(architectures)
        self._lock = threading.Lock()
        self._environment = dict(os.environ)
        self._reaper_before = _reaper()
        set_reaper(True)
        self._begin()

    @staticmethod
    def is_possible() -> bool:
        """Return whether this system has what it takes."""
        return sys.platform == "linux"

    @property
    def pid(self) -> int | None:
        """Return the template's process id; None where there is none."""
        return None if self._process is None else self._process.pid

    def start(self, variables: Mapping[str, str], hurried: Hurried) -> Process:
        """Fork a child from the template, or start it anew; see :class:`Start`."""
        with self._lock:
            if dict(os.environ) == self._environment and set(variables) <= {RANK_VARIABLE}:
                for _ in range(2):
                    if self._process is not None and (forked := self._fork(variables, hurried)) is not None:
                        return forked
                    if hurried():
                        break
        return start_anew(variables, hurried)

    def close(self) -> None:
        """End the template; what it forked goes on."""
        with self._lock:
            if self._process is not None:
                self._end()
            set_reaper(self._reaper_before)

    def _begin(self) -> None:
        """Start the process, or be without one where the system has none to give: the run itself may say so."""
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.settimeout(POLL_SECONDS)
        self._process: subprocess.Popen[bytes] | None = None
        with theirs, contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                [*COMMAND, *self._architectures],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C in a terminal is not its
                env=self._environment,
            )

    def _end(self) -> None:
        """Be without a template."""
        assert self._process is not None
        self._line.close()
        self._process.kill()
        self._process.wait()
        self._process = None

    def _fork(self, variables: Mapping[str, str], hurried: Hurried) -> Forked | None:
        """Return a fork; None where the template has ended, which is replaced unless it ended by itself."""
        assert self._process is not None
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            ends: list[int] = []
            files: list[IO[bytes]] = []
            for mode in ("wb", "rb", "rb"):
                read, write = os.pipe()
                end, own = (read, write) if mode == "wb" else (write, read)
                theirs.callback(os.close, end)
                ends.append(end)
                files.append(ours.enter_context(os.fdopen(own, mode)))
            try:
                socket.send_fds(self._line, [json.dumps(dict(variables)).encode()], ends)
                pid = self._answer(hurried)
            except OSError:
                pid = None
            if pid is not None:
                ours.pop_all()
                stdin, stdout, stderr = files
                return Forked(pid, stdin, stdout, stderr)
        was_killed = _status_of(self._process) < 0
        self._end()
        if was_killed and not hurried():
            self._begin()
        return None

    def _answer(self, hurried: Hurried) -> int | None:
        """Return the process id that the template tells; None where none came in time."""
        for _ in range(int(PATIENCE_SECONDS / POLL_SECONDS)):
            if hurried():
                return None
            try:
                answer = self._line.recv(64)
            except TimeoutError:
                continue
            return int(answer) if answer else None
        return None


def _status_of(process: subprocess.Popen[bytes]) -> int:
    """Return how a process ended; 0 where it has not."""
    try:
        return process.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return 0


def _reaper() -> bool:
    """Return whether this process is given the orphans among its descendants."""
    found = ctypes.c_int()
    ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(found), 0, 0, 0)
    return bool(found.value)
