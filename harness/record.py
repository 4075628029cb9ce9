"""The record of one run: what was asked, what came out, where, and the proof that the method was on.

Names of measurements end in their unit. What was not measured is None. A record validates without its method, without
torch, and for ever: a change of layout raises ``SCHEMA_VERSION`` and adds a step to ``harness.record_versions``.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Literal

from pydantic import (
    AwareDatetime,
    Field,
    FiniteFloat,
    JsonValue,
)

from harness.beside import Beside
from harness.declaration import Declaration
from harness.record_environment import Environment
from harness.record_part import Part, Sentence
from harness.record_text import EncodingFacts, RowFacts, ScoringFacts
from harness.record_training import OutOfMemoryAt, Phase, Prediction, TrainResult
from harness.settings import EvaluationSettings, Name, TrainSettings
from harness.spec import RunSpec

SCHEMA_VERSION = 6
ALIKE_SINCE = 2
"""Records of this version and later ones are lifted by their number alone."""

LOG_LINES = 40
"""How many of the last lines of a process that failed are kept."""

Status = Literal["ok", "unproven", "refused", "out_of_memory", "diverged", "failed", "timed_out", "interrupted"]
"""``unproven``: it ended, but its proof fails, so that its figures are not those of the method that was asked for."""

OUTCOMES: frozenset[str] = frozenset({"ok", "unproven", "refused", "out_of_memory", "diverged"})
"""Statuses that are answers: not run again unless ``--retry`` asks for it."""


SCORED_OR_USELESS: frozenset[str] = frozenset({"ok", "unproven", "refused", "diverged"})
"""Statuses of runs whose kept weights no evaluation is missing of, or gives anything."""


class Score(Part):
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


class MTBenchAnswers(Part):
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


class Judging(Part):
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
    num_several: int | None = None
    """Judgments with several ratings that differ; None: of a record older than the count."""
    num_thinking: int | None = None
    """Judgments that began with thinking, which was left out before a rating was read."""
    num_cut: int | None = None
    """Judgments that ended at ``max_tokens``."""
    verdict: Literal["last"] | None = None
    """Which of several ratings counts; None: the first, as FastChat has it."""
    temperature: Literal["default"] | None = None
    """``default``: the endpoint's own, for all judgments or some; None: 0, as FastChat has it."""
    sent: tuple[dict[str, JsonValue], ...] = ()
    """What the requests held beside model and messages, where they were sent to an endpoint."""
    repeat_means: tuple[float, ...] = ()
    """Mean of each repeat, in order."""
    file: Beside
    """The judgments in FastChat's JSON Lines, relative to the folder of the records."""

    @property
    def identity(self) -> str:
        """Return what tells this judge from any other: scores of two never share a table."""
        version = self.judge_version or "version not reported"
        others = ", the endpoint's own temperature" if self.temperature == "default" else ""
        others += ", the last rating of several" if self.verdict == "last" else ""
        return (
            f"{self.judge} ({version}), prompts {self.prompt_version}, references {self.references}, "
            f"at most {self.max_tokens} tokens{others}"
        )


class Proof(Part):
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


class RunProcess(Part):
    """What a run's processes used, by what the system told their parent: known of one that was killed, too."""

    seconds: float
    """From the start of the first to the end of the last, imports included, by a clock that is never set."""
    cpu_seconds: float
    """User and system time of all threads of all ranks."""
    host_peak_bytes: int
    """Largest resident set of one process (``ru_maxrss``): of the largest rank."""


class Record(Part):
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
    rows: RowFacts | None = None
    encoding: EncodingFacts | None = None
    scoring: ScoringFacts | None = None
    scores: tuple[Score, ...] = ()
    proof: Proof | None = None
    items: Beside | None = None
    """File of every item's outcome, relative to the folder of the records."""
    mt_bench: MTBenchAnswers | None = None
    judging: Judging | None = None
    """Only of an evaluation by a judge."""
    weights: Beside | None = None
    """Folder of the kept weights, relative to the folder of the records."""
    weights_held: bool = False
    """Nobody asked for them: they wait for an evaluation that failed, and go when it is done."""
    weights_error: Sentence | None = None
    """Why weights that were to be kept are not there, or not merged."""
    log_tail: Sentence | None = None
    """The last ``LOG_LINES`` of a failed child's error output."""

    def phase(self, name: str) -> Phase | None:
        """Return the phase called ``name``, or None when the run did not reach it."""
        for phase in self.phases:  # a report of many records asks a hundred times for each: no generator
            if phase.name == name:
                return phase
        return None

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
    def awaits_scores(self) -> bool:
        """Return whether it trained and its evaluation did not end, so that its weights can still be scored."""
        return self.is_run and self.weights is not None and self.status not in SCORED_OR_USELESS

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

    def trained_as_in(self, environment: Environment | None) -> bool:
        """Return whether an environment trains as its own does, whatever it scores with; of None all do."""
        return environment is None or self.environment.training_id == environment.training_id

    @property
    def in_time(self) -> tuple[datetime, str]:
        """Return by what records are put into the order of time."""
        return self.started_at, self.uuid

    @property
    def name(self) -> str:
        """Return what the run is called, by which commands find it."""
        return self.spec.run_name

    def begins_with(self, digits: str) -> bool:
        """Return whether its own name, or that of its files, begins so."""
        return self.uuid.startswith(digits) or self.file_stem.startswith(digits)

    @property
    def called(self) -> str:
        """Return what sentences call the run."""
        return f"run {self.name} ({self.run_id})"

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
    def scored_dtype(self) -> str:
        """Return the precision of the weights that were scored: scores of two precisions are of two models."""
        return self.spec.dtype

    @property
    def train_settings(self) -> TrainSettings | None:
        """Return how it was to train; None where it was not to."""
        return self.spec.train

    @property
    def evaluation_settings(self) -> EvaluationSettings:
        """Return how it was to be scored."""
        return self.spec.evaluation
