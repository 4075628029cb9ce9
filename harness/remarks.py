"""What a reader of a run's figures has to be told beside them: one function a kind, from the record alone.

A run says its remarks when it ends, ``harness show`` and the report say them again, and the report marks the label. A
new kind is one more function in ``KINDS``; it reads facts that the record holds and returns None where there is nothing
to say, so that records of every age are told about in today's words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.record import Record
from harness.silent_settings import SILENT, Asked


@dataclass(frozen=True)
class Remark:
    """One thing to know of a run."""

    kind: str
    """A key of ``KINDS``."""
    sentence: str
    """Without a full stop, numbers and all."""


def remarks_of(record: Record) -> tuple[Remark, ...]:
    """Return what there is to say of a run, in the order of ``KINDS``."""
    said = ((kind, say(record)) for kind, say in KINDS.items())
    return tuple(Remark(kind, sentence) for kind, sentence in said if sentence is not None)


def _rows_cut(record: Record) -> str | None:
    """Return how many rows were longer than the sequence: those lost the beginning of their prompt."""
    train, asked = record.train, record.train_settings
    if train is None or asked is None or not (cut := sum(train.curve.truncated_rows)):
        return None
    rows = train.num_steps * asked.batch_size * asked.gradient_accumulation_steps
    return f"{cut} of {rows} trained rows were longer than sequence_length = {asked.sequence_length} and were cut"


def _blank_rows(record: Record) -> str | None:
    """Return how many rows held nothing to train on."""
    if record.rows is None or not (blank := record.rows.num_blank_rows):
        return None
    return f"{blank} blank rows of the training data were left out"


def _contexts_cut(record: Record) -> str | None:
    """Return of which tasks contexts were longer than the model's length."""
    if record.scoring is None or not (cut := record.scoring.cut_contexts):
        return None
    tasks = ", ".join(f"{task} {count}" for task, count in cut.items())
    return f"contexts were longer than the model's length and lost their beginning, shots among it: {tasks}"


def _silent(say: Callable[[Asked], str | None]) -> Callable[[Record], str | None]:
    """Return what says of a run that trained which of its settings did nothing."""

    def said(record: Record) -> str | None:
        train, asked = record.train, record.train_settings
        if train is None or asked is None:
            return None
        declared = None if record.proof is None else record.proof.declared
        named = ((), ()) if declared is None else (declared.full_rank, declared.unprojected)
        return say(Asked(record.spec.config, asked, train.num_steps, *named))

    return said


KINDS: Mapping[str, Callable[[Record], str | None]] = {
    "rows cut": _rows_cut,
    "blank rows": _blank_rows,
    "contexts cut": _contexts_cut,
    **{kind: _silent(say) for kind, say in SILENT.items()},
}
"""Every kind of remark: how it is called, and what it says of a record."""
