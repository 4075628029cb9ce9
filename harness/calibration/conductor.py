"""The parent's side of a calibration: parts in processes of their own, each result kept as it comes. Imports no torch.

Parts share a process until one asks for its own or the process dies; the part under way is then a failed one, and the
rest goes on in a new process. When the budget ends, the part under way is cut off and asked again by the next call.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from queue import Empty, Queue
from typing import Any

from harness.calibration.parts import Part
from harness.calibration_log import PartResult, Sizes
from harness.record import LOG_LINES
from harness.record_environment import Environment
from harness.runs.children import collect_lines, pass_lines

LAST_WORDS_SECONDS = 2.0
"""For what a process that died said to come in; what it started may hold its output open for ever."""
POLL_SECONDS = 0.2
MODULE = "harness.calibration.worker"


@dataclass(frozen=True)
class Order:
    """What is asked beside the parts."""

    sizes: Sizes
    environment: Environment
    """For the result of a part whose process died."""
    stop_at: float = math.inf
    """Time of ``time.monotonic()`` at which the part under way is cut off."""
    part_seconds: float = 180.0
    """A part that takes longer has failed, so that what hangs keeps nothing else from being asked."""


def conduct(
    parts: Sequence[Part], order: Order, begins: Callable[[Part], None], keep: Callable[[PartResult], None]
) -> tuple[Part, ...]:
    """Have parts answered, one after the other; return those that the budget left.

    Args:
        parts: In order.
        order: How.
        begins: Called when a part begins.
        keep: Called with each result as it comes.
    """
    left = list(parts)
    for group in _processes(parts):
        waiting = list(group)
        while waiting:
            if time.monotonic() >= order.stop_at:
                return tuple(left)
            done = _ask(waiting, order, begins, keep)
            if done == 0 and time.monotonic() >= order.stop_at:
                return tuple(left)
            waiting, left = waiting[done:], left[done:]
    return tuple(left)


def _processes(parts: Sequence[Part]) -> Iterator[tuple[Part, ...]]:
    """Yield the parts that share a process."""
    for alone, group in itertools.groupby(parts, key=lambda part: part.alone):
        together = tuple(group)
        if alone:
            yield from ((part,) for part in together)
        else:
            yield together


def _ask(
    parts: Sequence[Part], order: Order, begins: Callable[[Part], None], keep: Callable[[PartResult], None]
) -> int:
    """Ask one process; return how many parts have a result, the one that it died in among them."""
    started_at, clock = datetime.now(UTC), time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdin and child.stdout and child.stderr
    log: deque[str] = deque(maxlen=LOG_LINES)
    lines: Queue[bytes | None] = Queue()
    listener = threading.Thread(target=collect_lines, args=(child.stderr, log), daemon=True)
    listener.start()
    threading.Thread(target=pass_lines, args=(child.stdout, lines.put), daemon=True).start()
    done, too_long = 0, False
    try:
        with contextlib.suppress(BrokenPipeError):
            names = [part.name for part in parts]
            child.stdin.write(json.dumps({"parts": names, "sizes": order.sizes}).encode() + b"\n")
            child.stdin.flush()
        for event in _events(lines, order):
            if event is None:
                too_long = True
            elif "begins" in event:
                started_at, clock = datetime.now(UTC), time.monotonic()
                begins(parts[done])
            else:
                keep(PartResult.model_validate(event["result"]))
                done += 1
        if done < len(parts) and time.monotonic() < order.stop_at:
            sentence = f"took over {order.part_seconds:g} s" if too_long else _death(child, listener, log)
            seconds = time.monotonic() - clock
            keep(_failed(parts[done], order, sentence, started_at, seconds))
            done += 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    return done


def _events(lines: Queue[bytes | None], order: Order) -> Iterator[dict[str, Any] | None]:
    """Yield what a process says until it ends or the time is up; None and no more when it is silent for too long."""
    heard = time.monotonic()
    while (now := time.monotonic()) < order.stop_at:
        if now - heard > order.part_seconds:
            yield None
            return
        try:
            line = lines.get(timeout=min(POLL_SECONDS, max(0.0, order.stop_at - now)))
        except Empty:
            continue
        if line is None:
            return
        heard = time.monotonic()
        yield json.loads(line)


def _failed(part: Part, order: Order, sentence: str, started_at: datetime, seconds: float) -> PartResult:
    return PartResult(
        part=part.name,
        group=part.group,
        sizes=order.sizes,
        outcome="failed",
        sentence=sentence,
        seconds=seconds,
        started_at=started_at,
        environment_id=order.environment.environment_id,
        environment=order.environment,
    )


def _death(child: subprocess.Popen[bytes], listener: threading.Thread, log: deque[str]) -> str:
    """Return how a process ended, and what it said last, which may come a moment later."""
    returncode = child.wait()
    listener.join(LAST_WORDS_SECONDS)
    how = f"by {signal.Signals(-returncode).name}" if returncode < 0 else f"with exit status {returncode}"
    last = next((line.strip() for line in reversed(log) if line.strip()), None)
    return f"its process ended {how}" + ("" if last is None else f": {last}")
