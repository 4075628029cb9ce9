"""GRASS: blocks drawn by the softmax of their mean gradient norms, which are probed first and followed in training.

Paper: "Gradient-based Adaptive Layer-wise Importance Sampling for Memory-efficient LLM Fine-tuning" (arXiv 2604.07808).
There is no released code, and the formulas here were taken from summaries of the paper: what they leave open is a
setting, marked ``ours`` in suites/methods.toml. Nothing here reproduces the paper's tables, and nothing claims to. It
is not "Grass: structured sparse gradients" (arXiv 2406.17660).

Formulas, of block l, optimizer step t and a stage's steps S in which the block was trained::

    m_l = (1/|S|) Σ_{t in S} sqrt(||g_t^(l)||² / N_l)        N_l: the block's parameters; in the probe S is its passes
    m_l = α m_l(stage) + (1 - α) m_l(before)                 at the end of a stage; a frozen block keeps its value
    p_l = softmax_l(m_l / (c τ))                             c: 1, or the blocks' mean, largest or sum of m

Deliberate differences from what is known of the paper:
- the statistic is of the gradient before clipping, whichever way updates are made;
- m is divided by a stated number before the softmax (``normalise``): its own size is that of a gradient's elements;
- the state of a block comes to the device for its update by ``active_state``, which any layer sampling has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, JsonValue, PositiveFloat, PositiveInt, model_validator

from harness.errors import Refused
from harness.method import METHODS, GradientNorms, ProbeRequest, RunContext, StepOptimizer
from harness.methods._layer_sampled import LayerSampledConfig, LayerSampledMethod

if TYPE_CHECKING:
    import torch
    from torch import nn

Normalise = Literal["none", "mean", "max", "sum"]


class GrassConfig(LayerSampledConfig):
    """Settings of GRASS."""

    follows_gradients: ClassVar[bool] = True

    probability: Literal["gradient_norm"]
    """By the softmax of the blocks' mean gradient norms."""
    probe_batches: PositiveInt
    """Batches, each of as many rows as an optimizer step takes, whose gradients are looked at before the first step."""
    probe_consumes_rows: bool
    """Training goes on behind the rows of the probe; false: it begins with the same rows."""
    probe_each_micro_batch: bool
    """The norm of each micro-batch's gradient, in place of that of a whole batch: larger by the noise of few rows, and
    each gradient is freed at once where those of a batch coexist under accumulation."""
    stage_steps: PositiveInt | Literal["none"]
    """Optimizer steps from one update of the means to the next; ``none``: the probe's stay, the static variant."""
    new_share: Annotated[float, Field(gt=0.0, le=1.0)]
    """Weight of a stage's mean against the one before, of a block that was trained in the stage."""
    temperature: PositiveFloat
    """Of the softmax, in units of the normalised means: towards 0 the largest takes all, towards infinity none."""
    normalise: Normalise
    """What the means are divided by before the softmax: nothing, their mean over the blocks, the largest, or their
    sum. Under ``none`` the temperature is in units of a gradient's elements, some 1e-3."""

    @model_validator(mode="after")
    def _draws_by_probability(self) -> GrassConfig:
        if self.takes_turns:
            raise ValueError(
                f"sampling = '{self.sampling}' takes blocks in turn, whatever their gradients: draw without_replacement"
            )
        return self


@METHODS.register("grass")
class Grass(LayerSampledMethod):
    """Sums of block norms stay on the device; they are read once a stage."""

    Config = GrassConfig
    config: GrassConfig
    summary = "a few blocks at a time, drawn by the gradient norms that are seen of them"
    observes_gradients = probes = draws_depend_on_training = True

    def prepare(self, model: nn.Module, context: RunContext) -> nn.Module:
        """Freeze as layer sampling does; no gradient was seen yet."""
        prepared = super().prepare(model, context)
        self._blocks: Sequence[nn.Module] = context.decoder.blocks
        self._read = context.read_scalar
        self._history: list[tuple[int, list[float]]] = []
        self._sums: dict[int, torch.Tensor | float] = {}
        self._counts: dict[int, int] = {}
        return prepared

    def cycle_steps(self) -> int | None:
        """Return the steps after which a draw and a new stage fall together."""
        periods = super().cycle_steps()
        stage = self.config.stage_steps
        return periods if periods is None or stage == "none" else math.lcm(periods, stage)

    def probe_needed(self) -> ProbeRequest | None:
        """Return the passes of the settings."""
        config = self.config
        return ProbeRequest(config.probe_batches, config.probe_consumes_rows, config.probe_each_micro_batch)

    def on_probe(self, index: int, norms: GradientNorms) -> None:
        """Add the pass's norms up."""
        self._add(norms)

    def on_gradients(self, step: int, norms: GradientNorms) -> None:
        """Add the step's norms up, where they will be used."""
        if self.config.stage_steps != "none":
            self._add(norms)

    def on_step_begin(self, step: int, optimizer: StepOptimizer) -> None:
        """Begin a stage where one is due, then draw where a period begins.

        Raises:
            Refused: the temperature leaves too few blocks to draw from, or no gradient was finite.
        """
        stage = self.config.stage_steps
        due = not self._history or (stage != "none" and step > 0 and step % stage == 0)
        if due and self._sums:
            self._begin_stage(step)
        super().on_step_begin(step, optimizer)

    def state_dict(self) -> dict[str, JsonValue]:
        """Return the means so far and what was seen since, beside what is drawn."""
        own: dict[str, JsonValue] = {
            "means": [[step, [*means]] for step, means in self._history],
            "sums": {str(block): self._value(block) for block in self._sums},
            "counts": {str(block): count for block, count in self._counts.items()},
        }
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        super().load_state_dict(state)
        self._history = [(int(step), [float(mean) for mean in means]) for step, means in state["means"]]
        self._sums = {int(block): float(value) for block, value in state["sums"].items()}
        self._counts = {int(block): int(count) for block, count in state["counts"].items()}

    def proof(self) -> dict[str, JsonValue]:
        """Return the same with the means of every stage, by the step at which it began."""
        means: JsonValue = [{"step": step, "means": [*means]} for step, means in self._history]
        return super().proof() | {"gradient_means": means}

    def _add(self, norms: GradientNorms) -> None:
        """Add one pass's root mean square of each block's gradient, on the device."""
        for index, block in enumerate(self._blocks):
            parameters = list(block.parameters())
            found = [norms[p] for p in parameters if p in norms]
            if found:
                size = sum(p.numel() for p in parameters)
                self._sums[index] = self._sums.get(index, 0.0) + (sum(found[1:], found[0]) / size).sqrt()
                self._counts[index] = self._counts.get(index, 0) + 1

    def _value(self, block: int) -> float:
        total = self._sums[block]
        return total if isinstance(total, float) else self._read(total)

    def _begin_stage(self, step: int) -> None:
        """Take what was seen since the last stage into the means, and let draws follow them."""
        seen = {block: self._value(block) / self._counts[block] for block in self._sums}
        before = self._history[-1][1] if self._history else None
        means = next_means(before, seen, self.config.new_share, len(self._blocks))
        self._history.append((step, means))
        self._sums, self._counts = {}, {}
        assert self._sampler is not None
        probabilities = layer_probabilities(means, self.config.temperature, self.config.normalise)
        possible = sum(p > 0.0 for p in probabilities)
        if possible < self.config.active_layers:
            raise Refused(
                f"temperature = {self.config.temperature} with normalise = '{self.config.normalise}' leaves {possible} "
                f"of {len(means)} blocks with a probability above 0 at step {step}, but active_layers = "
                f"{self.config.active_layers} are drawn: raise the temperature"
            )
        self._sampler.set_probabilities(step, probabilities)


def next_means(before: Sequence[float] | None, seen: Mapping[int, float], share: float, num_blocks: int) -> list[float]:
    """Return each block's mean after a stage: ``share`` of what was seen of it and the rest of what it was.

    Args:
        before: One a block; None: nothing was, and what was seen is taken whole.
        seen: The stage's mean by block; one that is missing was frozen and keeps its value.
        share: Of the new value, in (0, 1].
        num_blocks: Of the model.
    """
    if before is None:
        return [seen.get(block, 0.0) for block in range(num_blocks)]
    return [share * seen[block] + (1.0 - share) * old if block in seen else old for block, old in enumerate(before)]


def layer_probabilities(means: Sequence[float], temperature: float, normalise: Normalise) -> list[float]:
    """Return softmax(m / (c τ)), with c after ``normalise``.

    Args:
        means: One a block, >= 0.
        temperature: τ.
        normalise: ``none``: c = 1; ``mean``, ``max``, ``sum``: of the means. Where all are 0, c = 1.

    Raises:
        Refused: a mean is not finite.
    """
    if not all(math.isfinite(mean) for mean in means):
        raise Refused("the gradients of some block are not all finite, so no probabilities follow from their norms")
    total = math.fsum(means)
    divisor = {"none": 1.0, "mean": total / len(means), "max": max(means), "sum": total}[normalise] or 1.0
    top = max(means)
    weights = [math.exp((mean - top) / divisor / temperature) for mean in means]
    whole = math.fsum(weights)
    return [weight / whole for weight in weights]
