"""Spectrum: of each kind of matrix those with the largest ratio of signal to noise are trained, all others frozen.

Paper: Spectrum (arXiv 2406.06623). Reference: cognitivecomputations/spectrum@0ed1756:spectrum.py. With S the singular
values of a matrix, sigma = IQR(S) / 1.349 and beta its smaller side over its larger, those above sigma (1 + beta^1/2)
are the signal; the score is their sum over that of the others, over the largest. Embedding and head are trained too.

The threshold lacks the root of the larger side that the edge of Marchenko and Pastur has, so that of a random matrix
every singular value is signal, and the score is not that of the matrix times a number. It is computed as published.

Deliberate differences from the reference:
- the scores are taken of the weights that are trained, at the start of the run, where the code reads a file of an
  earlier one; the linear layers inside the blocks are found by their place, where the code asks for kinds by name;
- in fp32, whatever the weights' dtype; a percentage that selects no matrix is refused;
- GPT-2's transposed weights count as the layers they are: the score is the same either way round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, JsonValue

from harness.errors import Refused
from harness.method import METHODS, RunContext
from harness.methods._settings import AdamWSettings
from harness.methods._trained import TrainedMethod

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.nn import Parameter

NORMAL_IQR = 1.349
"""Distance of the quartiles of a normal distribution of unit variance. Source: spectrum.py:145."""


class SpectrumConfig(AdamWSettings):
    """Settings of Spectrum."""

    top_percent: Annotated[float, Field(gt=0.0, le=100.0)]
    """Of the matrices of each kind, rounded down to whole ones; 50 is half of them."""
    train_embedding: bool
    """Beside the selected matrices."""
    train_head: bool
    """Beside the selected matrices."""


@METHODS.register("spectrum")
class Spectrum(TrainedMethod):
    """A fixed choice of matrices is trained in full."""

    Config = SpectrumConfig
    config: SpectrumConfig
    summary = "the matrices with the largest ratio of signal to noise, chosen once, trained in full"
    _scores: dict[str, dict[int, float]] | None = None
    _selected: dict[str, list[int]] | None = None

    def prepare(self, model: nn.Module, context: RunContext) -> nn.Module:
        """Score every linear layer's weight inside the blocks, and let the selected ones be trained.

        Planning, which has no values, takes as many blocks of each kind, those of one behind those of the kind before:
        what is static is the same. Activations hang on the choice a little, as layers that share an input keep it once;
        this choice, under which few share one, keeps the most.

        Raises:
            Refused: the percentage selects no matrix of any kind, a matrix has no singular values, or of a head that is
                the embedding one alone is to be trained.
        """
        import torch

        if context.decoder.tied_head and self.config.train_embedding != self.config.train_head:
            raise Refused(
                "the model's head is its embedding, one matrix: train_embedding and train_head must be the same"
            )
        self._scores = {}
        num_blocks = len(context.decoder.blocks)
        taken = int(num_blocks * self.config.top_percent / 100)
        for (kind, block), weight in matrices(context).items():
            if weight.is_meta:
                first = taken * [*dict.fromkeys([*self._scores, kind])].index(kind)
                self._scores.setdefault(kind, {})[block] = -float((block - first) % num_blocks)
                continue
            try:
                score = signal_to_noise(weight.detach().float())
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                name = f"{context.decoder.block_names[block]}.{kind}"
                raise Refused(f"the singular values of {name} cannot be computed: its weight is not finite") from error
            self._scores.setdefault(kind, {})[block] = context.read_scalar(score)
        self._selected = {kind: selected(scores, self.config.top_percent) for kind, scores in self._scores.items()}
        if not any(self._selected.values()):
            most = max((len(scores) for scores in self._scores.values()), default=0)
            raise Refused(
                f"top_percent = {self.config.top_percent:g} selects none of the at most {most} matrices of a kind: it "
                "is in percent, 50 being half of them"
            )
        model.requires_grad_(False)
        for _, p in self.trained_parameters(model, context):
            p.requires_grad_(True)
        return model

    def trained_parameters(self, model: nn.Module, context: RunContext) -> list[tuple[str, Parameter]]:
        """Return the selected matrices, embedding and head, in the model's order."""
        assert self._selected is not None
        chosen = {(kind, block) for kind, blocks in self._selected.items() for block in blocks}
        wanted = {id(weight) for place, weight in matrices(context).items() if place in chosen}
        others = (
            (self.config.train_embedding, context.decoder.embedding),
            (self.config.train_head, context.decoder.head),
        )
        wanted |= {id(p) for trained, part in others if trained for p in part.parameters()}
        return [(name, p) for name, p in model.named_parameters() if id(p) in wanted]

    def proof(self) -> dict[str, JsonValue]:
        """Return the score of each matrix, infinite ones as text, and the blocks whose matrix was selected, by kind."""
        if self._scores is None or self._selected is None:
            return {}
        scores: dict[str, JsonValue] = {
            kind: [score if math.isfinite(score) else str(score) for score in found.values()]
            for kind, found in self._scores.items()
        }
        return {
            "spectrum": {"scores": scores, "selected": {kind: [*blocks] for kind, blocks in self._selected.items()}}
        }


def matrices(context: RunContext) -> dict[tuple[str, int], torch.Tensor]:
    """Return the weights of the linear layers inside the blocks, by kind, the name within a block, and block.

    Raises:
        Refused: a block holds experts stacked in one tensor, which are no matrix.
    """
    from harness.tensors.linear import linear_layers, stacked_weights

    found: dict[tuple[str, int], torch.Tensor] = {}
    for index, block in enumerate(context.decoder.blocks):
        if stacked := stacked_weights(block):
            raise Refused(
                f"Spectrum scores matrices, and {context.decoder.block_names[index]}.{stacked[0]} is a stack of them: "
                "take another method for this model"
            )
        linear = {id(layer) for layer in linear_layers(block)}
        for name, module in block.named_modules():
            if id(module) in linear:
                weight = module.weight
                found[name, index] = weight  # type: ignore[assignment]
    return found


def selected(scores: Mapping[int, float], top_percent: float) -> list[int]:
    """Return the blocks with the largest scores of a kind, largest first, the earlier of equal ones first.

    Source: spectrum.py:195-198.
    """
    ranked = sorted(scores, key=lambda block: scores[block], reverse=True)
    return ranked[: int(len(ranked) * top_percent / 100)]


def signal_to_noise(weight: torch.Tensor) -> torch.Tensor:
    """Return the score of a matrix (rows, columns), fp32: (), fp32; infinite where what is noise sums to 0.

    Source: spectrum.py:110-125 and 136-146.
    """
    import torch

    singular = torch.linalg.svdvals(weight)  # descending
    sigma = (_quantile(singular, 0.75) - _quantile(singular, 0.25)) / NORMAL_IQR
    rows, columns = weight.shape
    is_signal = singular > sigma * (1.0 + math.sqrt(min(rows, columns) / max(rows, columns)))
    signal = torch.where(is_signal, singular, 0.0).sum()
    noise = torch.where(is_signal.all(), 1.0, torch.where(is_signal, 0.0, singular).sum())
    ratio = torch.where(noise == 0, math.inf, signal / noise)
    score: torch.Tensor = ratio / singular[0]
    return score


def _quantile(descending: torch.Tensor, share: float) -> torch.Tensor:
    """Return a quantile of sorted values by linear interpolation, without looking at them."""
    place = (len(descending) - 1) * (1.0 - share)
    low, high = descending[math.floor(place)], descending[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))
