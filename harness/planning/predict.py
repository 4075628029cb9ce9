"""RunSpec -> Prediction: which steps of a run to look at, and what they say together.

Memory moves with the active blocks and with the state that their policy leaves behind. So the run's own draws are
walked first, without a forward pass; then the worst step is taken on fake tensors: with all state there, and with every
projector computed anew. Where nothing below the blocks is trained the backward pass ends at the lowest active one, and
activations are kept from there on: then the steps of the deepest and of the lowest blocks are both taken.

Of a run that several devices share it is what the first of them needs, which holds the largest parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.catalogue.datasets import DatasetSpec
from harness.catalogue.models import BaseModelSpec
from harness.device_profile import DeviceProfile
from harness.engine.ranks import Ranks
from harness.engine.step_memory import breakdown
from harness.errors import HarnessError, Refused
from harness.method import BlockScoreRequest
from harness.planning.allocator import CachingAllocator
from harness.planning.attention import Device
from harness.planning.cuda import blas_workspaces
from harness.planning.fake_ranks import fake_ranks
from harness.planning.fake_run import FakeRun
from harness.record_training import Horizon, MemoryBreakdown, Prediction
from harness.spec import RunSpec
from harness.tensors.causality import CAUSAL_ARCHITECTURES
from harness.tensors.optimizer_state import state_bytes_of
from harness.tensors.sharded import local
from harness.tensors.storage_tracker import Event, Span

CUDNN_FIRST = ("9", "10")
"""Major compute capabilities on which torch asks cuDNN's attention before its own. Source: as ``kernels`` has it."""
WALKED_CHANGES = 500
"""Changes of the active blocks that are walked: kept states are complete by then."""

Scores = Callable[[BlockScoreRequest], Sequence[float] | None]
"""Block scores where they are known, else None."""


@dataclass(frozen=True)
class Question:
    """What is asked beside the run itself."""

    device: Device
    horizon: Horizon = "run"
    compute_capability: str | None = None
    """``major.minor``; None: not known, and the workspaces of the newest devices are assumed."""
    num_steps: int | None = None
    """Optimizer steps of the run; None: not known."""
    profile: DeviceProfile | None = None
    """What was measured of the device, in place of what is assumed of it."""
    dataset: DatasetSpec | None = None
    """What the run trains on; None: not known, and its rows may differ in length."""
    num_ranks: int = 1
    """Devices that share the run."""

    @property
    def blas_workspaces(self) -> Sequence[int]:
        """Return the sizes of cuBLAS's work spaces."""
        measured = None if self.profile is None else self.profile.blas_workspace_bytes
        return blas_workspaces(self.compute_capability) if measured is None else [size for size in measured if size]


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
    streamed_bytes: int
    """Of state that was on the device at once within the step, and had left it before its end."""
    flops: int
    recomputed_flops: int


def predict(spec: RunSpec, model_spec: BaseModelSpec, question: Question, scores: Scores) -> Prediction:
    """Return what a run will need. Imports are outside its time where torch and transformers are loaded already.

    Raises:
        Refused: the method cannot take this model, these settings, or so many devices.
        HarnessError: the model's shape is not known.
    """
    return predict_and_tell(spec, model_spec, question, scores)[0]


def predict_and_tell(
    spec: RunSpec, model_spec: BaseModelSpec, question: Question, scores: Scores
) -> tuple[Prediction, bool]:
    """Return what :func:`predict` returns, and whether any draw of the run's seed has a say in it."""
    begin = time.perf_counter()
    try:
        found, drawn = _larger(spec, model_spec, question, scores)
    except (Refused, HarnessError):
        raise
    except Exception:  # sizes alone may not do: what is wrong with fake tensors too is raised from them
        if question.num_ranks > 1:
            raise
        found, drawn = _larger(spec, model_spec, question, scores, fake=True)
    return found.model_copy(update={"predict_seconds": time.perf_counter() - begin}), drawn


def _larger(
    spec: RunSpec, model_spec: BaseModelSpec, question: Question, scores: Scores, *, fake: bool = False
) -> tuple[Prediction, bool]:
    found, drawn, either = _predicted(spec, model_spec, question, scores, fake=fake)
    if either:
        lowest, _, _ = _predicted(spec, model_spec, question, scores, fake=fake, lowest=True)
        found = max(found, lowest, key=lambda one: one.peak_bytes)
    return found, drawn


def _predicted(
    spec: RunSpec,
    model_spec: BaseModelSpec,
    question: Question,
    scores: Scores,
    *,
    fake: bool = False,
    lowest: bool = False,
) -> tuple[Prediction, bool, bool]:
    """Return a prediction, whether the seed has a say, and whether it may be another with the ``lowest`` blocks."""
    with fake_ranks(question.num_ranks) as ranks:
        return _predicted_of(ranks, spec, model_spec, question, scores, fake=fake, lowest=lowest)


def _predicted_of(
    ranks: Ranks,
    spec: RunSpec,
    model_spec: BaseModelSpec,
    question: Question,
    scores: Scores,
    *,
    fake: bool,
    lowest: bool,
) -> tuple[Prediction, bool, bool]:
    """Return what :func:`_predicted` returns, of the first of some processes."""
    assumptions: list[str] = []

    def block_scores(request: BlockScoreRequest, num_blocks: int) -> Sequence[float]:
        found = scores(request)
        if found is None:
            if request.kind.startswith("alpha"):
                assumptions.append("exponents are not known yet: blocks were drawn with exponents that rise with depth")
                return [2.0 + 2.0 * block / num_blocks for block in range(num_blocks)]
            assumptions.append("block scores are not known yet: blocks were drawn with scores that fall with depth")
            return [float(num_blocks - block) for block in range(num_blocks)]
        return found

    run = FakeRun(
        spec,
        model_spec,
        device=question.device,
        num_steps=question.num_steps or 1,
        profile=question.profile,
        dataset=question.dataset,
        block_scores=block_scores,
        fake=fake,
        ranks=ranks,
    )
    assumptions += _assumptions(run, question)
    if run.quantized is not None:
        assumptions.append(run.quantized)
    before, probe_peak = _probe(run, question)
    horizon = question.horizon
    if horizon == "run" and run.method.draws_depend_on_training:
        horizon = "all-visited"
        assumptions.append("which blocks are drawn depends on the training itself: every block was taken as visited")
    elif horizon == "run" and question.num_steps is None:
        horizon = "all-visited"
        assumptions.append("the number of steps is not known: every block was taken as visited")
    step = _go_to_worst_step(run, horizon, question.num_steps, assumptions, lowest=lowest)
    either = horizon == "run" and run.method.samples_blocks and run.is_frozen_below_blocks()
    trainable = sum(parameter.numel() for parameter in run.active())
    last = question.num_steps - 1 if horizon == "run" and question.num_steps is not None else None
    steps = _Steps(run, question, before)
    state_before = run.optimizer.state_bytes()["device"]
    taken = [steps.take()]
    if taken[0].state_bytes > state_before and _go_on(run, last):
        taken.append(steps.take())
    steady = furthest = taken[-1]
    if _go_on(run, last) and run.let_refresh():
        taken.append(steps.take())
    if horizon == "all-visited" and question.num_steps != 1 and _reach_down(run):
        taken += [steps.take(), steps.take()]  # the state of a block that was dropped is there from the second on
        furthest = taken[-1]
    if getattr(run.optimizer, "reads_answered", 0):
        assumptions.append("the optimizer reads values of tensors in a step: each number read was taken as 1")
    inferred, inference_flops = _inference(run, steps, horizon, question.num_steps)
    worst = max((*taken, *inferred), key=lambda one: one.peak_bytes)
    prediction = Prediction(
        device=question.device,
        num_ranks=question.num_ranks,
        horizon=horizon,
        weights_bytes=run.tracker.alive()["weights"],
        gradients_bytes=max(one.gradients_bytes for one in taken),
        optimizer_state_bytes=steady.state_bytes,
        optimizer_state_host_bytes=run.optimizer.state_bytes()["host"],
        streamed_state_bytes=steady.streamed_bytes or None,
        peak_bytes=worst.peak_bytes,
        peak_phase=worst.moment,
        peak_step=step,
        at_peak=worst.at_peak,
        reserved_bytes=steps.allocator.peak_reserved if question.device == "cuda" else None,
        probe_peak_bytes=probe_peak,
        all_active_peak_bytes=_all_active(run, steps),
        trainable_params=trainable,
        flops_per_step=furthest.flops + inference_flops,
        recomputed_flops_per_step=furthest.recomputed_flops,
        predict_seconds=0.0,
        torch=torch.__version__,
        assumptions=tuple(assumptions),
        full_rank=run.full_rank,
        unprojected=run.unprojected,
    )
    return prediction, _seed_matters(run, horizon, question.num_steps), either


def _seed_matters(run: FakeRun, horizon: Horizon, num_steps: int | None) -> bool:
    """Return whether the seed's draws have a say: not where every block was visited, always so many at once."""
    if not run.method.samples_blocks:
        return False
    return horizon != "all-visited" or num_steps == 1 or run.method.may_activate_every_block()


class _Steps:
    """Takes steps of a fake run and replays them through the allocator of the device."""

    def __init__(self, run: FakeRun, question: Question, before: Sequence[Event] = ()) -> None:
        """Take a run, and what happened in it before the tracker's present span."""
        self._run = run
        self._cuda = question.device == "cuda"
        self.allocator = CachingAllocator()
        if self._cuda:
            for number, size in enumerate(question.blas_workspaces, 1):
                self.allocator.allocate(-number, size)
        self.before = (*before, *run.tracker.take().events)
        """What happened until now."""
        self._settle(self.before)

    def take(self) -> _Taken:
        """Take one step."""
        taken = self._watched(self._run.step)
        assert taken is not None
        return taken

    def infer(self) -> _Taken | None:
        """Make one of the method's own passes without gradients; None where it makes none."""
        return self._watched(self._run.infer)

    def _watched(self, act: Callable[[], Span | None]) -> _Taken | None:
        tracker = self._run.tracker
        before, before_recomputed = tracker.flops, tracker.recomputed_flops
        span = act()
        if span is None:
            return None
        at_peak = breakdown(span.peak.by_category)
        if self._cuda:
            extra = self.peak_of(span) - span.peak.num_bytes
            at_peak = at_peak.model_copy(update={"other_bytes": at_peak.other_bytes + extra})
        return _Taken(
            moment=span.peak.moment,
            peak_bytes=at_peak.total_bytes,
            at_peak=at_peak,
            gradients_bytes=_most_gradients(span),
            state_bytes=self._run.optimizer.state_bytes()["device"],
            streamed_bytes=_most_streamed(span),
            flops=tracker.flops - before,
            recomputed_flops=tracker.recomputed_flops - before_recomputed,
        )

    def peak_of(self, span: Span) -> int:
        """Return the peak over a span, in bytes of the device's allocator where it has one."""
        return self._replay(span) if self._cuda else span.peak.num_bytes

    def _settle(self, events: Sequence[Event]) -> None:
        """Allocate what is alive after events whose own peaks do not count."""
        freed = {event.storage for event in events if event.num_bytes < 0}
        for event in events:
            if event.num_bytes > 0 and event.storage not in freed:
                self.allocator.allocate(event.storage, event.num_bytes)

    def _replay(self, span: Span) -> int:
        """Return the peak of allocated bytes over a span."""
        self.allocator.peak_allocated = self.allocator.allocated
        for event in span.events:
            if event.num_bytes > 0:
                self.allocator.allocate(event.storage, event.num_bytes)
            elif event.num_bytes < 0:  # of a tensor without elements both events are 0, and it takes no block
                self.allocator.free(event.storage)
        return self.allocator.peak_allocated


def _probe(run: FakeRun, question: Question) -> tuple[Sequence[Event], int | None]:
    """Make a method's probe; return what happened until its end, and its peak. What it reserves is given back."""
    if run.method.probe_needed() is None:
        return (), None
    steps = _Steps(run, question)
    span = run.probe()
    assert span is not None
    return (*steps.before, *span.events), steps.peak_of(span)


def _inference(run: FakeRun, steps: _Steps, horizon: Horizon, num_steps: int | None) -> tuple[tuple[_Taken, ...], int]:
    """Make one of the method's own passes without gradients, where a step within the horizon makes any.

    Returns it, and the operations of such passes that fall upon one step, on average.
    """
    request = run.method.inference_needed()
    if request is None or horizon == "first" or (num_steps is not None and num_steps <= request.every_steps):
        return (), 0
    taken = steps.infer()
    assert taken is not None
    return (taken,), round(taken.flops * request.num_passes / request.every_steps)


def _go_to_worst_step(
    run: FakeRun, horizon: Horizon, num_steps: int | None, assumptions: list[str], *, lowest: bool
) -> int:
    """Bring a run to the step that needs most within the horizon; return its number.

    ``lowest`` says of which blocks where that is all that tells steps apart: of the lowest, else of the deepest.
    """
    run.draw(0)
    if horizon == "first" or num_steps == 1:
        return 0
    if horizon == "run":
        assert num_steps is not None
        return _walk(run, num_steps, assumptions, lowest=lowest)
    num_blocks, chosen = len(run.decoder.blocks), len(run.active_blocks())
    if chosen == 0 and not run.method.may_activate_every_block():
        return 0
    chosen = max(1, chosen)
    for start in range(0, num_blocks, chosen):
        if not run.visit([block % num_blocks for block in range(start, start + chosen)]):
            break
        run.give_state([parameter for parameter in run.active() if not run.has_state(parameter)])
    if run.method.samples_blocks and run.is_frozen_below_blocks():
        run.visit(range(num_blocks - chosen, num_blocks))
    return 0 if num_steps is None else num_steps - 1


def _reach_down(run: FakeRun) -> bool:
    """Make the first block an active one beside the deepest, where that keeps more; return whether it may.

    The deepest alone keep less in all, and more of it is there while their gradients are made.
    """
    active = run.active_blocks()
    if not active or 0 in active or not run.is_frozen_below_blocks():
        return False
    return run.visit([0, *active[1:]])


def _go_on(run: FakeRun, last: int | None) -> bool:
    """Go to a run's next step, with its draw; False after the ``last``. None: the same blocks go on without an end."""
    if last is None:
        return True
    if run.at_step >= last:
        return False
    run.draw(run.at_step + 1)
    return True


@dataclass(frozen=True)
class _Draw:
    """A step at which other blocks became active."""

    step: int
    num_bytes: int
    """Of state and gradients."""
    missing_bytes: int
    """Of state that is made only at the end of this step."""
    fresh: tuple[torch.Tensor, ...]
    """Parameters that are active for the first time; the walk has given them their state already."""
    depth: int
    """Sum of the active blocks' numbers: gradients of deep ones are there while more activations are."""
    lowest: int
    """Number of the lowest active block."""


def _walk(run: FakeRun, num_steps: int, assumptions: list[str], *, lowest: bool) -> int:
    """Walk a run's own draws to the step with the most state and gradients; return its number.

    Of several that one where all state is there, or will be in the next step; of these the one of
    the deepest blocks, or of the ``lowest``.
    """
    draws = _draws(run, num_steps)
    if len(draws) == WALKED_CHANGES:
        assumptions.append(f"only the first {WALKED_CHANGES} changes of the trained blocks were looked at")
    ends = [draw.step for draw in draws[1:]] + [num_steps]

    def complete(number: int) -> bool:
        return draws[number].missing_bytes == 0 or ends[number] - draws[number].step > 1

    def need(number: int) -> tuple[int, bool, int, bool, int]:
        draw = draws[number]
        place = -draw.lowest if lowest else draw.depth
        return draw.num_bytes, complete(number), place, draw.step + 1 < num_steps, draw.step

    number = max(range(len(draws)), key=need)
    worst = draws[number]
    if worst is not draws[-1]:
        run.reset()
        _draws(run, worst.step + 1)
    run.stand_at(worst.step)  # nothing was drawn since; steps may be left, in which projectors are computed anew
    if not complete(number):
        run.forget_state(worst.fresh)
    return worst.step


def _draws(run: FakeRun, num_steps: int) -> list[_Draw]:
    """Draw for steps 0 to ``num_steps`` - 1; return what each step that changed the active blocks would need.

    A parameter is given its state the first time that it is active, so that its size is known and a policy that keeps
    states has something to keep. Where the policy has dropped it since, it is made only in the step that is taken.
    """
    sizes: dict[torch.Tensor, int] = {}
    draws: list[_Draw] = []
    previous: list[int] = []
    for step in range(num_steps):
        run.draw(step)
        active = run.active()
        present = [id(parameter) for parameter in active]
        if present == previous:
            continue
        previous = present
        dropped = [parameter for parameter in active if parameter in sizes and not run.has_state(parameter)]
        fresh = tuple(parameter for parameter in active if parameter not in sizes)
        run.give_state(fresh)
        sizes |= {parameter: state_bytes_of(run.optimizer, parameter) for parameter in fresh}
        made = sum(sizes[parameter] for parameter in dropped)
        gradients = sum(local(parameter).numel() * parameter.element_size() for parameter in active)
        total = run.optimizer.state_bytes()["device"] + made + gradients
        missing, blocks = made + sum(sizes[parameter] for parameter in fresh), run.active_blocks()
        draws.append(_Draw(step, total, missing, fresh, sum(blocks), min(blocks, default=0)))
        if len(draws) == WALKED_CHANGES:
            break
    return draws


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


def _most_streamed(span: Span) -> int:
    """Return the most bytes at once of state that was brought over in a span and taken away again."""
    events = [event for event in span.events if event.category == "optimizer_state"]
    made = {event.storage for event in events if event.num_bytes > 0}
    passing = made & {event.storage for event in events if event.num_bytes < 0}
    live = most = 0
    for event in events:
        if event.storage in passing:
            live += event.num_bytes
            most = max(most, live)
    return most


def _assumptions(run: FakeRun, question: Question) -> list[str]:
    """Return what was taken for granted of rows, attention, and what devices that share a run send each other."""
    train, found = run.train, _gathering(run) if run.ranks.several else []
    if not train.packing:
        mask = ", under a mask, which this architecture needs where rows are padded" if run.masked else ""
        found.append(f"every row was taken as {train.sequence_length} tokens, the longest that there can be{mask}")
    if question.device == "cuda":
        config = run.model.config
        window = getattr(config, "sliding_window", None)
        masked = run.masked or (window is not None and train.sequence_length >= window)
        if question.profile is not None:
            found.append(f"constants of CUDA libraries as measured on {question.profile.device_name}")
        kind = str(getattr(config, "model_type", ""))
        if getattr(config, "_attn_implementation", None) == "eager":
            return [*found, f"{kind} has no attention but its own, which was taken operation by operation"]
        if kind not in CAUSAL_ARCHITECTURES:
            found.append(f"{kind} was taken to call attention as Llama and its kin do, which nobody measured")
        if train.dtype == "fp32":
            found.append("attention in fp32 was taken as on a CPU")
        elif not _is_measured(config, masked, question.profile):
            found += _kernel(masked, question.compute_capability)
    return found


def _gathering(run: FakeRun) -> list[str]:
    """Return what is not known of the weights that devices gather from each other."""
    size = max(sum(p.numel() * p.element_size() for p in block.parameters()) for block in run.decoder.blocks)
    what = "NCCL" if run.device == "cuda" else "gloo"
    found = [f"what {what} itself takes of a device's memory to send and receive is left out"]
    if run.device == "cuda":
        found.append(
            "weights of the next block are gathered while the present one is computed, on a stream of their own, which "
            f"was not measured: up to about the weights of one block, {size / 2**30:.2f} GiB, may come on top of the "
            "peak"
        )
    return found


def _is_measured(config: Any, masked: bool, profile: DeviceProfile | None) -> bool:
    """Return whether a profile holds the way in which a model calls attention."""
    heads = getattr(config, "num_attention_heads", None)
    if profile is None or heads is None:
        return False
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    grouped = not masked and getattr(config, "num_key_value_heads", heads) != heads  # repeated under a mask
    return profile.attention_constants(mask=masked, grouped=grouped, head_size=size) is not None


def _kernel(masked: bool, compute_capability: str | None) -> list[str]:
    """Return which kernel of attention was assumed, where it is not the one that torch takes for certain."""
    kernel = "memory-efficient kernel, under a mask" if masked else "flash attention"
    if compute_capability is not None and compute_capability.partition(".")[0] in CUDNN_FIRST:
        return [f"attention was taken as torch's {kernel}: at capability {compute_capability} torch may take cuDNN's"]
    return [f"attention was taken as torch's {kernel}"] if masked else []
