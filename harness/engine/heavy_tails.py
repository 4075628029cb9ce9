"""Power-law exponents of the spectra of weight matrices: how heavy-tailed each is (heavy-tailed self-regularisation).

Papers: AlphaPruning (arXiv 2410.10912), TempBalance (arXiv 2312.00359). Reference: haiquanlu/AlphaPruning@5f0e984:
lib/esd_utils.py, whose text TempBalance and AlphaDecay share; the formulas alone are taken from it. With ascending
lambda_0 <= ... <= lambda_{N-1}, the squared singular values of a matrix, the exponent of the tail that begins at i is
the maximum-likelihood (Hill) estimate ::

    alpha_i = 1 + n / (sum_{j >= i} ln lambda_j - n ln lambda_i),     n = N - i

and its distance from the tail the one of Kolmogorov and Smirnov ::

    D_i = max_{k = 0 ... n-1} |1 - (lambda_{i+k} / lambda_i)^(1 - alpha_i) - k / n|

The estimators differ in where the tail begins:

- ``alpha_hill``: i = floor(N / 2) (``xmin_mid``; TempBalance's default). One sort, no search.
- ``alpha_peak``: the i of the smallest distance among the lambda_i between two bounds around the peak of a histogram of
  100 bins of log10 lambda (``xmin_peak``, "fix fingers"; the files that AlphaPruning ships). With x the left edge of
  the fullest bin, the upper bound is 1.5 x, and the lower log10(0.95 x), a logarithm that is compared with the lambda_i
  themselves: the slip of WeightWatcher, from which all three codes have it, is kept, or the published exponents would
  not be met.
- ``alpha_peak_corrected``: the same with the lower bound 0.95 x.
- ``alpha_fit``: the smallest distance over every i but the last (WeightWatcher's default; the package ``powerlaw``).

Deliberate differences from the reference:
- eigenvalues of exactly zero are left out (the reference takes their logarithm), as ``powerlaw`` does;
- a tail of equal eigenvalues has the exponent infinity, and is never the best fit; equal is what differs by less than
  fp32 can tell. The reference divides 0 by 0, or by rounding error;
- where no tail can be fitted the exponent is infinity; the reference returns 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

EQUAL = 1e-5
"""Mean logarithm of a tail over its first value at or below which all of it counts as equal: fp32's rounding."""
BINS = 100


def eigenvalues(weight: torch.Tensor) -> torch.Tensor:
    """Return the squared singular values of a matrix above 0, ascending: (at most the smaller side,), fp64, on the CPU.

    The singular values are computed in fp32 on the matrix's own device.

    Args:
        weight: (out_features, in_features), any float dtype.
    """
    found = torch.linalg.svdvals(weight.detach().float()).double().square().cpu()
    ascending: torch.Tensor = found[found > 0.0].sort().values
    return ascending


def tail_exponent(values: torch.Tensor, first: int) -> float:
    """Return the exponent of the tail that begins at an index; infinity where all of it is equal.

    Args:
        values: Eigenvalues: (N,), fp64, ascending, above 0.
        first: 0 to N - 1.
    """
    logs = values[first:].log()
    excess = float((logs - logs[0]).mean())
    return math.inf if excess <= EQUAL else 1.0 + 1.0 / excess


def distance(values: torch.Tensor, first: int, alpha: float) -> float:
    """Return the distance between the tail that begins at an index and the power law of an exponent, 0 to 1."""
    tail = values[first:]
    share = torch.arange(len(tail), dtype=tail.dtype) / len(tail)
    return float((1.0 - (tail / tail[0]).pow(1.0 - alpha) - share).abs().max())


def alpha_hill(values: torch.Tensor) -> float:
    """Return the exponent of the upper half of the eigenvalues."""
    return tail_exponent(values, len(values) // 2) if len(values) else math.inf


def alpha_peak(values: torch.Tensor) -> float:
    """Return the exponent of the best tail that begins at the peak of the spectrum, the inherited slip included."""
    if len(values) < 2:
        return math.inf
    edge = _peak(values)
    return _best(values, _between(values, math.log10(0.95 * edge), 1.5 * edge))


def alpha_peak_corrected(values: torch.Tensor) -> float:
    """Return the same with the lower bound that is meant."""
    if len(values) < 2:
        return math.inf
    edge = _peak(values)
    return _best(values, _between(values, 0.95 * edge, 1.5 * edge))


def alpha_fit(values: torch.Tensor) -> float:
    """Return the exponent of the best of all tails."""
    return _best(values, iter(range(len(values) - 1)))


ESTIMATORS = {
    "alpha_hill": alpha_hill,
    "alpha_peak": alpha_peak,
    "alpha_peak_corrected": alpha_peak_corrected,
    "alpha_fit": alpha_fit,
}
"""By the kind of block score."""


def _peak(values: torch.Tensor) -> float:
    """Return the left edge of the fullest bin of log10 lambda, in lambda; the first of bins that are equally full."""
    logs = values.log10()
    low, high = float(logs[0]), float(logs[-1])
    counts = torch.histc(logs, BINS, min=low, max=high)
    return float(10.0 ** (low + (high - low) * int(counts.argmax()) / BINS))


def _between(values: torch.Tensor, low: float, high: float) -> Iterator[int]:
    return (i for i, value in enumerate(values[:-1].tolist()) if low <= value <= high)


def _best(values: torch.Tensor, candidates: Iterator[int]) -> float:
    """Return the exponent with the smallest distance; infinity where no tail that begins at a candidate has one."""
    best, least = math.inf, math.inf
    for first in candidates:
        alpha = tail_exponent(values, first)
        if math.isfinite(alpha) and (far := distance(values, first, alpha)) < least:
            best, least = alpha, far
    return best
