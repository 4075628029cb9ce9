"""Settings that methods share, named as ``suites/methods.toml`` and ``--set`` name them, and refusals. No torch."""

from __future__ import annotations

import importlib.metadata
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from packaging.version import Version
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from harness.errors import NotInstalled, Refused
from harness.method import MethodConfig
from harness.settings import Implied, Later, NamesFile, TrainSettings

Dtype = Literal["fp32", "bf16"]
MomentDtype = Literal["fp32", "bf16", "int8"]
BITSANDBYTES = (0, 50)
"""The oldest release whose 8-bit updates are called as they are here, and run without a GPU."""
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class AdamWSettings(MethodConfig):
    """Settings of the one AdamW that every trained method uses."""

    adamw_rule: Literal["torch", "transformers"]
    """``torch``: eps after the bias correction of the second moment, weight decay before the update, as in
    ``torch.optim.AdamW``. ``transformers``: eps before it, weight decay after the update, as in the ``adamw_hf`` of
    older transformers and in galore-torch."""
    betas: tuple[Beta, Beta]
    """Decay of the first and of the second moment."""
    eps: PositiveFloat
    """Added to the root of the second moment."""
    weight_decay: NonNegativeFloat
    """Applied to every trained parameter, norms and embeddings included."""
    moment_dtype: MomentDtype
    """Of both moments; Adam's arithmetic runs in it, unless they are rounded at random. ``int8``: bitsandbytes'
    blockwise 8-bit moments where a tensor, or its projected gradient, has at least 4,096 numbers, else fp32 ones; its
    arithmetic is fp32."""
    master_weights: bool
    """An fp32 copy of every active bf16 parameter takes the updates; it lives and goes with the moments."""
    stochastic_rounding: bool
    """Round updated bf16 weights up or down at random, without bias, in place of to nearest."""
    update_slice_elements: Annotated[PositiveInt | None, Later(None)] = None
    """Elements of an unprojected parameter updated at once, whole rows, which bounds Adam's temporaries; None: all, but
    in fp32 on a CPU what its cache holds."""
    moment_rounding: Annotated[Literal["nearest", "stochastic"], Later("nearest")] = "nearest"
    """``stochastic``: Adam's arithmetic runs in fp32, and bf16 moments are stored rounded up or down at random, without
    bias; it costs fp32 temporaries of what is updated at once, and no state."""

    @property
    def damping(self) -> float:
        """Return the size of a gradient's numbers below which eps outweighs the first second moments' root."""
        return self.eps / math.sqrt(1.0 - self.betas[1]) if self.adamw_rule == "transformers" else self.eps

    @model_validator(mode="after")
    def _one_remedy_for_lost_updates(self) -> AdamWSettings:
        if self.master_weights and self.stochastic_rounding:
            raise ValueError("master_weights and stochastic_rounding exclude each other: choose one")
        if self.update_slice_elements is not None and self.stochastic_rounding:
            raise ValueError(
                "update_slice_elements and stochastic_rounding exclude each other: slices would draw other numbers"
            )
        if self.moment_rounding == "stochastic" and self.moment_dtype != "bf16":
            why = "fp32 moments lose too little for it"
            if self.moment_dtype == "int8":
                why = "bitsandbytes rounds 8-bit moments to the nearest of their values"
            raise ValueError(f"moment_rounding = 'stochastic' is for moment_dtype = 'bf16': {why}")
        return self


class LayerSamplingSettings(MethodConfig):
    """Which blocks are trained when, and what becomes of the optimizer state of the others."""

    implied: ClassVar[Implied] = {
        **MethodConfig.implied,
        "state_policy": (
            ("drop", {"returning_step_counter": "reset"}),
            ("keep", {"reset_each_period": False}),
            ("offload", {"reset_each_period": False}),
        ),
        "reset_each_period": ((True, {"state_policy": "drop", "returning_step_counter": "reset"}),),
        "active_state": (("offloaded", {"state_policy": "offload"}), ("prefetched", {"state_policy": "offload"})),
    }
    follows_gradients: ClassVar[bool] = False
    """True for the settings of a method whose probabilities follow from gradients that it sees."""

    active_layers: Annotated[int, Field(ge=0)]
    """Blocks of each period: exactly so many without replacement or in turn, on average so many by coin flips. 0:
    none, so that embedding, head and final norm are all that is trained."""
    interval_steps: PositiveInt
    """Optimizer steps of one period."""
    sampling: Literal["without_replacement", "bernoulli", "tour", "descending", "reshuffle"]
    """The last three take every block in turn and round again, whatever ``probability`` says: ``tour`` from the first
    on, ``descending`` from the last, ``reshuffle`` in an order drawn anew for each round."""
    probability: Literal[
        "uniform",
        "decrease",
        "increase",
        "outlier",
        "outlier_reverse",
        "weight_norm",
        "alpha",
        "alpha_reverse",
        "file",
        "gradient_norm",
    ]
    """What blocks are drawn by: each alike, falling or rising with depth, by outliers, by norms of weights, by the
    exponents of their spectra (``alpha``: a small one, a heavy tail, is drawn more often), from a file, or by gradients
    seen in training (``gradient_norm``: method grass alone, and that by nothing else)."""
    probability_file: Annotated[str | None, NamesFile()] = None
    """One score a block, in percent, for ``probability = "file"``."""
    tau: PositiveFloat | None = None
    """Threshold of the outlier ratio, in multiples of the block's mean."""
    alpha_estimator: Annotated[Literal["hill", "peak", "peak_corrected", "fit"] | None, Later(None)] = None
    """Where the fitted tail of a spectrum begins, for ``alpha`` and ``alpha_reverse``: at its middle, near the peak of
    its histogram as published or as meant, or wherever the fit is best."""
    alpha_mapping: Annotated[Literal["softmax", "reciprocal", "difference"] | None, Later(None)] = None
    """From exponents to weights of the draw: exp(-alpha), 1 / alpha, or the largest alpha less alpha, which leaves the
    last block 0. Under ``alpha_reverse`` exp(alpha), alpha, alpha less the smallest."""
    state_policy: Literal["drop", "keep", "offload"]
    """Moments, projector and fp32 master of a block that is frozen again: freed, kept, or moved to the host."""
    returning_step_counter: Literal["reset", "keep"]
    """Adam's step counter, used by the bias correction, when a block returns. Dropped state resets by necessity."""
    train_embedding: bool
    """At every step, whatever blocks are drawn."""
    train_head: bool
    """At every step."""
    train_final_norm: bool
    """At every step."""
    first_period_steps: Annotated[PositiveInt | None, Later(None)] = None
    """Optimizer steps of the first period; None: as many as of every other."""
    reset_each_period: Annotated[bool, Later(False)] = False
    """Drop the state of all that is trained at every draw: of a block that follows itself, of embedding, head and final
    norm too."""
    active_state: Annotated[Literal["resident", "offloaded", "prefetched"], Later("resident")] = "resident"
    """Where the state of the blocks that are trained lies between their updates. ``resident``: on the device.
    ``offloaded``: on the host, and each block's comes over for its update and goes back behind it. ``prefetched``: the
    same, and the next block's comes over meanwhile, so that two blocks' are on the device at once."""
    legacy_draws_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Draw from numpy's legacy generator with this seed, as the released codes do; None: from the run's own stream."""

    @model_validator(mode="before")
    @classmethod
    def _first_period_like_the_others(cls, given: Any) -> Any:
        """Take a first period of the length of every other as none of its own: one run has one spelling."""
        if isinstance(given, dict) and given.get("first_period_steps") == given.get("interval_steps"):
            return given | {"first_period_steps": None}
        return given

    @property
    def takes_turns(self) -> bool:
        """Return True for laws under which every block has its turn, and probabilities say nothing."""
        return self.sampling in ("tour", "descending", "reshuffle")

    @property
    def by_alpha(self) -> bool:
        """Return True where probabilities follow from the exponents of spectra."""
        return self.probability in ("alpha", "alpha_reverse")

    def files_read(self) -> dict[str, Path]:
        """Return the file of probabilities, unless every block has its turn whatever it says."""
        return {} if self.takes_turns else super().files_read()

    def begins_period(self, step: int) -> bool:
        """Return whether blocks are drawn at an optimizer step."""
        first = self.first_period_steps or self.interval_steps
        return step == 0 or (step >= first and (step - first) % self.interval_steps == 0)

    @model_validator(mode="after")
    def _consistent(self) -> LayerSamplingSettings:
        if (self.probability == "file") != (self.probability_file is not None):
            raise ValueError("probability = 'file' and probability_file go together: give both or neither")
        if self.probability in ("outlier", "outlier_reverse") and self.tau is None:
            raise ValueError(f"probability = '{self.probability}' needs tau, the threshold of the outlier ratio")
        if self.by_alpha and (self.alpha_estimator is None or self.alpha_mapping is None):
            raise ValueError(f"probability = '{self.probability}' needs alpha_estimator and alpha_mapping")
        if self.state_policy == "drop" and self.returning_step_counter == "keep":
            raise ValueError("state_policy = 'drop' resets the step counter: set returning_step_counter = 'reset'")
        if self.reset_each_period and self.state_policy != "drop":
            raise ValueError(
                f"reset_each_period = true drops all state: set state_policy = 'drop', not '{self.state_policy}'"
            )
        if self.active_state != "resident" and self.state_policy != "offload":
            raise ValueError(
                f"active_state = '{self.active_state}' keeps the state of every block on the host: set state_policy = "
                f"'offload', not '{self.state_policy}', or active_state = 'resident'"
            )
        if (self.probability == "gradient_norm") != self.follows_gradients:
            raise ValueError(
                "probability = 'gradient_norm' goes with a method that sees its gradients, and such a method with it: "
                "use the label grass"
            )
        if self.sampling != "without_replacement" and self.legacy_draws_seed is not None:
            raise ValueError(f"legacy_draws_seed is for draws without replacement, not sampling = '{self.sampling}'")
        others = self.train_embedding or self.train_head or self.train_final_norm
        if self.active_layers == 0 and not others:
            raise ValueError("active_layers = 0 trains nothing: train the embedding, the head or the final norm")
        if self.sampling == "bernoulli" and not others:
            raise ValueError(
                "sampling = 'bernoulli' may leave every block frozen: train the embedding, the head or the final norm"
            )
        return self


@dataclass(frozen=True)
class LowRank:
    """The settings of a projection that takes place, none of them missing; what each means stands below."""

    rank: int
    update_gap: int
    update_gap_counter: Literal["global", "parameter"]
    projection_side: Literal["reference", "smaller"]
    projector: Literal["svd", "randomized", "gaussian"]
    scale: float
    projector_dtype: Dtype


class ProjectionSettings(MethodConfig):
    """Low-rank projection of the gradients of the blocks' linear layers."""

    rank: PositiveInt | None = None
    """Clipped to the smaller side of each matrix."""
    update_gap: PositiveInt | None = None
    """A projector is computed anew after so many steps."""
    update_gap_counter: Literal["global", "parameter"] | None = None
    """``parameter`` counts a matrix's own updates; ``global`` the run's steps: the first update in each window of
    ``update_gap`` steps refreshes, so that no projector outlives its window."""
    projection_side: Literal["reference", "smaller"] | None = None
    """``reference``: right for rows >= columns, else left (galore-torch's ``std``). ``smaller``: the side that leaves
    fewer numbers in the state (its ``reverse_std``; square matrices go right)."""
    projector: Literal["svd", "randomized"] | None = None
    """How singular vectors are found: exactly, or by a randomized range finder."""
    scale: PositiveFloat | None = None
    """Factor of the back-projected update."""
    projector_dtype: Dtype | None = None
    """Of the projection matrices that are kept."""
    project_vocabulary: Annotated[bool, Later(False)] = False
    """Project the gradients of embedding and head too, where they are trained; the papers leave them full-rank."""

    def low_rank(self) -> LowRank:
        """Return the settings of the projection.

        Raises:
            ValueError: one is missing.
        """
        values = {each.name: getattr(self, each.name) for each in fields(LowRank)}
        missing = [name for name, value in values.items() if value is None]
        if missing:
            raise ValueError(f"projection needs {', '.join(missing)}")
        return LowRank(**values)

    def size_of_update(self, shape: tuple[int, ...]) -> float:
        """Return about how much a number of a (rows, columns) matrix moves in one update, in learning rates."""
        return self.low_rank().scale

    def bytes_beside_moments(self, projector: int) -> int:
        """Return the bytes held for a projected matrix beside its moments and master, given those of its projector."""
        return projector

    def given(self) -> list[str]:
        """Return the names of the settings that say something of a projection."""
        names = [each.name for each in fields(LowRank) if getattr(self, each.name) is not None]
        return [*names, *(["project_vocabulary"] if self.project_vocabulary else [])]


def refuse_number_of_blocks(settings: LayerSamplingSettings, num_blocks: int) -> None:
    """Refuse a model from whose blocks the settings cannot draw.

    Raises:
        Refused: there are too few, or rounds do not come out even.
    """
    if settings.active_layers > num_blocks:
        raise Refused(f"active_layers is {settings.active_layers}, but the model has {num_blocks} blocks")
    if settings.sampling == "reshuffle" and settings.active_layers and num_blocks % settings.active_layers:
        raise Refused(
            f"sampling = 'reshuffle' takes each block once a round, but active_layers = {settings.active_layers} "
            f"does not divide the model's {num_blocks} blocks"
        )


def refuse_bad_training(config: AdamWSettings, train: TrainSettings | None) -> None:
    """Refuse what no method of ours can do, or what would silently do nothing.

    Raises:
        Refused: the combination, and what to change.
    """
    if config.moment_dtype == "int8":
        refuse_without_bitsandbytes()
    if train is None:
        return
    if config.update_in_backward and not config.two_pass_clipping and train.max_grad_norm is not None:
        raise Refused(
            "update_in_backward frees each gradient before the global norm is known, so max_grad_norm = "
            f"{train.max_grad_norm} cannot be applied: set two_pass_clipping = true, leave max_grad_norm out or set "
            "update_in_backward = false"
        )
    if config.two_pass_clipping and train.max_grad_norm is None:
        raise Refused("two_pass_clipping = true has no norm to clip to: give max_grad_norm or set it to false")
    if train.dtype == "fp32":
        for key in ("master_weights", "stochastic_rounding"):
            if getattr(config, key):
                raise Refused(f"{key} = true has no effect on fp32 weights: set it to false or train in bf16")


def refuse_without_bitsandbytes() -> None:
    """Refuse 8-bit moments where what updates them is not installed, or too old.

    Raises:
        NotInstalled: and what to install.
    """
    least = ".".join(map(str, BITSANDBYTES))
    install = f"pip install 'bitsandbytes>={least}', or in a checkout pip install '.[quantized]'"
    try:
        found = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        raise NotInstalled(f"moment_dtype = 'int8' needs bitsandbytes, which is not installed: {install}") from None
    if Version(found).release[:2] < BITSANDBYTES:
        raise NotInstalled(
            f"moment_dtype = 'int8' needs bitsandbytes {least} or newer, and {found} is installed: {install}"
        )
