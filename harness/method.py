"""The contract between a fine-tuning method and the engine; neither knows the other by name.

A method is one class in one file (``methods/<name>.py``, or a plug-in in the entry-point group
``finetune_harness.methods``). The engine calls its hooks in this order::

    check(config, train)              before a model is loaded: raise Refused when the run cannot be done
    block_scores_needed()             scores to compute from the checkpoint, as a phase of their own
    inference_needed()                which forward passes without gradients it will make within steps
    prepare(model, context)           freeze, wrap
    cut_by_columns(model, context)    which matrices must keep whole rows, where parameters are shared out
    build_optimizer(model, context)   over every parameter that may ever be trained
    declare(model, context)           what will be trained and kept, from settings and shapes alone
    probe_needed()                    gradients to look at before the first step, in a phase of their own
    on_probe(index, norms)            after each pass of the probe, which updates nothing
    on_step_begin(step, optimizer)    before every optimizer step: resample, apply the state policy
    on_gradients(step, norms)         in every optimizer step, once its gradients are complete
    finalize(model)                   what is evaluated
    export(model)                     merged weights in the base architecture, for saving

Between ``prepare`` and ``build_optimizer`` parameters may be replaced, when they are shared out over the processes of
the run, as they are in planning: a method keeps modules across the two, never parameters.

torch is imported inside hooks, never at the top of a method's module, so that listing and checking work without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, TypedDict, runtime_checkable

from pydantic import BaseModel, ConfigDict, JsonValue, model_validator

from harness.declaration import Declaration
from harness.errors import Refused
from harness.registry import Registry
from harness.settings import Implied, Later, file_settings

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from harness.settings import TrainSettings


class MethodConfig(BaseModel):
    """Settings of a method: frozen, unknown keys forbidden. Subclasses give a default only where none can mislead.

    A setting that is added once runs of the method are recorded is marked ``Annotated[..., Later(value)]``, with the
    value at which the run is what it was: at it, the run keeps its identity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)

    implied: ClassVar[Implied] = {"two_pass_clipping": ((True, {"update_in_backward": True}),)}
    """What follows from one setting for another, wherever settings are laid over those of a label."""

    update_in_backward: bool = False
    """Apply each update as soon as its gradient is complete, in a post-accumulate hook, and free the gradient."""
    two_pass_clipping: Annotated[bool, Later(False)] = False
    """Clip with ``update_in_backward``: a first pass takes the global norm, a second makes the clipped updates."""

    def files_read(self) -> dict[str, Path]:
        """Return the files that a run with these settings reads, by the setting, marked ``NamesFile``, that names each.

        A class whose settings make one of no account leaves it out.
        """
        named = {name: getattr(self, name) for name in file_settings(type(self))}
        return {name: Path(file) for name, file in named.items() if file is not None}

    @model_validator(mode="after")
    def _two_passes_are_in_backward(self) -> MethodConfig:
        if self.two_pass_clipping and not self.update_in_backward:
            raise ValueError("two_pass_clipping = true is for update_in_backward = true: clipping is exact without it")
        return self


class StateBytes(TypedDict):
    """Bytes of the storages behind all tensors of an optimizer's state, each counted once and whole, by place."""

    device: int
    host: int


@runtime_checkable
class StepOptimizer(Protocol):
    """What the engine and planning use of an optimizer, all of it: a ``torch.optim.Optimizer`` that does more.

    One whose parameters are shared out over processes says by a method ``state_places`` how its state is, as that of
    ``harness.methods._held_state.HeldState``; without it no checkpoint of such a run can be written.

    A plain ``torch.optim`` optimizer becomes one through ``harness.plugin.Stepwise``.
    """

    param_groups: list[dict[str, Any]]
    """With ``lr`` and ``params``, all parameters on one device; further keys are JSON in :meth:`state_dict`."""
    state: Any
    """What is held for each parameter, by parameter."""

    @property
    def refresh_seconds(self) -> float | None:
        """Return the seconds spent so far in what is computed anew once a cycle; None where nothing is."""

    def begin_step(self, step: int) -> None:
        """Take the number of the optimizer step whose updates follow, 0-based; the engine calls it once a step."""

    def step(self) -> None:
        """Update every parameter that holds a gradient."""

    def step_parameters(self, params: Iterable[torch.Tensor]) -> None:
        """Update these parameters, each with a gradient, and nothing else."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Free the gradients."""

    def state_bytes(self) -> StateBytes:
        """Return how much memory the state takes, and where: only the optimizer knows what it means for the host."""

    def device_tensors(self) -> list[torch.Tensor]:
        """Return the tensors of the state that are not meant for the host."""

    def expire_projectors(self, params: Iterable[torch.Tensor]) -> bool:
        """Let what is computed anew once a cycle be due at the next update of these parameters.

        Return False where there is none; planning asks, to see such a step.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return moments, counters and groups: tensors, and JSON with integer keys."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, dtypes kept."""


@dataclass(frozen=True)
class Decoder:
    """Where the parts of a causal language model are: references taken before a method wraps anything."""

    blocks: tuple[nn.Module, ...]
    block_names: tuple[str, ...]
    embedding: nn.Module
    final_norm: nn.Module
    head: nn.Module
    tied_head: bool
    """True when the head's weight is the embedding's weight, the same storage."""

    names: dict[int, str]
    """Parameter names of the base model by ``id(parameter)``, taken before wrapping."""


BlockScoreKind = Literal["outlier", "weight_norm", "alpha_hill", "alpha_peak", "alpha_peak_corrected", "alpha_fit"]


@dataclass(frozen=True)
class BlockScoreRequest:
    """One score per decoder block, computed from the checkpoint by the engine and cached."""

    kind: BlockScoreKind
    tau: float | None = None
    """Threshold of the outlier ratio in multiples of the block's mean; None for kinds without one."""


@dataclass(frozen=True)
class BlockLaw:
    """How a method draws the decoder blocks that it trains, for one model."""

    active_layers: int
    """Blocks of each period."""
    sampling: str
    probability: str
    """Law and kind of probability, as the settings name them."""
    words: str
    """How many are drawn and how, such as ``2 without replacement``."""
    probabilities: tuple[float, ...]
    """One a block, summing to 1."""
    inclusion: tuple[float, ...]
    """Of each block to be among those of a period."""


class RunContext(Protocol):
    """What the engine offers a method during a run."""

    seed: int
    num_steps: int
    """Optimizer steps of the whole run."""
    train: TrainSettings
    decoder: Decoder
    rank: int
    """Number of this process among those that share the run out, 0-based."""
    num_ranks: int
    """How many there are: each holds a part of every parameter, and draws equally from equal streams."""

    def sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a small tensor over all processes, with equal bits in each; every process must ask."""

    def torch_generator(self, stream: str) -> torch.Generator:
        """Return a CPU generator of the run's named random stream; the same name gives a fresh, equal generator."""

    def numpy_generator(self, stream: str) -> np.random.Generator:
        """Return a numpy generator of the run's named random stream."""

    def seed_globally(self, stream: str) -> AbstractContextManager[None]:
        """Seed the global generators from a stream inside the ``with``, for libraries that draw from them."""

    def block_scores(self, request: BlockScoreRequest) -> Sequence[float]:
        """Return one score per decoder block, as announced by ``block_scores_needed``."""

    def read_scalar(self, tensor: torch.Tensor) -> float:
        """Read a one-element tensor; planning answers in place of the value."""

    def inference_loss(self, stream: str, index: int, num_rows: int) -> float:
        """Return the mean loss of training rows in one forward pass of the trained model as it stands, in nats.

        The pass is made in evaluation mode, dropout off, without gradients; each module's mode is then as before. It
        is for :meth:`Method.on_step_begin`, enters the step's time and memory, and waits for the device; planning
        answers 1. Rows come from an order of the training set that is the stream's own, epoch after epoch: equal
        arguments give equal rows, and what training sees does not move.

        Args:
            stream: Name of the order.
            index: Which ``num_rows`` rows in it, 0-based.
            num_rows: That go through the model at once.
        """


@dataclass(frozen=True)
class ProbeRequest:
    """Passes forward and backward before the first optimizer step, whose gradients a method looks at.

    They make no optimizer step and no step of the schedule, and count in no number of steps. Every parameter of the
    optimizer requires gradients in them, whatever is frozen before and after.
    """

    num_batches: int
    """Batches of as many rows as an optimizer step takes."""
    consumes_rows: bool
    """True: training goes on behind their rows, so that it sees others; False: it begins with the same rows."""
    each_micro_batch: bool = False
    """True: a pass over each micro-batch by itself, its mean loss over its own tokens, each gradient freed as it
    completes. False: a pass over each batch as an optimizer step makes it; under accumulation its gradients coexist."""


@dataclass(frozen=True)
class InferenceRequest:
    """Forward passes without gradients that a method makes in :meth:`Method.on_step_begin`, for planning."""

    num_rows: int
    """Training rows of each pass, all at once."""
    num_passes: int
    """In each of the steps that make any."""
    every_steps: int
    """Optimizer steps from one of these steps to the next."""


GradientNorms = Mapping["torch.Tensor", "torch.Tensor"]
"""Parameter -> squared l2 norm of its complete gradient before any clipping: (), fp32, on the parameter's device. Only
of parameters that got a gradient. To read one waits for the device: through ``RunContext.read_scalar``, and rarely."""


DECLARED_HOOKS: dict[str, tuple[str, ...]] = {
    "samples_blocks": ("visit",),
    "has_adapter": ("adapter",),
    "observes_gradients": ("on_gradients",),
    "probes": ("probe_needed", "on_probe"),
}
"""Class attribute of a method -> the hooks that it overrides if, and only if, the attribute is True."""


class Method(ABC):
    """A fine-tuning method. One instance serves one run."""

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    summary: ClassVar[str] = ""
    """One line for ``harness list methods``."""
    trains: ClassVar[bool] = True
    """False for a method that leaves the model as it is: no data, no optimizer, no loop."""
    samples_blocks: ClassVar[bool] = False
    """True for a method that trains a few decoder blocks at a time and draws them anew: it has :meth:`visit`, and its
    proof holds its ``draws``."""
    has_adapter: ClassVar[bool] = False
    """True for a method that wraps the model in an adapter, which :meth:`adapter` returns."""
    observes_gradients: ClassVar[bool] = False
    """True for a method whose :meth:`on_gradients` is to be called; without it no norm is computed."""
    probes: ClassVar[bool] = False
    """True for a method that may look at gradients before the first step: :meth:`probe_needed`, :meth:`on_probe`."""
    draws_depend_on_training: ClassVar[bool] = False
    """True for a method that samples blocks by what training shows it, so that planning cannot know its draws."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check that what a subclass declares and the hooks that it overrides agree.

        Raises:
            TypeError: they do not; the sentence names both.
        """
        super().__init_subclass__(**kwargs)
        for declared, hooks in DECLARED_HOOKS.items():
            for hook in hooks:
                overridden = getattr(cls, hook) is not getattr(Method, hook)
                if getattr(cls, declared) is not overridden:
                    raise TypeError(
                        f"method {cls.__name__} has {declared} = {getattr(cls, declared)} and "
                        f"{'overrides' if overridden else 'does not override'} {hook}: they go together"
                    )
        if cls.draws_depend_on_training and not cls.samples_blocks:
            raise TypeError(f"method {cls.__name__} has draws_depend_on_training = True, but samples_blocks = False")

    def __init__(self, config: MethodConfig) -> None:
        self.config = config

    @classmethod
    def check(cls, config: MethodConfig, train: TrainSettings | None) -> None:
        """Raise ``Refused`` when this run cannot be done, as far as that shows before a model is loaded.

        Whoever starts one asks :func:`check_run`, which asks this.
        """

    @classmethod
    def check_sharded(cls, config: MethodConfig, train: TrainSettings | None, num_ranks: int) -> None:
        """Raise ``Refused`` when this run cannot be shared out over so many processes, a part of each tensor in each.

        A method that says nothing of it is refused: what it does to numbers would be done to parts of them.
        """
        if cls.trains:
            raise Refused(
                f"this method does not say that it is right where its tensors are shared out over {num_ranks} devices: "
                "run it on one"
            )

    def cut_by_columns(self, model: nn.Module, context: RunContext) -> Collection[torch.Tensor]:
        """Return the matrices of which each process is to hold some columns: of all others it holds some rows."""
        return ()

    def block_scores_needed(self) -> BlockScoreRequest | None:
        """Return which block scores :meth:`prepare` will ask for, or None."""
        return None

    def inference_needed(self) -> InferenceRequest | None:
        """Return which passes of :meth:`RunContext.inference_loss` this method makes within its steps, or None."""
        return None

    def block_law(self, num_blocks: int, scores: Sequence[float] | None) -> BlockLaw | None:
        """Return how blocks are drawn, or None for a method that does not sample them; ``harness layers`` tells it.

        Of a method whose draws depend on training it is the law that they begin with.

        Args:
            num_blocks: Decoder blocks of the model.
            scores: One a block where :meth:`block_scores_needed` asks for them; others are of no account.

        Raises:
            Refused: such a model's blocks cannot be drawn so.
        """
        return None

    def cycle_steps(self) -> int | None:
        """Return the optimizer steps of one whole cycle of refreshes or resamples, or None for a method without one.

        A step time over fewer steps is marked in the record.
        """
        return None

    @abstractmethod
    def prepare(self, model: nn.Module, context: RunContext) -> nn.Module:
        """Freeze or wrap the model; return the module that is trained."""

    @abstractmethod
    def build_optimizer(self, model: nn.Module, context: RunContext) -> StepOptimizer:
        """Return the optimizer over every parameter that may ever be trained, frozen now or not."""

    def declare(self, model: nn.Module, context: RunContext) -> Declaration | None:
        """Return what this run will train, and what state that takes, or None: then no record can be held against it.

        It follows from settings and shapes, not from what the optimizer holds: the proof compares the two.
        """
        return None

    def on_step_begin(self, step: int, optimizer: StepOptimizer) -> None:
        """Prepare optimizer step ``step`` (0-based, counts optimizer steps and not micro-batches).

        After it the loop seeds the global generators from the step's own stream, so what draws from them in the forward
        pass, such as dropout, needs no seeding by the method.
        """

    def probe_needed(self) -> ProbeRequest | None:
        """Return the passes whose gradients :meth:`on_probe` is to see before the first step, or None."""
        return None

    def on_probe(self, index: int, norms: GradientNorms) -> None:
        """Take the norms of a pass of the probe, 0-based; weights, optimizer and schedule are as they were.

        A run that goes on from a checkpoint makes no probe: what it showed belongs into :meth:`state_dict`.
        """

    def on_gradients(self, step: int, norms: GradientNorms) -> None:
        """Take the norms of an optimizer step, once all are complete and before :meth:`on_step_begin` of the next.

        Whether the updates are made by then depends on ``update_in_backward``; the norms do not.
        """

    def visit(self, blocks: Sequence[int], optimizer: StepOptimizer) -> bool:
        """Make these blocks the active ones as a draw of them would, state policy included; planning asks for it.

        The next call of :meth:`on_step_begin` draws nothing. Returns whether the method samples blocks.
        """
        return False

    def may_activate_every_block(self) -> bool:
        """Return True when chance alone bounds how many blocks one draw activates, as with coin flips."""
        return False

    def finalize(self, model: nn.Module) -> nn.Module:
        """Return the module that is evaluated."""
        return model

    def export(self, model: nn.Module) -> nn.Module:
        """Return the trained model in the base architecture, adapters merged; may change ``model``."""
        return model

    def adapter(self, model: nn.Module) -> nn.Module | None:
        """Return the module whose ``save_pretrained`` writes an adapter, or None for a method without one."""
        return None

    def state_dict(self) -> dict[str, JsonValue]:
        """Return the method's own state at a checkpoint: active set, counters, generators. JSON only."""
        return {}

    def load_state_dict(self, state: dict[str, JsonValue]) -> None:
        """Restore what :meth:`state_dict` returned."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but got {sorted(state)}")

    def on_resume(self, model: nn.Module, optimizer: StepOptimizer, step: int) -> None:
        """Bring model and optimizer to the restored state before step ``step``, without a new draw."""

    def proof(self) -> dict[str, JsonValue]:
        """Return what shows that the method was on, beside what the engine observes by itself. JSON only.

        ``harness.proof`` reads of it, where they are there: ``draws``, a list of ``{"step", "blocks"}``; ``projected``,
        ``{name: {"num_refreshes", "num_updates"}}``; ``adapters``, ``{"found": names, "moved": names}``.
        """
        return {}


def check_run(method: type[Method], config: MethodConfig, train: TrainSettings | None, num_ranks: int = 1) -> None:
    """Refuse a run that cannot be done, whatever the method's own :meth:`Method.check` looks at.

    Raises:
        Refused: the method refuses it, is to train weights that are quantized, or the run cannot be shared out over so
            many processes.
    """
    if num_ranks > 1:
        _check_sharded(method, config, train, num_ranks)
    if train is not None and train.quantized is not None and not method.has_adapter:
        raise Refused(
            f"quantization = '{train.quantization}' holds weights as packed integers, which no gradient can move, and "
            "this method trains the weights themselves: take a method with an adapter, or set quantization = 'none'"
        )
    method.check(config, train)


def _check_sharded(method: type[Method], config: MethodConfig, train: TrainSettings | None, num_ranks: int) -> None:
    if train is not None:
        if (batches := train.gradient_accumulation_steps) % num_ranks:
            raise Refused(
                f"{num_ranks} devices cannot share out the {batches} micro-batches of a step evenly: set "
                f"gradient_accumulation_steps to a multiple of {num_ranks}"
            )
        if train.quantized is not None:
            raise Refused(
                f"quantization = '{train.quantization}' holds weights in a form that is not shared out over devices: "
                "run it on one, or set quantization = 'none'"
            )
    method.check_sharded(config, train, num_ranks)


METHODS: Registry[Method] = Registry(
    "method",
    Method,  # type: ignore[type-abstract]
    package="harness.methods",
    entry_points="finetune_harness.methods",
)
