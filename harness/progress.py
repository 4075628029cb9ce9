"""How whatever takes long says how far it is, and what a run that trains says of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how much is done, and how much there is to do (None: unknown)."""

Facts = Mapping[str, float | None]
"""What is known of a run after ``step`` optimizer steps: ``held_out_loss``, in nats, or what the last of the steps says
of itself, by the names of :class:`harness.record_training.StepCurve`. None where it was not taken."""
Tell = Callable[[Facts], None]
"""Called with each of them as it comes."""


def unheard(facts: Facts) -> None:
    """Tell nobody."""


def silent(what: str, done: int, total: int | None) -> None:
    """Show no progress."""


def throttled(
    progress: Progress, seconds: float, *, ends: bool, clock: Callable[[], float] = time.monotonic
) -> Progress:
    """Return what passes on the first word of each thing that is done, and further ones of it once in a while.

    Things are told apart by what stands before the first comma: what follows it may change with every call.

    Args:
        progress: Is called less often.
        seconds: Between two words of one thing.
        ends: Whether the word that all is done passes in any case.
        clock: Monotonic seconds.
    """
    last: tuple[str, float] = "", -seconds

    def word(what: str, done: int, total: int | None) -> None:
        nonlocal last
        kind, now = what.partition(",")[0], clock()
        if kind != last[0] or now - last[1] >= seconds or (ends and done == total):
            last = kind, now
            progress(what, done, total)

    return word
