"""Training that several devices share, beside the same training by one process on one of them.

Every process takes the steps alone first, on its own device, and then its part of them with the others. With two
processes on a CPU both ways add the same numbers in the same order, so that they must be equal to the bit.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from harness.calibration.bench import Bench, Found, Skip
from harness.calibration.methods import TOLERANCE
from harness.calibration.tiny import MODEL, STEPS, TinyRun, differences, label_with, tiny_run, tiny_spec
from harness.calibration_log import Reading
from harness.catalogue.labels import load_labels
from harness.catalogue.models import BaseModelSpec
from harness.engine.ranks import ALONE, Ranks
from harness.errors import HarnessError, Refused
from harness.planning.predict import Question, predict
from harness.tensors.optimizer_state import on_every_parameter
from harness.tensors.sharded import in_rank_order, local, whole

TAKEN = 2 * STEPS
"""Optimizer steps, in which blocks are drawn and projectors computed three times."""
OF_MOVEMENT = 1e-2
"""Largest distance of weights, of the distance that they moved; where sums are taken in another order. Chosen by us."""
SHARES = (0.9, 1.1)
"""Bounds of a bf16 gradient, to one process's: rounding is below 0.01, a mean over two processes is at 0.5."""


@dataclass(frozen=True)
class Kind:
    """A way of training, found by the settings of a method that has it."""

    settings: tuple[str, ...]
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Return the first label that trains so."""
        return label_with(*self.settings)


KINDS = {
    "every weight": Kind(("adamw_rule",)),
    "adapters": Kind(("lora_dropout",)),
    "drawn blocks": Kind(("state_policy", "active_layers")),
    "usual side": Kind(("projector",), {"projection_side": "reference"}),
    "other side": Kind(("projector",), {"projection_side": "smaller"}),
}
"""Each of the last two projects some matrices from the left and some from the right."""


def steps_of(bench: Bench, kind: str | None) -> Found:
    """Compare steps that processes share with those of one: their losses, and the weights that they lead to.

    Raises:
        HarnessError: they are too far apart, or the steps moved nothing.
        Deserted: another process is gone.
    """
    assert kind is not None
    losses, began, weights = _taken(bench, kind, ALONE)
    with bench.joined(kind) as ranks:
        shared_losses, _, shared = _taken(bench, kind, ranks)
    moved, apart = _distance(weights, began), _distance(shared, weights)
    if moved == 0.0:
        raise HarnessError(f"{TAKEN} steps of '{KINDS[kind].label}' changed no weight")
    exact = _to_the_bit(bench)
    of_losses = Reading(
        name="losses, to one process",
        value=differences(shared_losses, losses),
        unit="relative",
        at_most=0.0 if exact else TOLERANCE,
    )
    of_weights = Reading(
        name="weights, to one process, of their movement",
        value=apart / moved,
        unit="relative",
        at_most=0.0 if exact else OF_MOVEMENT,
    )
    return _judged(bench, of_losses, of_weights)


def gradients_in_bf16(bench: Bench, _: str | None) -> Found:
    """See that bf16 gradients are sums over the processes: NCCL makes zeros of them where it is asked in another way.

    Source: github.com/pytorch/pytorch/issues/190745.

    Raises:
        HarnessError: they are none.
        Deserted: another process is gone.
    """
    alone = _largest_gradients(bench, ALONE)
    with bench.joined("gradients") as ranks:
        own = _largest_gradients(bench, ranks)
        shared = in_rank_order(own).amax(dim=0)
    seen = alone > 0
    if not bool(seen.any()):
        raise HarnessError("no tensor has a gradient in one process either")
    shares = (shared[seen] / alone[seen]).tolist()
    low, high = SHARES
    return _judged(
        bench,
        Reading(name="largest gradients, to one process's, least", value=min(shares), unit="ratio", at_least=low),
        Reading(name="largest gradients, to one process's, most", value=max(shares), unit="ratio", at_most=high),
    )


def memory(bench: Bench, _: str | None) -> Found:
    """Return the peak of each process beside what is predicted of the first, which holds the largest parts.

    The processes have done nothing else before, so that work spaces of CUDA's libraries are made here, as in a run.

    Raises:
        Deserted: another process is gone.
    """
    model_spec = _model(bench)
    readings: list[Reading] = []
    for kind in ("every weight", "drawn blocks"):
        with bench.joined(f"memory of {kind}") as ranks:
            with _allocated(bench) as allocated:
                run = _run(kind, bench, ranks, model_spec, "bf16")
                run.take(TAKEN)
            assert run.loop.memory.tracked_peak is not None
            own = {"tracked": run.loop.memory.tracked_peak.at_peak.total_bytes, **allocated}
            peaks = [json.loads(words) for words in ranks.exchange(json.dumps(own))]
        if bench.rank == 0:
            planned = {"expected": _predicted(bench, run, kind, model_spec), "expected_by": "planner"}
            readings += [
                Reading(name=f"{kind}, {what} peak of rank {rank}", value=one[what], unit="bytes", **planned)
                for what in own
                for rank, one in enumerate(peaks)
            ]
        del run
        gc.collect()
    return Found(tuple(readings))


def _taken(bench: Bench, kind: str, ranks: Ranks) -> tuple[list[float], list[torch.Tensor], list[torch.Tensor]]:
    """Return losses, and all of the weights before and after, on the CPU."""
    run = _run(kind, bench, ranks)
    began = _weights(run)
    return list(run.take(TAKEN)), began, _weights(run)


def _run(kind: str, bench: Bench, ranks: Ranks, model_spec: BaseModelSpec = MODEL, dtype: str = "fp32") -> TinyRun:
    """Return a run whose steps take a micro-batch of each process.

    Raises:
        Skip: so many processes cannot share the model.
    """
    train = {"gradient_accumulation_steps": bench.num_ranks, "num_steps": TAKEN, "dtype": dtype}
    one = KINDS[kind]
    try:
        return tiny_run(
            one.label, bench.device, one.values, train, ranks=ranks, model_spec=model_spec, tracked_steps=TAKEN
        )
    except Refused as refused:
        raise Skip(str(refused)) from refused


def _weights(run: TinyRun) -> list[torch.Tensor]:
    return [whole(p.detach()).to("cpu", copy=True) for p in run.loop.model.parameters()]


def _distance(ones: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """Return the root of the sum of squares of all differences, in fp64."""
    squares = (float((a.double() - b.double()).square().sum()) for a, b in zip(ones, others, strict=True))
    return float(sum(squares) ** 0.5)


def _largest_gradients(bench: Bench, ranks: Ranks) -> torch.Tensor:
    """Return the largest number of each tensor's gradient in the first step, (tensors,), fp32, of this process's part.

    In the backward pass of one process gradients of its micro-batches add up, so that the last one seen is the sum.
    """
    run = _run("every weight", bench, ranks, dtype="bf16")
    parameters = [p for group in run.loop.optimizer.param_groups for p in group["params"]]
    places = {id(p): place for place, p in enumerate(parameters)}
    seen = torch.zeros(len(parameters), device=local(parameters[0]).device)

    def note(parameter: torch.Tensor) -> None:
        if parameter.grad is not None and local(parameter.grad).numel():
            seen[places[id(parameter)]] = local(parameter.grad).abs().max().float()

    hooks = on_every_parameter(run.loop.optimizer, note)
    run.take(1)
    for hook in hooks:
        hook.remove()
    return seen


def _judged(bench: Bench, *readings: Reading) -> Found:
    """Return readings that every process has alike.

    Raises:
        HarnessError: one is out of its bounds; the first process says so for all.
    """
    missed = [reading for reading in readings if not reading.reached]
    if missed and bench.rank == 0:
        one = missed[0]
        bounds = " and ".join(
            f"{word} {bound:g}"
            for word, bound in (("at least", one.at_least), ("at most", one.at_most))
            if bound is not None
        )
        raise HarnessError(f"{bench.num_ranks} processes: {one.name}: {one.value:.3g}, which should be {bounds}")
    return Found(readings)


def _to_the_bit(bench: Bench) -> bool:
    """Return whether both ways do the same: a sum of two has one order, and a CPU's kernels have one too."""
    return not bench.cuda and bench.num_ranks == 2


@contextmanager
def _allocated(bench: Bench) -> Iterator[dict[str, int]]:
    """Yield where the peak of CUDA's allocator, work spaces among it, stands after the ``with``; empty on a CPU."""
    peaks: dict[str, int] = {}
    if not bench.cuda:
        yield peaks
        return
    counters = bench.counters()
    counters.reset_peaks()
    yield peaks
    counters.synchronize()
    peaks["allocated"] = counters.peaks().allocated_bytes


def _predicted(bench: Bench, run: TinyRun, kind: str, model_spec: BaseModelSpec) -> int:
    """Return the peak that planning says of the first process; no process is in a group any more."""
    label = KINDS[kind].label
    entry = load_labels().get(label)
    spec = tiny_spec(run, label, label if entry is None else entry.method, model_spec)
    capability = None
    if bench.cuda and torch.version.hip is None:
        capability = ".".join(map(str, torch.cuda.get_device_capability(bench.device)))
    question = Question(
        "cuda" if bench.cuda else "cpu",
        compute_capability=capability,
        num_steps=TAKEN,
        num_ranks=bench.num_ranks,
    )
    return predict(spec, model_spec, question, lambda request: None).peak_bytes


def _model(bench: Bench) -> BaseModelSpec:
    """Return a model whose weights are more than the work spaces of a device."""
    if bench.sizes == "smoke":
        return MODEL
    assert MODEL.shape is not None
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_layers": 8, "num_heads": 16, "num_kv_heads": 8}
    shape = MODEL.shape.model_copy(update={**sizes, "head_dim": 64, "vocab_size": 32000})
    return MODEL.model_copy(update={"name": "small", "shape": shape})
