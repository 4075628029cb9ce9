"""The processes of one run: a child for each device that it takes, begun together, with one fate. Imports no torch."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from typing import IO

from harness.record import LOG_LINES, RunProcess
from harness.runs.child import DESERTED, RANK_VARIABLE, left_record, record_file
from harness.runs.fate import RankEnd
from harness.runs.starting import Hurried, Start, start_anew
from harness.task import RunTask

GRACE_SECONDS = 30.0
"""How long interrupted children may take to leave the run's record, which rank 0 does."""
LAST_SECONDS = 2.0
"""How long the other ranks may then still take: theirs says nothing more, and a collective may hold them."""


class Stop:
    """The wish that runs end before their time: asked once, they leave their records; asked again, they are killed."""

    def __init__(self) -> None:
        self._times = 0

    def ask(self) -> None:
        """Ask once more."""
        self._times += 1

    @property
    def asked(self) -> bool:
        """Return whether it was asked."""
        return self._times > 0

    @property
    def at_once(self) -> bool:
        """Return whether it was asked again."""
        return self._times > 1


class Children:
    """The ranks of a run. What they say comes through one queue, and they end in an order that is kept."""

    def __init__(
        self,
        variables: Sequence[Mapping[str, str]],
        start: Start = start_anew,
        hurried: Hurried = lambda: False,
    ) -> None:
        """Start them all, or none.

        Args:
            variables: Of each rank the environment variables beside the parent's.
            start: What starts each.
            hurried: As of :class:`Start`.

        Raises:
            OSError: one cannot be started.
        """
        self._said: Queue[tuple[int, bytes | None]] = Queue()
        self._children: list[_Child] = []
        self._ended: list[int] = []
        """Ranks that ended by themselves, the first one first."""
        try:
            for rank, own in enumerate(variables):
                which = {RANK_VARIABLE: str(rank)} if len(variables) > 1 else {}
                self._children.append(_Child({**own, **which}, partial(self._hear, rank), start, hurried))
        except BaseException:
            self.kill()
            raise

    @property
    def all_ended(self) -> bool:
        """Return whether every rank has ended by itself."""
        return len(self._ended) == len(self._children)

    @property
    def deserted(self) -> bool:
        """Return whether rank 0 ended because another had, when all have ended: its record says nothing of the run."""
        return self._children[0].returncode == DESERTED

    def send(self, task: RunTask) -> None:
        """Tell each what to do; one that is gone already is heard to have ended."""
        for child in self._children:
            with contextlib.suppress(BrokenPipeError):
                child.send(task)

    def listen(self, seconds: float) -> bytes | None:
        """Return the next line of rank 0; None where for so long none came, or another rank was heard."""
        with contextlib.suppress(Empty):
            rank, line = self._said.get(timeout=max(0.0, seconds))
            if line is None:
                self._children[rank].wait()
                self._ended.append(rank)
            elif rank == 0:
                return line
        return None

    def ends(self, work: Path) -> list[RankEnd]:
        """Return how the ranks ended that did so by themselves, the first one first.

        Args:
            work: Folder of the run, in which they left their records.
        """
        return [
            RankEnd(rank, (child := self._children[rank]).returncode, left_record(work, record_file(rank)), child.tail)
            for rank in self._ended
        ]

    def interrupt(self, stop: Stop) -> None:
        """Ask them to finish their records; a second stop, or too long a wait, leaves them to ``kill``."""
        deadline = time.monotonic() + GRACE_SECONDS
        with contextlib.suppress(KeyboardInterrupt):
            for child in self._children:
                child.signal(signal.SIGINT)
            for child in self._children:
                child.wait(deadline, stop)
                deadline = min(deadline, time.monotonic() + LAST_SECONDS)

    def kill(self) -> None:
        """End them and whatever they have started."""
        for child in self._children:
            child.signal(signal.SIGKILL)
        for child in self._children:
            child.close()

    def log_tail(self) -> str | None:
        """Return the last lines of rank 0's error output, of another's where it has none."""
        return next((child.tail for child in self._children if child.tail), None)

    def used(self, seconds: float) -> RunProcess:
        """Return what they used in so many seconds; all have ended."""
        cpu, peaks = zip(*(child.used() for child in self._children), strict=True)
        return RunProcess(seconds=seconds, cpu_seconds=sum(cpu), host_peak_bytes=max(peaks))

    def _hear(self, rank: int, line: bytes | None) -> None:
        self._said.put((rank, line))


class _Child:
    """The process of a rank, reaped by ``wait4`` so that what it used is known however it ended."""

    def __init__(
        self, variables: Mapping[str, str], hear: Callable[[bytes | None], None], start: Start, hurried: Hurried
    ) -> None:
        """Start it.

        Args:
            variables: Environment variables beside the parent's.
            hear: Called from a thread with each line that it says, and with None at the end.
            start: What starts it.
            hurried: As of :class:`Start`.
        """
        self._process = start(variables, hurried)
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._usage: resource.struct_rusage | None = None
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._listener = threading.Thread(target=collect_lines, args=(self._process.stderr, self._log), daemon=True)
        self._listener.start()
        threading.Thread(target=pass_lines, args=(self._process.stdout, hear), daemon=True).start()

    @property
    def returncode(self) -> int:
        """Return how it ended, as ``subprocess`` says it."""
        assert self._process.returncode is not None
        return self._process.returncode

    @property
    def tail(self) -> str | None:
        """Return the last lines of its error output."""
        return "".join(self._log) or None

    def send(self, task: RunTask) -> None:
        """Tell it what to do."""
        assert self._process.stdin is not None
        self._process.stdin.write(task.model_dump_json().encode() + b"\n")
        self._process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and whatever it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def wait(self, deadline: float = math.inf, stop: Stop | None = None) -> None:
        """Wait until it has ended, a deadline of ``time.monotonic()`` is over, or a stop at once is asked."""
        while self._process.returncode is None:
            ended, status, usage = os.wait4(self._process.pid, 0 if deadline == math.inf else os.WNOHANG)
            if ended:
                self._usage, self._process.returncode = usage, os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= deadline or (stop is not None and stop.at_once):
                return
            else:
                time.sleep(0.02)

    def close(self) -> None:
        """Reap it, and take what it said last."""
        self.wait()
        self._listener.join(timeout=5)

    def used(self) -> tuple[float, int]:
        """Return the seconds of all its threads, and its largest resident set in bytes; it has ended."""
        assert self._usage is not None
        # Linux counts the resident set in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        return self._usage.ru_utime + self._usage.ru_stime, self._usage.ru_maxrss * unit


def pass_lines(stream: IO[bytes], hear: Callable[[bytes | None], None]) -> None:
    """Hand on each line of a process's output, and None at its end."""
    for line in stream:
        hear(line)
    hear(None)


def collect_lines(stream: IO[bytes], log: deque[str]) -> None:
    """Keep the last lines of a process's error output."""
    for line in stream:
        log.append(line.decode(errors="replace"))
