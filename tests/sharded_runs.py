"""Tiny runs of labels, whole and on several processes, and what is compared of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from harness.calibration.tiny import TinyRun, tiny_run
from harness.engine.ranks import ALONE, Ranks
from harness.tensors.sharded import local, whole

STEPS = 6


@dataclass(frozen=True)
class Case:
    """A label, and what is changed of its settings and of training."""

    label: str
    settings: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    published: bool = True


@dataclass
class Seen:
    """What a process saw of a run."""

    losses: list[float]
    norms: list[float | None]
    weights: dict[str, torch.Tensor]
    """All of each."""
    began: dict[str, torch.Tensor]
    """The same before the first step."""
    trained: set[str]
    """Names of what the optimizer has."""
    draws: Any
    state_bytes: int
    own_bytes: int
    """Of the weights that this process holds."""

    @property
    def moved(self) -> float:
        """Return the largest movement of a weight."""
        return max(distance(self.weights[name], self.began[name]) for name in self.weights)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest absolute difference, in fp32."""
    return float((one.float() - other.float()).abs().max())


def apart_of(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """Return the norm of the difference of all weights."""
    return math.sqrt(sum(float((one[name].double() - other[name].double()).square().sum()) for name in one))


def built(ranks: Ranks, case: Case, accumulation: int = 2) -> TinyRun:
    """Return a run before its first step; each step takes ``accumulation`` micro-batches of 2 rows."""
    train = {"gradient_accumulation_steps": accumulation, "num_steps": STEPS, "batch_size": 2} | case.train
    torch.set_num_threads(1)
    return tiny_run(case.label, torch.device("cpu"), case.settings, train, published=case.published, ranks=ranks)


def all_of(run: TinyRun) -> dict[str, torch.Tensor]:
    """Return the weights of a model, gathered; every process has to ask."""
    return {name: whole(p.detach()).clone() for name, p in run.loop.model.named_parameters()}


def seen(ranks: Ranks, case: Case, accumulation: int = 2) -> Seen:
    """Return what is seen of a whole run."""
    run = built(ranks, case, accumulation)
    began, norms, step = all_of(run), [], run.loop.stepping.take_step

    def noting(number: int, batches: Any) -> Any:
        taken = step(number, batches)
        norms.append(taken.grad_norm)
        return taken

    run.loop.stepping.take_step = noting  # type: ignore[method-assign]
    run.take(STEPS)
    held = {id(p) for group in run.loop.optimizer.param_groups for p in group["params"]}
    named = dict(run.loop.model.named_parameters())
    return Seen(
        losses=run.losses,
        norms=norms,
        weights=all_of(run),
        began=began,
        trained={name for name, p in named.items() if id(p) in held},
        draws=run.loop.method.proof().get("draws"),
        state_bytes=run.loop.optimizer.state_bytes()["device"],
        own_bytes=sum(local(p).untyped_storage().nbytes() for p in {id(p): p for p in named.values()}.values()),
    )


def all_seen(ranks: Ranks, cases: Mapping[str, Case], accumulation: int = 2) -> dict[str, Seen]:
    """Return what is seen of several runs, one after the other."""
    return {name: seen(ranks, case, accumulation) for name, case in cases.items()}


def alone(case: Case, accumulation: int = 2) -> Seen:
    """Return what one process sees of a run."""
    return seen(ALONE, case, accumulation)
