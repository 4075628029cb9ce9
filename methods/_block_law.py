"""How a method with layer-sampling settings draws the blocks of one model, told. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from harness.method import BlockLaw
from harness.methods._block_probabilities import block_probabilities
from harness.methods._inclusion import inclusion_probabilities
from harness.methods._settings import LayerSamplingSettings, refuse_number_of_blocks

HOW = {
    "without_replacement": "without replacement",
    "bernoulli": "by coin flips",
    "tour": "in turn",
    "descending": "in turn, from the last",
    "reshuffle": "in turn, in an order of each round",
}


def block_law(settings: LayerSamplingSettings, num_blocks: int, scores: Sequence[float] | None) -> BlockLaw:
    """Return the law of the settings for a model.

    Args:
        settings: Checked.
        num_blocks: Blocks of the model.
        scores: One a block, for the kinds of probability that follow from them.

    Raises:
        Refused: the settings, the scores and the model do not fit.
    """
    refuse_number_of_blocks(settings, num_blocks)
    uniform = [1.0 / num_blocks] * num_blocks
    probabilities = block_probabilities(settings, num_blocks, scores) or uniform
    return BlockLaw(
        active_layers=settings.active_layers,
        sampling=settings.sampling,
        probability=settings.probability,
        words=f"{settings.active_layers} {HOW[settings.sampling]}",
        probabilities=tuple(probabilities),
        inclusion=tuple(inclusion_probabilities(settings, probabilities)),
    )
