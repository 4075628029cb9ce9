"""What training did and cost, measured and predicted, as a record says it."""

from __future__ import annotations

from typing import Literal

from harness.record_part import Part

Horizon = Literal["first", "run", "all-visited"]
"""Which steps of a run a prediction looks at."""


class Phase(Part):
    """One phase under its own memory meter."""

    name: str
    """load, data, block_scores, prepare, validate_before, general_before, train, probe, validate_during,
    validate_after, general_after, finalize, save, evaluate, answer, merge. ``probe`` and ``validate_during`` are all
    that interrupted ``train``: in no figure of it but ``host_peak_bytes``."""
    seconds: float
    allocated_peak_bytes: int | None = None
    """``torch.cuda.max_memory_allocated`` over the phase, the largest of all its laps; None without CUDA."""
    reserved_peak_bytes: int | None = None
    allocator_retries: int | None = None
    """Allocations in the phase that succeeded only after cached blocks were freed."""
    device_peak_bytes: int | None = None
    """Largest use of the whole device, other processes' included, sampled through NVML."""
    device_sample_seconds: float | None = None
    host_peak_bytes: int | None = None
    """Largest resident set of the child process up to the end of this phase (``ru_maxrss``)."""


class BlockActivity(Part):
    """Which decoder blocks were trainable from one step on, until the next entry."""

    step: int
    blocks: tuple[int, ...]


class StepCurve(Part):
    """Per optimizer step, in order; step 0 first."""

    loss: tuple[float, ...]
    """Mean cross-entropy over the trained tokens of the whole accumulated batch, nats."""
    learning_rate: tuple[float, ...]
    """Of the first group of parameters: of all, where no group has a rate of its own."""
    group_learning_rates: tuple[tuple[float, ...], ...] = ()
    """Of every group, in the optimizer's order; empty where all have one rate."""
    grad_norm: tuple[float | None, ...]
    """Global norm before clipping; None where it was not taken."""
    trained_tokens: tuple[int, ...]
    """Tokens that carried loss."""
    tokens: tuple[int, ...]
    """Tokens that went through the model, padding left out."""
    seconds: tuple[float, ...]
    """Synchronised wall-clock seconds, data loading left out."""
    optimizer_seconds: tuple[float, ...] = ()
    """Of these, those of the updates, wherever in the step they are made, projector refreshes among them: on CUDA by
    events on the stream."""
    trainable_params: tuple[int, ...]
    optimizer_state_bytes: tuple[int, ...]
    """On the device, after the step."""
    optimizer_state_host_bytes: tuple[int, ...] = ()
    truncated_rows: tuple[int, ...] = ()
    """Rows that lost tokens to ``sequence_length``; packed rows are cut from a stream and lose none."""
    allocated_peak_bytes: tuple[int, ...] = ()
    """``torch.cuda.max_memory_allocated`` over each step; empty without CUDA."""
    reserved_peak_bytes: tuple[int, ...] = ()
    """``torch.cuda.max_memory_reserved`` over each step; empty without CUDA."""
    peak_moments: tuple[str, ...] = ()
    """In which moment of the step the allocated peak came: resample, inference, forward, backward, observe, clip or
    optimizer."""


NO_NUMBERS = frozenset({"group_learning_rates", "peak_moments"})
"""What of a curve holds something else than one number a step."""


class MemoryBreakdown(Part):
    """What the bytes alive at one moment are, each storage counted once and whole."""

    weights_bytes: int
    """Parameters and buffers, adapters included."""
    gradients_bytes: int
    """Gradients of parameters."""
    optimizer_state_bytes: int
    """Moments, projectors and fp32 masters on the device."""
    activations_bytes: int
    """All else that the forward and the backward pass make: kept inputs, logits, gradients of activations."""
    other_bytes: int
    """Inputs, temporaries of optimizer, clipping and projector, workspaces of libraries."""

    @property
    def total_bytes(self) -> int:
        """Return the sum."""
        return (
            self.weights_bytes
            + self.gradients_bytes
            + self.optimizer_state_bytes
            + self.activations_bytes
            + self.other_bytes
        )


class TrackedPeak(Part):
    """The largest sum of live storages that the tracker saw; measured, on any device, but only on tracked steps.

    Storages that an operation makes and frees inside itself are not in it.
    """

    steps: tuple[int, ...]
    """Steps that were tracked; their times are no part of the step time."""
    step: int
    moment: str
    at_peak: MemoryBreakdown


class OutOfMemoryAt(Part):
    """Where memory ran out, and what was alive right then, as far as it is known."""

    phase: str
    step: int | None = None
    """None outside the steps of training, as are the figures."""
    moment: str | None = None
    """resample, inference, forward, backward, observe, clip or optimizer."""
    weights_bytes: int | None = None
    gradients_bytes: int | None = None
    optimizer_state_bytes: int | None = None
    """On the device."""
    rest_bytes: int | None = None
    """Activations and all else: allocated bytes less the three. None where nobody counts them: on a CPU after the
    tracked steps."""
    tracked: MemoryBreakdown | None = None
    """What the tracker knew, on a tracked step."""


class Prediction(Part):
    """What ``harness plan`` says of a run, from its settings and shapes alone."""

    device: Literal["cuda", "cpu"]
    """Whose attention, workspaces and allocator were assumed."""
    num_ranks: int = 1
    """Devices that share the run: bytes and operations are of the one that holds most."""
    horizon: Horizon
    weights_bytes: int
    """What stays on a device: weights that are gathered for a pass are in ``at_peak`` alone."""
    gradients_bytes: int
    """The most gradient bytes that coexist under the update mode; where several devices share the run, of what stays on
    one after gradients are summed over them."""
    optimizer_state_bytes: int
    """After the step that was predicted."""
    optimizer_state_host_bytes: int | None = None
    """On the host, after that step; None of records that are older than this figure."""
    streamed_state_bytes: int | None = None
    """The most state that was on the device in that step beside ``optimizer_state_bytes``: of blocks whose state comes
    over from the host for their update; None where no state moves in a step."""
    peak_bytes: int
    peak_phase: str
    """Moment of the step: resample, inference, forward, backward, observe, clip or optimizer."""
    peak_step: int
    at_peak: MemoryBreakdown
    reserved_bytes: int | None = None
    """What the caching allocator would hold; None on a CPU."""
    probe_peak_bytes: int | None = None
    """Of the probe before the first step, which ``peak_bytes`` leaves out, as a phase of its own; None without one."""
    all_active_peak_bytes: int | None = None
    """Under coin flips: the peak should every block be drawn at once."""
    trainable_params: int
    """In the step that was predicted, of the whole model."""
    flops_per_step: int
    """Floating-point operations that one optimizer step needs of each device, a multiply-add being two, recomputation
    left out; those of a method's own passes without gradients are spread over the steps."""
    recomputed_flops_per_step: int
    """What checkpointing computes again, on each device."""
    predict_seconds: float
    torch: str
    """Version that the prediction ran."""
    assumptions: tuple[str, ...] = ()
    """Sentences on what was not known and assumed."""
    full_rank: tuple[str, ...] = ()
    """Matrices that the method's rank does not reduce, as it declares."""
    unprojected: tuple[str, ...] = ()
    """Tensors of the blocks that its projection leaves out, as it declares."""

    @property
    def static_bytes(self) -> int:
        """Return weights, coexisting gradients and optimizer state, with what of it comes over for updates."""
        states = self.optimizer_state_bytes + (self.streamed_state_bytes or 0)
        return self.weights_bytes + self.gradients_bytes + states


class ProbeResult(Part):
    """What a method looked at before the first step: passes forward and backward without an update."""

    num_batches: int
    num_passes: int
    """One a batch, or one a micro-batch."""
    each_micro_batch: bool
    """Whether the gradients of every micro-batch were taken by themselves."""
    consumed_rows: bool
    """Whether training went on behind the rows; else it saw them again."""
    trained_tokens: int
    seconds: float
    """Synchronised; in no step's time."""
    tracked_peak: TrackedPeak | None = None
    """Of the first pass; its step is the pass."""


class QuantizedWeights(Part):
    """The base model's packed layers, as they were held."""

    kind: str
    """``nf4``."""
    double: bool
    """Whether their constants are quantized too."""
    num_layers: int
    num_params: int
    """Weights that they stand for."""
    packed_bytes: int
    constants_bytes: int
    """Of the constants of blocks, their mean and the code books: among no parameters and no buffers."""
    version: str
    """Of bitsandbytes."""


class RankFigures(Part):
    """What training took on one of the devices that shared it out."""

    rank: int
    weights_bytes: int
    """Of the parts of the weights that it holds."""
    peak_optimizer_state_bytes: int
    """On the device."""
    peak_optimizer_state_host_bytes: int
    tracked_peak: TrackedPeak | None = None
    allocated_peak_bytes: int | None = None
    """Of the allocator within the steps of training; None without CUDA."""
    reserved_peak_bytes: int | None = None
    host_peak_bytes: int | None = None
    """Largest resident set of its process up to the end of training."""


class TrainResult(Part):
    """What training did and cost; on several devices memory is that of the one that took most, time that of the
    slowest."""

    num_steps: int
    curve: StepCurve
    block_activity: tuple[BlockActivity, ...]
    num_blocks: int
    step_seconds_mean: float | None
    """Total time over number of steps after the warm-up; None when no step is left after it."""
    step_seconds_median: float | None
    optimizer_seconds_mean: float | None = None
    """Seconds of the updates of a step after the warm-up, mean; None of records that are older than this figure."""
    num_timed_steps: int
    covers_refresh_cycle: bool | None = None
    """False marks a run too short to hold one whole projector-refresh cycle; None for methods without one."""
    refresh_seconds: float | None = None
    data_seconds: float
    checkpoint_seconds: float | None = None
    """Writing checkpoints; in no step's time."""
    resumed_at_steps: tuple[int, ...] = ()
    """Steps at which the run went on from a checkpoint."""
    other_ranks_before_step: int = 0
    """Steps before it were taken by another number of devices, whose memory and time the curve has there; peaks and
    the time of a step are those of the steps since."""
    trainable_params_mean: float
    """Parameters that required grad, mean over steps."""
    trainable_params_ever: int
    total_params: int
    """Weights, those of packed layers as what they stand for."""
    quantized: QuantizedWeights | None = None
    """None: no layer is packed."""
    ranks: tuple[RankFigures, ...] | None = None
    """Of each device, where several shared the run out and could be asked: not where one failed by itself."""
    peak_optimizer_state_bytes: int
    tracked_peak: TrackedPeak | None = None
    offloaded_checkpoint_bytes: int | None = None
    """The most that inputs of checkpointed blocks took on the host at once; None where they stay on the device."""
    probe: ProbeResult | None = None
    validation_loss_before: float | None = None
    validation_loss_after: float | None = None
    validation_tokens: int | None = None
    validation_steps: tuple[int, ...] = ()
    """Optimizer steps done at each reading of the held-out loss, 0 and the last among them."""
    validation_losses: tuple[float, ...] = ()
    """The reading at each of ``validation_steps``, nats."""
    general_loss_before: float | None = None
    """Mean cross-entropy on the suite's general text, which is never trained on, nats."""
    general_loss_after: float | None = None
    general_tokens: int | None = None
