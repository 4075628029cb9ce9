"""A toy of GRASS (arXiv 2604.07808): blocks drawn by the softmax of their mean gradient norms, probed before training.

A plug-in in one file. No published code exists; what the paper leaves open is a setting, and its default is ours.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, JsonValue, PositiveFloat, PositiveInt

from harness.method import GradientNorms, ProbeRequest, RunContext, StepOptimizer
from harness.methods._layer_sampled import LayerSampledConfig, LayerSampledMethod

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn


class ToyGrassConfig(LayerSampledConfig):
    """Every setting has a default, so that the contract tests can take the method by its name."""

    adamw_rule: Literal["torch", "transformers"] = "torch"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: float = 0.0
    moment_dtype: Literal["bf16", "fp32"] = "fp32"
    master_weights: bool = False
    stochastic_rounding: bool = False
    active_layers: int = 2
    interval_steps: PositiveInt = 2
    sampling: Literal["without_replacement", "bernoulli", "tour", "descending", "reshuffle"] = "without_replacement"
    probability: Literal["uniform", "decrease", "increase", "outlier", "outlier_reverse", "weight_norm", "file"] = (
        "uniform"
    )
    state_policy: Literal["drop", "keep", "offload"] = "drop"
    returning_step_counter: Literal["reset", "keep"] = "reset"
    train_embedding: bool = True
    train_head: bool = True
    train_final_norm: bool = True
    probe_batches: PositiveInt = 2
    probe_consumes_rows: bool = False
    probe_each_micro_batch: bool = False
    window_steps: PositiveInt = 4
    """Optimizer steps between two updates of the means."""
    new_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Weight of a window's mean against the one before."""
    temperature: PositiveFloat = 0.01


class ToyGrass(LayerSampledMethod):
    """Sums of block norms stay on the device; they are read once a window."""

    Config = ToyGrassConfig
    config: ToyGrassConfig
    summary = "a toy: blocks drawn by their gradient norms"
    observes_gradients = probes = draws_depend_on_training = True

    def prepare(self, model: nn.Module, context: RunContext) -> nn.Module:
        prepared = super().prepare(model, context)
        self._blocks: Sequence[nn.Module] = context.decoder.blocks
        self._read = context.read_scalar
        self._means: list[float] | None = None
        self._sums: dict[int, torch.Tensor | float] = {}
        self._counts: dict[int, int] = {}
        return prepared

    def probe_needed(self) -> ProbeRequest | None:
        config = self.config
        return ProbeRequest(config.probe_batches, config.probe_consumes_rows, config.probe_each_micro_batch)

    def on_probe(self, index: int, norms: GradientNorms) -> None:
        self._add(norms)

    def on_step_begin(self, step: int, optimizer: StepOptimizer) -> None:
        if self._sums and step % self.config.window_steps == 0:
            self._end_window(step)
        super().on_step_begin(step, optimizer)

    def on_gradients(self, step: int, norms: GradientNorms) -> None:
        self._add(norms)

    def state_dict(self) -> dict[str, JsonValue]:
        own: dict[str, JsonValue] = {
            "means": None if self._means is None else [*self._means],
            "sums": {str(block): self._value(block) for block in self._sums},
            "counts": {str(block): count for block, count in self._counts.items()},
        }
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._means = state["means"]
        self._sums = {int(block): value for block, value in state["sums"].items()}
        self._counts = {int(block): count for block, count in state["counts"].items()}

    def proof(self) -> dict[str, JsonValue]:
        return super().proof() | {"gradient_means": None if self._means is None else [*self._means]}

    def _add(self, norms: GradientNorms) -> None:
        for index, block in enumerate(self._blocks):
            found = [norms[p] for p in block.parameters() if p in norms]
            if found:
                size = sum(p.numel() for p in block.parameters())
                self._sums[index] = self._sums.get(index, 0.0) + (sum(found[1:], found[0]) / size).sqrt()
                self._counts[index] = self._counts.get(index, 0) + 1

    def _value(self, block: int) -> float:
        total = self._sums[block]
        return total if isinstance(total, float) else self._read(total)

    def _end_window(self, step: int) -> None:
        means = [0.0] * len(self._blocks) if self._means is None else list(self._means)
        share = 1.0 if self._means is None else self.config.new_share
        for block in self._sums:
            means[block] = share * self._value(block) / self._counts[block] + (1.0 - share) * means[block]
        self._means, self._sums, self._counts = means, {}, {}
        top = max(means)
        assert self._sampler is not None
        self._sampler.set_probabilities(step, [math.exp((m - top) / self.config.temperature) for m in means])
