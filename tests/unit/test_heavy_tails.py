"""Exponents of spectra: against the package powerlaw, numbers of the reference, and closed forms."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import powerlaw
import pytest
import torch
from torch import nn

from harness.engine.block_scores import block_scores
from harness.engine.heavy_tails import (
    ESTIMATORS,
    alpha_fit,
    alpha_hill,
    alpha_peak,
    alpha_peak_corrected,
    distance,
    eigenvalues,
    tail_exponent,
)
from harness.errors import Refused
from harness.method import BlockScoreKind, BlockScoreRequest

KINDS: list[BlockScoreKind] = ["alpha_hill", "alpha_peak", "alpha_peak_corrected", "alpha_fit"]


def matrices() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(64, 96, generator=generator)
    tall = torch.randn(48, 32, generator=generator) @ torch.diag(torch.logspace(-2, 1, 32))
    return [wide, tall, 0.02 * torch.randn(40, 40, generator=generator)]


REFERENCE = {
    "alpha_hill": [2.532292, 1.283211, 2.157469],
    "alpha_peak": [1.829275, 1.585252, 1.816735],
    "alpha_fit": [3.611212, 1.170650, 1.956940],
}
"""Of these matrices, by net_esd_estimator of haiquanlu/AlphaPruning@5f0e984:lib/esd_utils.py with fix_fingers
"xmin_mid", "xmin_peak" and None, torch 2.13.0."""


@pytest.mark.parametrize("kind", REFERENCE)
def test_exponents_are_those_of_the_reference(kind: str) -> None:
    found = [ESTIMATORS[kind](eigenvalues(matrix)) for matrix in matrices()]
    assert found == pytest.approx(REFERENCE[kind], abs=5e-6)  # singular values in fp32 are not equal on all processors


@pytest.mark.parametrize("index", [0, 1, 2])
def test_hill_and_the_best_fit_are_those_of_powerlaw(index: int) -> None:
    values = eigenvalues(matrices()[index])
    data = values.numpy()
    half = powerlaw.Fit(data, xmin=data[len(data) // 2], verbose=False)
    assert alpha_hill(values) == pytest.approx(half.power_law.alpha, abs=1e-6)
    # Without a range of its own powerlaw 2.0 leaves out every fit above 3.
    whole = powerlaw.Fit(data, verbose=False, parameter_ranges={"alpha": [1.0, None]})
    assert alpha_fit(values) == pytest.approx(whole.power_law.alpha, abs=1e-6)


def test_the_lower_bound_of_the_published_peak_is_a_logarithm() -> None:
    """Of a spectrum over many decades the slip lets tails in that begin far below the peak, and one of them wins."""
    values = eigenvalues(matrices()[1])
    counts, edges = np.histogram(values.log10().numpy(), 100)
    peak = 10 ** edges[int(counts.argmax())]

    def best(low: float) -> float:
        allowed = [i for i, value in enumerate(values[:-1].tolist()) if low <= value <= 1.5 * peak]
        alphas = {i: tail_exponent(values, i) for i in allowed}
        return alphas[min(allowed, key=lambda i: distance(values, i, alphas[i]))]

    assert alpha_peak(values) == best(math.log10(0.95 * peak)) == pytest.approx(1.585252, abs=1e-6)
    assert alpha_peak_corrected(values) == best(0.95 * peak) == pytest.approx(4.327530, abs=1e-6)


@pytest.mark.parametrize(("exponent", "found"), [(2.0, 2.004), (3.5, 3.510), (6.0, 6.019)])
def test_samples_of_a_power_law_have_its_exponent(exponent: float, found: float) -> None:
    """The estimate of n samples has a standard error of (exponent - 1) / sqrt(n); n is half of 20,000."""
    draws = 1.0 - np.random.default_rng(0).random(20_000)
    values = torch.tensor(np.sort(draws ** (-1.0 / (exponent - 1.0))))
    error = (exponent - 1.0) / 100.0
    assert alpha_hill(values) == pytest.approx(exponent, abs=3 * error)
    assert alpha_hill(values) == pytest.approx(found, abs=3 * error)


@pytest.mark.parametrize("kind", KINDS)
def test_size_and_orientation_of_a_matrix_change_nothing(kind: str) -> None:
    matrix = matrices()[0]
    alpha = ESTIMATORS[kind](eigenvalues(matrix))
    assert ESTIMATORS[kind](eigenvalues(matrix.t())) == pytest.approx(alpha, rel=1e-4)
    if kind != "alpha_peak":  # its lower bound is a logarithm: it moves with the size
        assert ESTIMATORS[kind](eigenvalues(8.0 * matrix)) == pytest.approx(alpha, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_singular_values_have_an_infinite_exponent(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    turned = torch.linalg.qr(torch.randn(48, 48, generator=generator)).Q
    for matrix in (torch.eye(16), 3.0 * turned, torch.zeros(8, 8), torch.eye(4)[:1]):
        assert ESTIMATORS[kind](eigenvalues(matrix)) == math.inf


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_zero_are_left_out(kind: str) -> None:
    matrix = torch.diag(torch.linspace(1.0, 2.0, 12))
    padded = torch.zeros(20, 20)
    padded[:12, :12] = matrix
    assert ESTIMATORS[kind](eigenvalues(padded)) == pytest.approx(ESTIMATORS[kind](eigenvalues(matrix)), rel=1e-6)


def scored(weights: list[list[torch.Tensor]], kind: BlockScoreKind) -> list[float]:
    blocks = []
    for pair in weights:
        layers = [nn.Linear(weight.shape[1], weight.shape[0], bias=False) for weight in pair]
        for layer, weight in zip(layers, pair, strict=True):
            layer.weight.data = weight
        blocks.append(nn.ModuleList([*layers, nn.LayerNorm(4)]))
    decoder: Any = SimpleNamespace(blocks=tuple(blocks), block_names=tuple(f"layers.{i}" for i in range(len(blocks))))
    return block_scores(BlockScoreRequest(kind), nn.ModuleList(blocks), decoder, [])


@pytest.mark.parametrize("kind", KINDS)
def test_a_blocks_score_is_the_plain_mean_over_its_matrices(kind: BlockScoreKind) -> None:
    wide, tall, small = matrices()
    alphas = [ESTIMATORS[kind](eigenvalues(matrix)) for matrix in (wide, tall, small)]
    assert scored([[wide, tall], [small]], kind) == pytest.approx([(alphas[0] + alphas[1]) / 2, alphas[2]])


def test_a_block_without_a_finite_exponent_is_refused_by_name() -> None:
    wide, tall, _ = matrices()
    said = r"block 'layers.1': linear layer 1 \(8 x 8\) has no finite exponent alpha_hill"
    with pytest.raises(Refused, match=said):
        scored([[wide, tall], [wide, torch.eye(8)]], "alpha_hill")
