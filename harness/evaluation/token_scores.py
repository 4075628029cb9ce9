"""Log-probabilities of wanted tokens under logits, and whether each is the likeliest, with few copies of the logits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

LOGITS_CHUNK = {"cpu": 1 << 19}
"""Elements of logits whose exponentials are taken at once, by device: on a CPU such as stay in its cache."""
LARGEST_LOGITS_CHUNK = 1 << 24
"""On any other device."""


def token_scores(
    parts: Iterable[torch.Tensor], take: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the log-probability of each target and whether it is the likeliest token, as float64 and bool arrays.

    Args:
        parts: Logits, (positions, vocab) each, any float dtype, one part behind the other; used as they come.
        take: Of each target the position that predicts it, counted over all parts.
        targets: Tokens.
    """
    values, greedy = np.full(len(take), np.nan), np.zeros(len(take), dtype=np.bool_)
    first = 0
    for logits in parts:
        here = np.flatnonzero((take >= first) & (take < first + len(logits)))
        values[here], greedy[here] = _scores(logits, take[here] - first, targets[here])
        first += len(logits)
    return values, greedy


def _scores(
    logits: torch.Tensor, take: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return :func:`token_scores` of one part: ``x_t - max(x) - log(sum(exp(x - max(x))))`` in fp32."""
    largest, normalisers = [], []
    elements = LOGITS_CHUNK.get(logits.device.type, LARGEST_LOGITS_CHUNK)
    for chunk in torch.split(logits, max(1, elements // logits.shape[-1])):
        exact = chunk.float()
        top = exact.amax(-1, keepdim=True)
        largest.append(top[:, 0])
        normalisers.append((exact - top).exp_().sum(-1).log_() + top[:, 0])
    where = torch.from_numpy(take).to(logits.device)
    wanted = torch.from_numpy(targets).to(logits.device)
    found = logits[where, wanted].float()
    values = found - torch.cat(normalisers)[where]
    greedy = found >= torch.cat(largest)[where]  # of equal ones the first counts: argmax, where it can matter
    greedy[greedy.clone()] = logits[where[greedy]].argmax(-1) == wanted[greedy]
    return values.double().cpu().numpy(), greedy.cpu().numpy()
