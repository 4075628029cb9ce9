"""The record of one run: what was asked, what came out, where, and the proof that the method was on.

Names of measurements end in their unit. What was not measured is None. A record validates without its method, without
torch, and for ever: a change of layout raises ``SCHEMA_VERSION`` and adds a step to ``harness.record_versions``.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
)

from harness.beside import Beside
from harness.declaration import Declaration
from harness.redaction import redacted
from harness.settings import ComputeCapability, EvaluationSettings, Name, TrainSettings
from harness.spec import RunSpec, identity

SCHEMA_VERSION = 5
LOG_LINES = 40
"""How many of the last lines of a process that failed are kept."""
LONGEST_TEXT = 1 << 18
"""Characters of a text in a record; a log that is longer is cut."""

Status = Literal["ok", "unproven", "refused", "out_of_memory", "diverged", "failed", "timed_out", "interrupted"]
"""``unproven``: it ended, but its proof fails, so that its figures are not those of the method that was asked for."""
Horizon = Literal["first", "run", "all-visited"]
"""Which steps of a run a prediction looks at."""
OUTCOMES: frozenset[str] = frozenset({"ok", "unproven", "refused", "out_of_memory", "diverged"})
"""Statuses that are answers: not run again unless ``--retry`` asks for it."""


def _shortened(text: object) -> object:
    """Return the end of a text that is too long: the last lines of a log say most."""
    return f"…{text[-LONGEST_TEXT + 1 :]}" if isinstance(text, str) and len(text) > LONGEST_TEXT else text


Sentence = Annotated[str, BeforeValidator(_shortened), AfterValidator(redacted)]
"""What libraries and servers may have had a say in: without keys."""


class _Part(BaseModel):
    # As strings, infinities are read again; as null, which JSON has for them, they would spoil the whole record.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", str_max_length=LONGEST_TEXT)


class Environment(_Part):
    """Where a run took place."""

    device_type: Literal["cpu", "cuda"]
    device_name: str
    compute_capability: ComputeCapability | None = None
    """Of an NVIDIA device; None on others, and in records older than the field."""
    device_memory_bytes: int | None
    driver: str | None
    num_threads: int
    """CPU threads of torch: results on a CPU depend on them."""
    platform: str
    python: str
    packages: dict[str, str]
    """Versions of harness, torch, transformers, peft, lm-eval and what else can move a number."""
    source_checksum: str
    """SHA-256 over the harness's own Python and TOML files, so that an installed wheel and a checkout agree."""
    commit: str | None = None
    """Git commit of the checkout the harness ran from; None outside a checkout."""
    dirty: bool | None = None
    device_busy: str | None = None
    """What else used the device at the start; None: nothing seen, or nothing to ask."""

    @property
    def environment_id(self) -> str:
        """Return the identity of what can move a number."""
        rest = {"device_memory_bytes": self.device_memory_bytes, "packages": self.packages}
        return identity(self.told_by_name() | rest)

    def told_by_name(self) -> dict[str, Any]:
        """Return what can move a number beside the packages and the size of the memory, as JSON.

        The commit is left out, as the source checksum stands for it; so is the compute capability, as the device's name
        does and older records lack it.
        """
        of_another_kind = {"packages", "device_memory_bytes"}
        moves_none = {"commit", "dirty", "device_busy", "platform", "compute_capability"}
        return self.model_dump(mode="json", exclude=of_another_kind | moves_none)

    @property
    def on_cuda(self) -> bool:
        """Return whether the device is one of CUDA."""
        return self.device_type == "cuda"

    @property
    def gpu_name(self) -> str | None:
        """Return what torch calls the CUDA device; None on a CPU."""
        return self.device_name if self.on_cuda else None

    @property
    def device(self) -> str:
        """Return the device as far as times depend on it: of a CPU with the threads."""
        return self.device_name + ("" if self.on_cuda else f", {self.num_threads} threads")

    @property
    def device_text(self) -> str:
        """Return kind and name of the device."""
        return f"{self.device_type}: {self.device_name}"

    def has_room_for(self, size: int) -> bool:
        """Return whether so many bytes fit on the device; where its memory is not known they do."""
        return self.device_memory_bytes is None or size <= self.device_memory_bytes

    def holds(self, prediction: Prediction) -> bool:
        """Return whether a predicted peak fits on the device."""
        return self.has_room_for(prediction.peak_bytes)

    def not_idle(self, what: str = "it") -> str | None:
        """Return that the device is in use by others, and how much of it; None where nothing was seen."""
        return f"{what} is not idle: {self.device_busy}" if self.device_busy else None

    def version_of(self, package: str) -> str | None:
        """Return a package's version; None where it is not installed."""
        return self.packages.get(package)

    def has_source(self, checksum: str) -> bool:
        """Return whether its harness is of the same source."""
        return self.source_checksum == checksum

    @property
    def source(self) -> str:
        """Return the first digits of the source checksum, by which sentences tell a source."""
        return self.source_checksum[:12]


class Phase(_Part):
    """One phase under its own memory meter."""

    name: str
    """load, data, block_scores, prepare, validate_before, general_before, train, probe, validate_during,
    validate_after, general_after, finalize, evaluate, answer, save. ``probe`` and ``validate_during`` are all that
    interrupted ``train``: in no figure of it but ``host_peak_bytes``."""
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


class BlockActivity(_Part):
    """Which decoder blocks were trainable from one step on, until the next entry."""

    step: int
    blocks: tuple[int, ...]


class StepCurve(_Part):
    """Per optimizer step, in order; step 0 first."""

    loss: tuple[float, ...]
    """Mean cross-entropy over the trained tokens of the whole accumulated batch, nats."""
    learning_rate: tuple[float, ...]
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
    """In which moment of the step the allocated peak came: resample, forward, backward, observe, clip or optimizer."""


class MemoryBreakdown(_Part):
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


class TrackedPeak(_Part):
    """The largest sum of live storages that the tracker saw; measured, on any device, but only on tracked steps.

    Storages that an operation makes and frees inside itself are not in it.
    """

    steps: tuple[int, ...]
    """Steps that were tracked; their times are no part of the step time."""
    step: int
    moment: str
    at_peak: MemoryBreakdown


class OutOfMemoryAt(_Part):
    """Where memory ran out, and what was alive right then, as far as it is known."""

    phase: str
    step: int | None = None
    """None outside the steps of training, as are the figures."""
    moment: str | None = None
    """resample, forward, backward, observe, clip or optimizer."""
    weights_bytes: int | None = None
    gradients_bytes: int | None = None
    optimizer_state_bytes: int | None = None
    """On the device."""
    rest_bytes: int | None = None
    """Activations and all else: allocated bytes less the three. None where nobody counts them: on a CPU after the
    tracked steps."""
    tracked: MemoryBreakdown | None = None
    """What the tracker knew, on a tracked step."""


class Prediction(_Part):
    """What ``harness plan`` says of a run, from its settings and shapes alone."""

    device: Literal["cuda", "cpu"]
    """Whose attention, workspaces and allocator were assumed."""
    horizon: Horizon
    weights_bytes: int
    gradients_bytes: int
    """The most gradient bytes that coexist under the update mode."""
    optimizer_state_bytes: int
    """After the step that was predicted."""
    peak_bytes: int
    peak_phase: str
    """Moment of the step: resample, forward, backward, observe, clip or optimizer."""
    peak_step: int
    at_peak: MemoryBreakdown
    reserved_bytes: int | None = None
    """What the caching allocator would hold; None on a CPU."""
    probe_peak_bytes: int | None = None
    """Of the probe before the first step, which ``peak_bytes`` leaves out, as a phase of its own; None without one."""
    all_active_peak_bytes: int | None = None
    """Under coin flips: the peak should every block be drawn at once."""
    trainable_params: int
    """In the step that was predicted."""
    flops_per_step: int
    """Floating-point operations that one optimizer step needs, a multiply-add being two, recomputation left out."""
    recomputed_flops_per_step: int
    """What checkpointing computes again."""
    predict_seconds: float
    torch: str
    """Version that the prediction ran."""
    assumptions: tuple[str, ...] = ()
    """Sentences on what was not known and assumed."""

    @property
    def static_bytes(self) -> int:
        """Return weights, coexisting gradients and optimizer state."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_state_bytes


class ProbeResult(_Part):
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


class TrainResult(_Part):
    """What training did and cost."""

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
    trainable_params_mean: float
    """Parameters that required grad, mean over steps."""
    trainable_params_ever: int
    total_params: int
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


class Score(_Part):
    """One metric of one task, or of a group of tasks."""

    task: str
    metric: str
    value: FiniteFloat
    stderr: float | None
    n: int
    unit: Literal["fraction", "points"] = "fraction"
    higher_is_better: bool
    task_version: str
    num_fewshot: int | None
    headline: bool = False
    """True for the metric that enters the suite's average."""
    subtasks: tuple[str, ...] = ()
    """Of a group's score the tasks that it is over, weighed as lm-eval's group does; empty for a task's own."""

    @property
    def key(self) -> tuple[str, str, tuple[str, ...]]:
        """Return what two scores of one thing have in common."""
        return self.task, self.metric, self.subtasks

    @property
    def title(self) -> str:
        """Return what the score is called."""
        return f"{self.task} {self.metric}"

    @property
    def text(self) -> str:
        """Return the value as commands print it."""
        return f"{self.value:.4f}"

    @property
    def is_fraction(self) -> bool:
        """Return whether the value is a share, as an accuracy is."""
        return self.unit == "fraction"

    def is_of(self, task: str, metric: str | None = None) -> bool:
        """Return whether it is a score of a task, and where one is named by that metric."""
        return self.task == task and metric in (None, self.metric)


class MTBenchAnswers(_Part):
    """The answers of a run to MT-Bench's questions, which a judge scores later."""

    file: Beside
    """In FastChat's JSON Lines, relative to the folder of the records."""
    model_id: str
    """What the answers call the model."""
    template: str
    """Conversation template."""
    template_origin: str
    """``harness``, or fschat with its version."""
    num_questions: int
    num_cut: int
    """Turns that ended at the limit of new tokens."""
    sampling: dict[str, JsonValue]
    """Temperature by category and the likeliest tokens that were drawn from."""


class Judging(_Part):
    """How a judge graded the answers of a run; what it gave is in ``scores``."""

    judge: str
    """The name that was asked for."""
    judge_version: str | None
    """What the judge says of itself, or the weights of a local one; None before its first answer."""
    endpoint: str
    """Scheme, host and port, or ``local``."""
    references: str
    """Who gave the reference answers."""
    prompt_version: str
    """SHA-256 of the judge prompts, 12 digits."""
    max_tokens: int
    """Of one judgment."""
    repeats: int
    num_asked: int
    """Judgments that all questions, turns and repeats need."""
    num_parsed: int
    num_unparsed: int
    """Judgments in which no score could be read: in no mean."""
    num_missing: int
    """Judgments that could not be had."""
    num_out_of_range: int
    """Parsed scores outside 1 to 10; in the means, as FastChat has them."""
    repeat_means: tuple[float, ...] = ()
    """Mean of each repeat, in order."""
    file: Beside
    """The judgments in FastChat's JSON Lines, relative to the folder of the records."""

    @property
    def identity(self) -> str:
        """Return what tells this judge from any other: scores of two never share a table."""
        version = self.judge_version or "version not reported"
        return (
            f"{self.judge} ({version}), prompts {self.prompt_version}, references {self.references}, "
            f"at most {self.max_tokens} tokens"
        )


class Proof(_Part):
    """What shows that the method was on; ``harness.proof`` judges it."""

    block_checksums_before: tuple[str, ...] = ()
    """SHA-256 over each decoder block's parameters after ``prepare``, adapters included."""
    block_checksums_after: tuple[str, ...] = ()
    other_checksums_before: dict[str, str] = Field(default_factory=dict)
    """The same for embedding, final_norm and head."""
    other_checksums_after: dict[str, str] = Field(default_factory=dict)
    ever_trainable_blocks: tuple[int, ...] = ()
    ever_trainable_others: tuple[str, ...] = ()
    optimizer_state_bytes: int | None = None
    method: dict[str, JsonValue] = Field(default_factory=dict)
    """What the method itself reports: draws, projected matrices, updates, refreshes, adapters."""
    declared: Declaration | None = None
    """What the method said beforehand; None of a method that declares nothing, and of records older than the field."""
    base_checksums_before: tuple[str, ...] = ()
    """Of each block's own parameters, without those that a method added; empty where it added none to any."""
    base_checksums_after: tuple[str, ...] = ()


class RunProcess(_Part):
    """What a run's process used, by what the system told its parent: known of one that was killed, too."""

    seconds: float
    """From its start to its end, imports included, by a clock that is never set."""
    cpu_seconds: float
    """User and system time of all its threads."""
    host_peak_bytes: int
    """Largest resident set (``ru_maxrss``)."""


class Record(_Part):
    """One line of a records file."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["run", "evaluation"] = "run"
    """``evaluation``: scores added later to a run whose weights or answers were kept; ``of`` names its record. Of a
    judging, environment and spec are the run's: a judge has none of ours."""
    of: Name | None = None
    run_id: Name
    environment_id: Name
    uuid: Name
    started_at: AwareDatetime
    finished_at: AwareDatetime
    status: Status
    reason: Sentence | None = None
    """One sentence for every status but ok."""
    spec: RunSpec
    environment: Environment
    phases: tuple[Phase, ...] = ()
    process: RunProcess | None = None
    """None where no process was started, or its parent was gone when it ended."""
    notes: tuple[Sentence, ...] = ()
    """Sentences on what went otherwise than asked, such as a damaged checkpoint that was passed over."""
    prediction: Prediction | None = None
    prediction_error: Sentence | None = None
    """Why there is no prediction."""
    out_of_memory_at: OutOfMemoryAt | None = None
    """Only with status out_of_memory; None too where the process was killed before it could say."""
    train: TrainResult | None = None
    scores: tuple[Score, ...] = ()
    proof: Proof | None = None
    items: Beside | None = None
    """File of every item's outcome, relative to the folder of the records."""
    mt_bench: MTBenchAnswers | None = None
    judging: Judging | None = None
    """Only of an evaluation by a judge."""
    weights: Beside | None = None
    """Folder of the kept weights, relative to the folder of the records."""
    log_tail: Sentence | None = None
    """The last ``LOG_LINES`` of a failed child's error output."""

    def phase(self, name: str) -> Phase | None:
        """Return the phase called ``name``, or None when the run did not reach it."""
        return next((phase for phase in self.phases if phase.name == name), None)

    @property
    def is_run(self) -> bool:
        """Return whether it is of a run, not of scores that were added to one."""
        return self.kind == "run"

    @property
    def is_ok(self) -> bool:
        """Return whether it is a result."""
        return self.status == "ok"

    @property
    def is_unproven(self) -> bool:
        """Return whether the run ended, but not as what was asked for."""
        return self.status == "unproven"

    @property
    def was_interrupted(self) -> bool:
        """Return whether it was cut off from outside, which says nothing of the run."""
        return self.status == "interrupted"

    def has_outcome(self, retry: Collection[str] = ()) -> bool:
        """Return whether it answers its run, by a status that is none of those to be retried."""
        return self.status in OUTCOMES and self.status not in retry

    @property
    def ending(self) -> tuple[Status, str | None]:
        """Return how it ended and why."""
        return self.status, self.reason

    @property
    def attempted(self) -> tuple[str, str]:
        """Return run and environment: records that share them are attempts at the same."""
        return self.run_id, self.environment_id

    def ran_in(self, environment_id: str | None) -> bool:
        """Return whether it is of an environment; of None all are."""
        return environment_id in (None, self.environment_id)

    @property
    def in_time(self) -> tuple[datetime, str]:
        """Return by what records are put into the order of time."""
        return self.started_at, self.uuid

    @property
    def called(self) -> str:
        """Return what sentences call the run."""
        return f"run {self.run_id}"

    @property
    def file_stem(self) -> str:
        """Return how the names of its files beside the records begin."""
        return f"{self.run_id}-{self.uuid}"

    @property
    def suite(self) -> str:
        """Return the suite that asked for it."""
        return self.spec.suite

    @property
    def model_name(self) -> str:
        """Return the base model's name."""
        return self.spec.model_name

    @property
    def label(self) -> str:
        """Return the label of what was run."""
        return self.spec.label

    @property
    def seed(self) -> int:
        """Return the seed."""
        return self.spec.seed

    @property
    def train_settings(self) -> TrainSettings | None:
        """Return how it was to train; None where it was not to."""
        return self.spec.train

    @property
    def evaluation_settings(self) -> EvaluationSettings:
        """Return how it was to be scored."""
        return self.spec.evaluation
