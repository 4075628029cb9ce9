"""The parts of one run as they come to be: what is known of it, what came out, what was trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from harness.conversation import ConversationTemplate, find_template
from harness.engine.memory import PhaseMeter
from harness.engine.ranks import Ranks
from harness.method import Method
from harness.progress import Progress, Tell, unheard
from harness.record import MTBenchAnswers, Proof, Record, Score
from harness.record_text import EncodingFacts, RowFacts, ScoringFacts
from harness.record_training import OutOfMemoryAt, Phase, TrainResult
from harness.task import RunTask


@dataclass
class Outcome:
    """What a record will hold of the run."""

    train: TrainResult | None = None
    rows: RowFacts | None = None
    encoding: EncodingFacts | None = None
    scores: tuple[Score, ...] = ()
    proof: Proof | None = None
    items: str | None = None
    mt_bench: MTBenchAnswers | None = None
    scoring: ScoringFacts | None = None
    weights: str | None = None
    weights_held: bool = False
    weights_error: str | None = None
    out_of_memory_at: OutOfMemoryAt | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trained:
    """What is scored, and kept."""

    method: Method
    model: nn.Module
    tokenizer: Any


@dataclass
class RunParts:
    """The parts of a run as they come to be."""

    task: RunTask
    progress: Progress
    device: torch.device
    meter: PhaseMeter
    ranks: Ranks
    record: Callable[..., Record]
    """Returns the record as it is now, of a status, a reason and a log's tail."""
    leave: Callable[[Record], None]
    tell: Tell = unheard
    """Called with what each step says of itself."""
    unscored: Trained | None = None
    """Trained, and not yet scored."""
    phases: list[Phase] | None = None
    """Of all processes together, once the run has come to its end."""
    outcome: Outcome = field(default_factory=Outcome)


def conversation_of(run: RunParts) -> ConversationTemplate | None:
    """Return the template of the run's prompts and of MT-Bench; None where neither uses one."""
    name = run.task.spec.conversation
    return None if name is None else find_template(name)
