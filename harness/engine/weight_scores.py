"""Scores of decoder blocks that take weights alone, a matrix at a time: ``weight_norm`` and the kinds ``alpha_*``.

What they are stands in ``block_scores.py``. A matrix needs no other one beside it, so where the weights lie in files no
more than one is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from harness.engine.heavy_tails import ESTIMATORS, eigenvalues
from harness.errors import Refused
from harness.method import BlockScoreRequest, Decoder
from harness.progress import Progress
from harness.tensors.linear import weight_of

Filled = Callable[[nn.Module], AbstractContextManager[None]]
"""Gives the tensors of a module that it is called with their values inside of a ``with``."""


def weight_scores(
    request: BlockScoreRequest,
    decoder: Decoder,
    layers: Sequence[Sequence[nn.Module]],
    filled: Filled,
    progress: Progress,
) -> list[float]:
    """Return one score per decoder block, of a kind that takes weights alone, a matrix at a time.

    Args:
        request: Any kind but ``outlier``.
        decoder: Parts of the model.
        layers: The linear layers of each block.
        filled: Holds the values of a layer.
        progress: Called once a matrix.

    Raises:
        Refused: a weight has no finite exponent.
    """
    measure = _frobenius_square if request.kind == "weight_norm" else _exponent_of(request.kind)
    total, scores = sum(map(len, layers)), []
    for index, (block, name) in enumerate(zip(layers, decoder.block_names, strict=True)):
        found = []
        for number, linear in enumerate(block):
            said = f"scoring, block {index + 1} of {len(layers)}, matrix {number + 1} of {len(block)}"
            progress(said, sum(map(len, layers[:index])) + number, total)
            with filled(linear), torch.no_grad():
                found.append(measure(weight_of(linear)))
        if request.kind == "weight_norm":
            scores.append(math.sqrt(sum(found)))
        else:
            scores.append(_mean_exponent(found, block, request.kind, name))
    return scores


def as_it_is(module: nn.Module) -> AbstractContextManager[None]:
    """Return what leaves a module as it is: its weights are there."""
    return nullcontext()


def _frobenius_square(weight: torch.Tensor) -> float:
    return float(weight.float().square().sum(dtype=torch.float64))


def _exponent_of(kind: str) -> Callable[[torch.Tensor], float]:
    return lambda weight: ESTIMATORS[kind](eigenvalues(weight))


def _mean_exponent(alphas: Sequence[float], linears: Sequence[nn.Module], kind: str, name: str) -> float:
    """Return the mean exponent of a block's weights.

    Raises:
        Refused: one has no finite exponent.
    """
    if not all(math.isfinite(alpha) for alpha in alphas):
        at = alphas.index(math.inf)
        shape = tuple(weight_of(linears[at]).shape)
        raise Refused(
            f"block '{name}': linear layer {at} ({shape[0]} x {shape[1]}) has no finite exponent {kind}, its singular "
            "values being 0 or all the same: take a law that needs no exponents"
        )
    return sum(alphas) / len(alphas)
