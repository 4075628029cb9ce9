"""What a reader of a run's figures has to be told beside them: one function a kind, from the record alone.

A run says its remarks when it ends, ``harness show`` and the report say them again, and the report marks the label. A
new kind is one more function in ``harness.remarks_training`` or ``harness.remarks_scoring``; it reads facts that the
record holds and returns None where there is nothing to say, so that records of every age are told about alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.record import Record
from harness.remarks_scoring import SCORING
from harness.remarks_training import TRAINING

KINDS: Mapping[str, Callable[[Record], str | None]] = {**TRAINING, **SCORING}
"""Every kind of remark: how it is called, and what it says of a record."""


@dataclass(frozen=True)
class Remark:
    """One thing to know of a run."""

    kind: str
    """A key of ``KINDS``."""
    sentence: str
    """Without a full stop, numbers and all."""


def remarks_of(record: Record) -> tuple[Remark, ...]:
    """Return what there is to say of a run, in the order of ``KINDS``."""
    said = [(kind, sentence) for kind, say in KINDS.items() if (sentence := say(record)) is not None]
    return tuple([Remark(kind, sentence) for kind, sentence in said]) if said else ()
