"""What is measured of a run beside its scores: every quantity once, with its unit, its meaning, and where it is shown.

Tables, terminal, report.json, runs.csv, ``harness show``, ``compare``, ``history``, ``paper`` and the definitions below
a report are made from ``ALL``, and none of them names a field of a record: a row here is all that a new quantity needs.
"""

from __future__ import annotations

from collections.abc import Callable

from harness.quantity import AS_NUMBERS, Judged, Quantity, Read, Shown
from harness.readings import (
    live_parts,
    live_peak_bytes,
    model_flops_utilization,
    predicted_peak_bytes,
    prediction_difference,
    run_peak_bytes,
    step_flops,
    step_seconds,
    tokens_per_second,
    trained,
)
from harness.record_training import Phase

TOO_FEW_STEPS = "too few steps"


def _phase(name: str, read: Callable[[Phase], float | None]) -> Read:
    return lambda record: None if (phase := record.phase(name)) is None else read(phase)


_all_params = trained(lambda train: train.total_params)

PEAK_MEMORY = Quantity(
    name="train_peak_bytes",
    title="peak memory",
    unit="bytes",
    read=run_peak_bytes,
    over_seeds="largest",
    shown=Shown(
        short="CUDA\npeak, GiB", csv="train_allocated_peak_bytes", needs_cuda=True, brief="peak", printed="Peak\n(GiB)"
    ),
    judged=Judged("peak_memory", "3%", "cuda"),
    definition="`torch.cuda.max_memory_allocated` over the whole train phase, no reset after warm-up, largest over the "
    "seeds, GiB = 2^30 bytes. Without CUDA it is not measured.",
)
RESERVED_MEMORY = Quantity(
    name="train_reserved_peak_bytes",
    title="reserved memory",
    unit="bytes",
    read=_phase("train", lambda phase: phase.reserved_peak_bytes),
    over_seeds="largest",
    shown=Shown(short="reserved,\nGiB", optional=True, brief="reserved", printed="Res.\n(GiB)"),
    judged=Judged("reserved_memory"),
    definition="the same of `torch.cuda.max_memory_reserved`: what the caching allocator held, in use or not, largest "
    "over the seeds.",
)
TRACKED_PEAK = Quantity(
    name="tracked_peak_bytes",
    title="tracked peak",
    unit="bytes",
    read=live_peak_bytes,
    over_seeds="largest",
    shown=Shown(short="tracked\npeak, GiB", brief="tracked", printed="Tracked\n(GiB)"),
    judged=Judged("tracked_peak", "3%", "cpu"),
    definition="the largest sum of live storages on the run's device, CUDA or CPU, that a tracker saw in the run's "
    "first steps, largest over the seeds. A storage that an operation makes and frees inside itself is not in it. A – "
    "stands where no step was tracked: the record is older than the tracker.",
)
TRACKED_WEIGHTS = Quantity(
    name="tracked_weights_bytes",
    title="weights at the tracked peak",
    unit="bytes",
    read=lambda record: None if (parts := live_parts(record)) is None else parts.weights_bytes,
    over_seeds="largest",
    shown=Shown(places=frozenset({"csv"}), csv="tracked_peak_weights_bytes", printed="Weights\n(GiB)"),
    judged=Judged("weights"),
    definition="parameters and buffers alive at the tracked peak, largest over the seeds.",
)
PREDICTED_PEAK = Quantity(
    name="predicted_peak_bytes",
    title="predicted peak",
    unit="bytes",
    read=predicted_peak_bytes,
    over_seeds="largest",
    of_any_run=True,
    shown=Shown(short="predicted\npeak, GiB", brief="predicted", printed="Pred.\n(GiB)"),
    judged=Judged("predicted_memory"),
    definition="what `harness plan` says of the run from its settings and shapes alone, largest over the seeds. A – "
    "stands where the run has no prediction; `harness show` says why.",
)
PREDICTED_AGAINST_MEASURED = Quantity(
    name="predicted_against_measured",
    title="predicted against measured",
    unit="difference",
    read=prediction_difference,
    over_seeds="farthest",
    shown=Shown(short="pred. less\nmeas., %", brief="difference", printed="Diff.\n(%)"),
    judged=Judged(better=None),
    definition="predicted peak less measured peak in % of the measured one, of the run that is farthest from zero. "
    "Measured is the peak memory on CUDA and the tracked peak on a CPU. A – stands where either is missing, the "
    "prediction is for another kind of device, or what was measured is not what was predicted: no row filled the "
    "sequence, or the tracked steps end before the predicted one.",
)
HOST_PEAK = Quantity(
    name="host_peak_bytes",
    title="host peak RSS",
    unit="bytes",
    read=_phase("train", lambda phase: phase.host_peak_bytes),
    over_seeds="largest",
    shown=Shown(short="host\nRSS, GiB", csv="train_host_peak_bytes", brief="host", printed="RSS\n(GiB)"),
    judged=Judged("host_memory"),
    definition="largest resident set of the run's process up to the end of training, loading of the model included, "
    "largest over the seeds. It is main memory, not GPU memory, and holds the libraries too.",
)
STEP_TIME = Quantity(
    name="step_seconds_mean",
    title="step time",
    unit="seconds",
    read=step_seconds,
    shown=Shown("step time, mean (s)", "step,\nmean s", absent=TOO_FEW_STEPS, of_cycle=True, printed="Step\n(s)"),
    judged=Judged("step_time", "2%"),
    definition="synchronised seconds of an optimizer step after the warm-up steps, resampling and projector refreshes "
    "included, loading of data left out; mean over the seeds. A `*` marks a run shorter than one refresh cycle.",
)
MEDIAN_STEP_TIME = Quantity(
    name="step_seconds_median",
    title="step time, median",
    unit="seconds",
    read=trained(lambda train: train.step_seconds_median),
    shown=Shown(short="step,\nmedian s", absent=TOO_FEW_STEPS, of_cycle=True, brief="median", printed="Median\n(s)"),
    definition="the median of the same steps, mean over the seeds.",
)
UPDATE_TIME = Quantity(
    name="optimizer_seconds_mean",
    title="updates in a step",
    unit="seconds",
    read=trained(lambda train: train.optimizer_seconds_mean),
    shown=Shown(short="updates,\ns a step", optional=True, of_cycle=True, brief="updates", printed="Upd.\n(s)"),
    judged=Judged("update_time"),
    definition="seconds of the step time that the updates take, projector refreshes among them, mean over the seeds.",
)
REFRESH_TIME = Quantity(
    name="refresh_seconds",
    title="projector refreshes",
    unit="seconds",
    read=trained(lambda train: train.refresh_seconds),
    shown=Shown(short="refreshes,\ns", optional=True, of_cycle=True, brief="refreshes", printed="Refr.\n(s)"),
    judged=Judged("refresh_time"),
    definition="seconds of all projector refreshes of a run together, mean over the seeds.",
)
SPEED = Quantity(
    name="tokens_per_second",
    title="tokens a second",
    unit="tokens/s",
    read=tokens_per_second,
    shown=Shown(
        "tokens a second", "tokens\na second", absent=TOO_FEW_STEPS, of_cycle=True, brief="tokens", printed="Tok.\n/s"
    ),
    judged=Judged(better="larger"),
    definition="mean tokens of a step after the warm-up, padding left out, over the mean step time.",
)
STEP_OPERATIONS = Quantity(
    name="flops_per_step",
    title="operations a step",
    unit="FLOP",
    read=step_flops,
    shown=Shown(short="TFLOP\na step", brief="flops", printed="TFLOP\n/step"),
    judged=Judged(better=None),
    definition="floating-point operations that a step of the method needs by the prediction, a multiply-add being two, "
    "attention counted without regard to the causal mask, what checkpointing computes again and projector refreshes "
    "left out; scaled by the tokens there were.",
)
UTILIZATION = Quantity(
    name="model_flops_utilization",
    title="MFU",
    unit="fraction",
    read=model_flops_utilization,
    shown=Shown(short="MFU,\n%", of_cycle=True, printed="MFU\n(%)"),
    judged=Judged("mfu", better="larger"),
    definition="those operations a second over the device's stated dense peak for the dtype of the weights (`harness "
    "list devices`); a – where the device's peak is not known.",
)
STEP_PARAMETERS = Quantity(
    name="trainable_params_mean",
    title="trainable parameters a step",
    unit="parameters",
    read=trained(lambda train: train.trainable_params_mean),
    shown=Shown(
        "trainable parameters a step", "trained\na step, M", whole=_all_params, brief="trainable", printed="Train.\n(M)"
    ),
    judged=Judged(better=None),
    definition="parameters that required a gradient, mean over the steps. In brackets the share of all parameters.",
)
PARAMETERS_EVER = Quantity(
    name="trainable_params_ever",
    title="trainable parameters ever",
    unit="parameters",
    read=trained(lambda train: train.trainable_params_ever),
    over_seeds="largest",
    shown=Shown("trainable parameters ever", "trained\never, M", whole=_all_params, brief="ever", printed="Ever\n(M)"),
    judged=Judged(better=None),
    definition="those that required a gradient at any step, largest over the seeds.",
)
OPTIMIZER_STATE = Quantity(
    name="peak_optimizer_state_bytes",
    title="optimizer state, peak",
    unit="bytes",
    read=trained(lambda train: train.peak_optimizer_state_bytes),
    over_seeds="largest",
    shown=Shown(short="optim.\nstate, GiB", brief="state", printed="State\n(GiB)"),
    judged=Judged("optimizer_state", "1%"),
    definition="largest size of the optimizer's state after a step, in GiB, largest over the seeds.",
)
EVALUATION_TIME = Quantity(
    name="evaluate_seconds",
    title="evaluation time",
    unit="seconds",
    read=_phase("evaluate", lambda phase: phase.seconds),
    shown=Shown(places=frozenset({"json", "csv", "show"}), printed="Eval.\n(s)"),
    judged=Judged("evaluation_time"),
    definition="seconds of the whole evaluation, mean over the seeds.",
)
HELD_OUT_BEFORE = Quantity(
    name="validation_loss_before",
    title="held-out loss before training",
    unit="nats",
    read=trained(lambda train: train.validation_loss_before),
    shown=Shown(places=AS_NUMBERS, brief="loss_before", printed="Loss\nbefore"),
    judged=Judged(better=None),
    definition="the held-out loss of the model as it came.",
)
HELD_OUT_LOSS = Quantity(
    name="validation_loss_after",
    title="held-out loss",
    unit="nats",
    read=trained(lambda train: train.validation_loss_after),
    before=HELD_OUT_BEFORE,
    shown=Shown(
        "held-out loss, before -> after (nats)", "held-out loss,\nbefore -> after", optional=True, printed="Loss"
    ),
    judged=Judged("loss", "1%", "cpu"),
    definition="mean cross-entropy in nats on one fixed batch that is not trained on, before and after training.",
)
GENERAL_BEFORE = Quantity(
    name="general_loss_before",
    title="general text loss before training",
    unit="nats",
    read=trained(lambda train: train.general_loss_before),
    shown=Shown(places=AS_NUMBERS, brief="general_before", printed="General\nbefore"),
    judged=Judged(better=None),
    definition="the general text loss of the model as it came.",
)
GENERAL_LOSS = Quantity(
    name="general_loss_after",
    title="general text loss",
    unit="nats",
    read=trained(lambda train: train.general_loss_after),
    before=GENERAL_BEFORE,
    shown=Shown(
        "general text loss, before -> after (nats)",
        "general loss,\nbefore -> after",
        optional=True,
        brief="general",
        printed="General\nloss",
    ),
    judged=Judged("general_loss"),
    definition="the same on a fixed text that no label is trained on; where it rises, training has cost the model "
    "something else. It is there where the suite names such a text.",
)

ALL: tuple[Quantity, ...] = (
    PEAK_MEMORY,
    RESERVED_MEMORY,
    TRACKED_PEAK,
    TRACKED_WEIGHTS,
    PREDICTED_PEAK,
    PREDICTED_AGAINST_MEASURED,
    HOST_PEAK,
    STEP_TIME,
    MEDIAN_STEP_TIME,
    UPDATE_TIME,
    REFRESH_TIME,
    SPEED,
    STEP_OPERATIONS,
    UTILIZATION,
    STEP_PARAMETERS,
    PARAMETERS_EVER,
    OPTIMIZER_STATE,
    EVALUATION_TIME,
    HELD_OUT_BEFORE,
    HELD_OUT_LOSS,
    GENERAL_BEFORE,
    GENERAL_LOSS,
)
"""In the order of the columns."""
