"""From a setting and block scores to sampling probabilities, one a block.

Papers: LISA (arXiv 2403.17919), section 3; OwLore/OWS (arXiv 2405.18380), section 3.
Reference: pixeli99/OwLore@e415973:src/lmflow/pipeline/finetuner.py (modes uniform, decrease, increase, owl,
owl_reverse, norm) and its metric_cache/llama2_7b_ratio_13.txt (one decimal number a line, in percent).

Deliberate differences from the reference:
- the file is read once, from a path that the user gives, not at every draw from one fixed path;
- what cannot be a list of percentages, or has another length than the model has blocks, is an error;
- mode ``norm`` reads no file: the norms are computed from the checkpoint.

Kinds ``alpha`` and ``alpha_reverse`` are in no reference. The first version of the OwLore paper argues by heavy-tailed
self-regularisation that blocks with a heavy tail, a small exponent, be drawn more often; TempBalance (arXiv 2312.00359)
argues the other way, that light-tailed layers are the under-trained ones. Neither publishes a law of sampling, so
estimator and mapping are settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from harness.errors import HarnessError, Refused
from harness.files import read_text
from harness.methods._settings import LayerSamplingSettings


def read_scores(file: str) -> list[float]:
    """Return the scores in a file in the format of OwLore's metric cache: percentages, one a line.

    Numbers may also be separated by spaces or commas, and the whole be in brackets.

    Raises:
        HarnessError: the file cannot be read, or does not hold percentages.
    """
    where = f"probability_file {file}"
    return parse_scores(read_text(Path(file), where), where)


def parse_scores(text: str, where: str) -> list[float]:
    """Return the percentages in ``text``.

    Raises:
        HarnessError: a word is no number, a number no percentage, or none is above zero; the sentence names the line.
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    scores = []
    for number, line in enumerate(text.splitlines(), 1):
        for word in line.replace(",", " ").split():
            try:
                score = float(word)
            except ValueError:
                raise HarnessError(f"{where}: line {number}: expected a number in percent, found '{word}'") from None
            if not 0.0 <= score <= 100.0:
                raise HarnessError(f"{where}: line {number}: {word} is not a percentage: expected 0 to 100")
            scores.append(score)
    if not any(scores):
        raise HarnessError(f"{where}: expected one percentage a block, at least one of them above 0")
    return scores


def outlier_counts(scores: Sequence[float], pool: int) -> list[int]:
    """Return how many of a block's ``pool`` weights are outliers, from percentages.

    Raises:
        HarnessError: a score is not a whole number of ``pool`` weights, so it was computed over another pool.
    """
    counts = []
    for block, score in enumerate(scores):
        exact = score * pool / 100.0
        if abs(exact - round(exact)) > 1e-6 * max(1.0, exact):
            raise HarnessError(f"block {block}: {score} percent of {pool} weights is {exact}, not a whole number")
        counts.append(round(exact))
    return counts


def block_probabilities(
    settings: LayerSamplingSettings, num_blocks: int, scores: Sequence[float] | None
) -> list[float] | None:
    """Return the probability of each block, summing to 1; None for uniform, which legacy draws tell from equal ones.

    Laws under which blocks take turns give no account of them: None. Gradients are not known beforehand, and blocks
    begin alike under them: None.

    Args:
        settings: Kind of probability, and the file for kind ``file``.
        num_blocks: Blocks of the model.
        scores: Block scores, for the kinds that follow from them.

    Raises:
        Refused: the scores cannot be probabilities of this model's blocks, or too few are above zero to draw from.
    """
    kind = settings.probability
    weights: Sequence[float]
    if kind in ("uniform", "gradient_norm") or settings.takes_turns:
        return None
    if kind == "decrease":
        weights = range(num_blocks, 0, -1)
    elif kind == "increase":
        weights = range(1, num_blocks + 1)
    else:
        if kind == "file":
            assert settings.probability_file is not None
            scores = read_scores(settings.probability_file)
        assert scores is not None
        weights = scores
    if len(weights) != num_blocks:
        raise Refused(f"there are {len(weights)} block scores for probability = '{kind}', but {num_blocks} blocks")
    if not all(math.isfinite(weight) and weight >= 0.0 for weight in weights) or sum(weights) <= 0.0:
        raise Refused(f"the block scores for probability = '{kind}' are not all finite and >= 0 with one above 0")
    if kind == "outlier_reverse":
        shares = _normalised(weights)
        top = max(shares)
        weights = [top - share for share in shares]
        if not any(weights):
            raise Refused("all block scores are equal, so probability = 'outlier_reverse' leaves nothing to draw")
    if settings.by_alpha:
        weights = _alpha_weights(settings, weights)
    return drawable(settings, weights)


def drawable(settings: LayerSamplingSettings, weights: Sequence[float]) -> list[float]:
    """Return probabilities in proportion to weights.

    Raises:
        Refused: they are not all finite and >= 0 with one above 0, or the settings cannot draw from them.
    """
    if not all(math.isfinite(weight) and weight >= 0.0 for weight in weights) or sum(weights) <= 0.0:
        raise Refused("the weights that blocks would be drawn by are not all finite and >= 0 with one above 0")
    probabilities = _normalised(weights)
    if settings.sampling == "without_replacement":
        possible = sum(p > 0.0 for p in probabilities)
        if settings.active_layers > possible:
            raise Refused(
                f"active_layers is {settings.active_layers}, but only {possible} blocks have a probability above 0"
            )
        return probabilities
    worst = max(range(len(probabilities)), key=lambda block: probabilities[block])
    if settings.active_layers * probabilities[worst] > 1.0:
        raise Refused(
            f"coin flips need active_layers times each probability to be at most 1, but for block {worst} it is "
            f"{settings.active_layers * probabilities[worst]:.3f}: lower active_layers or draw without replacement"
        )
    return probabilities


def _alpha_weights(settings: LayerSamplingSettings, alphas: Sequence[float]) -> list[float]:
    """Return the weights of the draw that follow from exponents by the mapping of the settings.

    Raises:
        Refused: all are equal, and the mapping leaves nothing to draw.
    """
    reverse, mapping = settings.probability == "alpha_reverse", settings.alpha_mapping
    low, high = min(alphas), max(alphas)
    if mapping == "softmax":
        return [math.exp(alpha - high if reverse else low - alpha) for alpha in alphas]
    if mapping == "reciprocal":
        if low <= 0.0:
            raise Refused("alpha_mapping = 'reciprocal' needs exponents above 0")
        return [alpha if reverse else 1.0 / alpha for alpha in alphas]
    if low == high:
        raise Refused("all exponents are equal, so alpha_mapping = 'difference' leaves nothing to draw")
    return [alpha - low if reverse else high - alpha for alpha in alphas]


def _normalised(weights: Sequence[float]) -> list[float]:
    import numpy as np

    array = np.asarray(weights, dtype=np.float64)
    shares: list[float] = (array / array.sum()).tolist()
    return shares
