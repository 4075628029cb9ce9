"""The processes that answer parts of a calibration: one, or one for each device that shares them. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from queue import Empty, Queue
from tempfile import TemporaryDirectory
from typing import Any

from harness.record import LOG_LINES
from harness.runs.child import DESERTED, RANK_VARIABLE
from harness.runs.children import collect_lines, pass_lines

LAST_WORDS_SECONDS = 2.0
"""For what a process that died said to come in; what it started may hold its output open for ever."""


class Workers:
    """Processes that were given one order. Together they have one fate: whoever fails ends the others."""

    def __init__(self, module: str, variables: Sequence[Mapping[str, str]] = ({},)) -> None:
        """Start them.

        Args:
            module: What each runs.
            variables: Of each the environment variables beside this process's.
        """
        self._said: Queue[tuple[int, bytes | None]] = Queue()
        self._folder = TemporaryDirectory(prefix="harness-ranks-")
        self._ended: list[int] = []
        """Numbers of those whose output has ended, the first one first."""
        self._workers: list[_Worker] = []
        try:
            for rank, own in enumerate(variables):
                which = {RANK_VARIABLE: str(rank)} if len(variables) > 1 else {}
                self._workers.append(_Worker(module, {**own, **which}, partial(self._hear, rank)))
        except BaseException:
            self.kill()
            raise

    @property
    def several(self) -> bool:
        """Return whether there is more than one."""
        return len(self._workers) > 1

    @property
    def over(self) -> bool:
        """Return whether nothing more can come: the first one ended, or another one badly."""
        return any(rank == 0 or self._workers[rank].process.wait() for rank in self._ended)

    def send(self, order: Mapping[str, Any]) -> None:
        """Give each the order; one that is gone already is heard to have ended."""
        where = {"ranks": len(self._workers), "folder": self._folder.name} if self.several else {}
        for worker in self._workers:
            with contextlib.suppress(BrokenPipeError):
                worker.send({**order, **where})

    def listen(self, seconds: float) -> dict[str, Any] | None:
        """Return what one says next; None where for so long none said anything, or one was heard to have ended."""
        with contextlib.suppress(Empty):
            rank, line = self._said.get(timeout=max(0.0, seconds))
            if line is not None:
                event: dict[str, Any] = json.loads(line)
                return event
            self._ended.append(rank)
        return None

    def death(self) -> str:
        """Return how the first one that failed by itself ended, and what it said last, which may come a moment later.

        Those that only lost another one say so by their exit status, and may have been heard first.
        """
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        while len(self._ended) < len(self._workers) and time.monotonic() < deadline and not self._cause():
            self.listen(deadline - time.monotonic())
        rank = next(iter((*self._cause(), *self._ended)))
        whose = f"rank {rank} of {len(self._workers)}: " if self.several else ""
        return whose + self._workers[rank].death()

    def kill(self) -> None:
        """End them and whatever they have started."""
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.process.pid, signal.SIGKILL)
        for worker in self._workers:
            worker.process.wait()
        self._folder.cleanup()

    def _cause(self) -> tuple[int, ...]:
        return tuple(rank for rank in self._ended if self._workers[rank].process.wait() not in (0, DESERTED))

    def _hear(self, rank: int, line: bytes | None) -> None:
        self._said.put((rank, line))


class _Worker:
    """One process, with the last lines of its error output."""

    def __init__(self, module: str, variables: Mapping[str, str], hear: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **variables},
        )
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self._input = self.process.stdin
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._listener = threading.Thread(target=collect_lines, args=(self.process.stderr, self._log), daemon=True)
        self._listener.start()
        threading.Thread(target=pass_lines, args=(self.process.stdout, hear), daemon=True).start()

    def send(self, order: Mapping[str, Any]) -> None:
        self._input.write(json.dumps(order).encode() + b"\n")
        self._input.flush()

    def death(self) -> str:
        """Return how it ended, and what it said last."""
        returncode = self.process.wait()
        self._listener.join(LAST_WORDS_SECONDS)
        how = f"by {signal.Signals(-returncode).name}" if returncode < 0 else f"with exit status {returncode}"
        last = next((line.strip() for line in reversed(self._log) if line.strip()), None)
        return f"its process ended {how}" + ("" if last is None else f": {last}")
