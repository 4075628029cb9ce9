"""RunSpec -> Prediction: which steps of a run to look at, and what they say together.

Memory moves with the active blocks and with the state that their policy leaves behind. So the run's own draws are
walked first, without a forward pass; then the worst step is taken on fake tensors: with all state there, and with every
projector computed anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from harness.engine.step_memory import breakdown, optimizer_state_bytes, state_bytes_of
from harness.engine.storage_tracker import Span
from harness.method import BlockScoreRequest
from harness.models import BaseModelSpec
from harness.planning.allocator import CachingAllocator
from harness.planning.attention import Device
from harness.planning.cuda import blas_workspaces
from harness.planning.fake_run import FakeRun
from harness.record import MemoryBreakdown, Prediction
from harness.suite import RunSpec

Horizon = Literal["first", "run", "all-visited"]

WALKED_CHANGES = 500
"""Changes of the active blocks that are walked: kept states are complete by then."""

Scores = Callable[[BlockScoreRequest], Sequence[float] | None]
"""Block scores where they are known, else None."""


@dataclass(frozen=True)
class Question:
    """What is asked beside the run itself."""

    device: Device
    horizon: Horizon = "run"
    device_name: str | None = None
    """As torch reports it; its workspaces are assumed."""
    num_steps: int | None = None
    """Optimizer steps of the run; None: not known."""


@dataclass(frozen=True)
class _Taken:
    """One optimizer step on fake tensors."""

    moment: str
    peak_bytes: int
    at_peak: MemoryBreakdown
    gradients_bytes: int
    """The most that were alive at once."""
    state_bytes: int
    """After the step."""
    flops: int
    recomputed_flops: int


def predict(spec: RunSpec, model_spec: BaseModelSpec, question: Question, scores: Scores) -> Prediction:
    """Return what a run will need. Imports are outside its time where torch and transformers are loaded already.

    Raises:
        Refused: the method cannot take this model or these settings.
        HarnessError: the model's shape is not known.
    """
    begin = time.perf_counter()
    assumptions = _assumptions(spec, model_spec, question)

    def block_scores(request: BlockScoreRequest, num_blocks: int) -> Sequence[float]:
        found = scores(request)
        if found is None:
            assumptions.append("block scores are not known yet: blocks were drawn with scores that fall with depth")
            return [float(num_blocks - block) for block in range(num_blocks)]
        return found

    run = FakeRun(
        spec, model_spec, device=question.device, num_steps=question.num_steps or 1, block_scores=block_scores
    )
    horizon = question.horizon
    if horizon == "run" and question.num_steps is None:
        horizon = "all-visited"
        assumptions.append("the number of steps is not known: every block was taken as visited")
    step = _go_to_worst_step(run, horizon, question.num_steps, assumptions)
    steps = _Steps(run, question)
    state_before = optimizer_state_bytes(run.optimizer)[0]
    taken = [steps.take()]
    if taken[0].state_bytes > state_before:
        taken.append(steps.take())
    steady = taken[-1]
    trainable = sum(parameter.numel() for parameter in run.active())
    if run.let_refresh():
        taken.append(steps.take())
    worst = max(taken, key=lambda one: one.peak_bytes)
    return Prediction(
        device=question.device,
        horizon=horizon,
        weights_bytes=steady.at_peak.weights_bytes,
        gradients_bytes=max(one.gradients_bytes for one in taken),
        optimizer_state_bytes=steady.state_bytes,
        peak_bytes=worst.peak_bytes,
        peak_phase=worst.moment,
        peak_step=step,
        at_peak=worst.at_peak,
        reserved_bytes=steps.allocator.peak_reserved if question.device == "cuda" else None,
        all_active_peak_bytes=_all_active(run, steps),
        trainable_params=trainable,
        flops_per_step=steady.flops,
        recomputed_flops_per_step=steady.recomputed_flops,
        predict_seconds=time.perf_counter() - begin,
        torch=torch.__version__,
        assumptions=tuple(assumptions),
    )


class _Steps:
    """Takes steps of a fake run and replays them through the allocator of the device."""

    def __init__(self, run: FakeRun, question: Question) -> None:
        self._run = run
        self._cuda = question.device == "cuda"
        self.allocator = CachingAllocator()
        if self._cuda:
            for number, size in enumerate(blas_workspaces(question.device_name), 1):
                self.allocator.allocate(-number, size)
        self._settle(run.tracker.take())

    def take(self) -> _Taken:
        """Take one step."""
        tracker = self._run.tracker
        before, before_recomputed = tracker.flops, tracker.recomputed_flops
        span = self._run.step()
        at_peak = breakdown(span.peak.by_category)
        if self._cuda:
            extra = self._replay(span) - span.peak.num_bytes
            at_peak = at_peak.model_copy(update={"other_bytes": at_peak.other_bytes + extra})
        return _Taken(
            moment=span.peak.moment,
            peak_bytes=at_peak.total_bytes,
            at_peak=at_peak,
            gradients_bytes=_most_gradients(span),
            state_bytes=optimizer_state_bytes(self._run.optimizer)[0],
            flops=tracker.flops - before,
            recomputed_flops=tracker.recomputed_flops - before_recomputed,
        )

    def _settle(self, span: Span) -> None:
        """Allocate what is alive after a span whose own peaks do not count."""
        freed = {event.storage for event in span.events if event.num_bytes < 0}
        for event in span.events:
            if event.num_bytes > 0 and event.storage not in freed:
                self.allocator.allocate(event.storage, event.num_bytes)

    def _replay(self, span: Span) -> int:
        """Return the peak of allocated bytes over a span."""
        self.allocator.peak_allocated = self.allocator.allocated
        for event in span.events:
            if event.num_bytes > 0:
                self.allocator.allocate(event.storage, event.num_bytes)
            else:
                self.allocator.free(event.storage)
        return self.allocator.peak_allocated


def _go_to_worst_step(run: FakeRun, horizon: Horizon, num_steps: int | None, assumptions: list[str]) -> int:
    """Bring a run to the step that needs most within the horizon; return its number."""
    run.draw(0)
    if horizon == "first" or num_steps == 1:
        return 0
    if horizon == "run":
        assert num_steps is not None
        return _walk(run, num_steps, assumptions)
    num_blocks, chosen = len(run.decoder.blocks), len(run.active_blocks())
    if chosen == 0 and not run.method.may_activate_every_block():
        return 0
    chosen = max(1, chosen)
    for start in range(0, num_blocks, chosen):
        if not run.visit([block % num_blocks for block in range(start, start + chosen)]):
            break
        run.give_state([parameter for parameter in run.active() if not run.has_state(parameter)])
    return 0 if num_steps is None else num_steps - 1


def _walk(run: FakeRun, num_steps: int, assumptions: list[str]) -> int:
    """Walk a run's own draws to the step with the most state and gradients; return its number."""
    totals = _draws(run, num_steps)
    if len(totals) == WALKED_CHANGES:
        assumptions.append(f"only the first {WALKED_CHANGES} changes of the trained blocks were looked at")
    worst = max(totals, key=lambda step: (totals[step], step))
    if worst != max(totals):
        run.reset()
        _draws(run, worst + 1)
    return worst


def _draws(run: FakeRun, num_steps: int) -> dict[int, int]:
    """Draw for steps 0 to ``num_steps`` - 1; return the bytes of state and gradients at each step that changed them.

    A parameter gets its state the first time that it is active. Where the policy has dropped it since, its size is
    counted, and the state itself made only in the step that is taken.
    """
    sizes: dict[torch.Tensor, int] = {}
    totals: dict[int, int] = {}
    previous: list[int] = []
    for step in range(num_steps):
        run.draw(step)
        active = run.active()
        present = [id(parameter) for parameter in active]
        if present == previous:
            continue
        previous = present
        run.give_state([parameter for parameter in active if parameter not in sizes])
        for parameter in active:
            if parameter not in sizes:
                sizes[parameter] = state_bytes_of(run.optimizer, parameter)
        missing = sum(sizes[parameter] for parameter in active if not run.has_state(parameter))
        gradients = sum(parameter.numel() * parameter.element_size() for parameter in active)
        totals[step] = optimizer_state_bytes(run.optimizer)[0] + missing + gradients
        if len(totals) == WALKED_CHANGES:
            break
    return totals


def _all_active(run: FakeRun, steps: _Steps) -> int | None:
    """Return the peak with every block active, for a method that may draw them all at once; else None."""
    if not (run.method.may_activate_every_block() and run.visit(range(len(run.decoder.blocks)))):
        return None
    return max(steps.take().peak_bytes for _ in range(2))


def _most_gradients(span: Span) -> int:
    live = most = span.start["gradients"]
    for event in span.events:
        if event.category == "gradients":
            live += event.num_bytes
            most = max(most, live)
    return most


def _assumptions(spec: RunSpec, model_spec: BaseModelSpec, question: Question) -> list[str]:
    train = spec.train
    assert train is not None
    found = []
    if not train.packing:
        found.append(f"every row was taken as {train.sequence_length} tokens, the longest that there can be")
    if question.device == "cuda" and train.dtype == "fp32":
        found.append("attention in fp32 was taken as on a CPU")
    window = model_spec.shape.sliding_window if model_spec.shape else None
    if window is not None and train.sequence_length > window:
        found.append(f"the sliding window of {window} tokens was left out")
    return found
