"""The parent's side of a calibration: parts in processes of their own, each result kept as it comes. Imports no torch.

Parts share a process until one asks for its own or the process dies; the part under way is then a failed one, and the
rest goes on in a new process. A part that several devices share has a process for each: where one fails, all end. When
the budget ends, the part under way is cut off and asked again by the next call.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from harness.calibration.parts import Part
from harness.calibration.workers import Workers
from harness.calibration_log import PartResult, Sizes
from harness.record_environment import Environment

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
    shared_by: Sequence[Mapping[str, str]] = ()
    """Of parts that several devices share, the environment variables of each one's process."""


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
    """Yield the parts that share a process, or as many processes as share each of them."""
    for (alone, _), group in itertools.groupby(parts, key=lambda part: (part.alone, part.shared)):
        together = tuple(group)
        if alone:
            yield from ((part,) for part in together)
        else:
            yield together


def _ask(
    parts: Sequence[Part], order: Order, begins: Callable[[Part], None], keep: Callable[[PartResult], None]
) -> int:
    """Ask one process, or one for each device; return how many parts have a result, what it died in among them."""
    started_at, clock = datetime.now(UTC), time.monotonic()
    workers = Workers(MODULE, order.shared_by if parts[0].shared else ({},))
    done, too_long, well = 0, False, True
    try:
        workers.send({"parts": [part.name for part in parts], "sizes": order.sizes, "asked_of": len(order.shared_by)})
        for event in _events(workers, order):
            if event is None:
                too_long = True
            elif "begins" in event:
                started_at, clock = datetime.now(UTC), time.monotonic()
                begins(parts[done])
            else:
                result = PartResult.model_validate(event["result"])
                keep(_of_device(result, order) if workers.several else result)
                done, well = done + 1, result.outcome == "ok" or not workers.several
            if not well:  # the others may wait for the one that failed
                break
        if well and done < len(parts) and time.monotonic() < order.stop_at:
            sentence = f"took over {order.part_seconds:g} s" if too_long else workers.death()
            seconds = time.monotonic() - clock
            keep(_failed(parts[done], order, sentence, started_at, seconds))
            done += 1
    finally:
        workers.kill()
    return done


def _events(workers: Workers, order: Order) -> Iterator[dict[str, Any] | None]:
    """Yield what processes say until they end or the time is up; None and no more when they are silent for too long."""
    heard = time.monotonic()
    while (now := time.monotonic()) < order.stop_at:
        if now - heard > order.part_seconds:
            yield None
            return
        event = workers.listen(min(POLL_SECONDS, order.stop_at - now))
        if event is not None:
            heard = time.monotonic()
            yield event
        elif workers.over:
            return


def _of_device(result: PartResult, order: Order) -> PartResult:
    """Return a result that several processes share as one of the device that the others are of, threads as there."""
    where = {"environment": order.environment, "environment_id": order.environment.environment_id}
    return result.model_copy(update=where)


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
