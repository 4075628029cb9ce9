"""One score per decoder block, from weights and calibration text; cached, because a suite asks for it many times.

``outlier`` is OWL's layerwise outlier distribution (luuyin/OWL@dddb7a4, lib/prune_all.py and lib/layerwrapper.py), on
which OwLore samples (arXiv 2405.18380, tau = 13)::

    A_ij = ||X_j||_2 * |W_ij|       for every linear weight of the block
    D    = 100 * #{A_ij > tau * mean(A)} / #A      in percent; one pool, one mean over all matrices of the block

||X_j|| is the norm of input feature j over all calibration tokens, in fp32; a constant factor cancels. Norms and
embeddings are no part of the pool; the comparison is strict. OWL runs the blocks one after the other on the outputs of
the block before; without pruning that is the plain forward pass, which is what runs here.

``weight_norm`` is the Frobenius norm over the same pool (chosen by us: the file that the released code reads for this
mode was never published).

The kinds ``alpha_*`` are power-law exponents of the spectra (``heavy_tails.py``): of a block the plain mean over its
linear weights, as AlphaPruning takes it (haiquanlu/AlphaPruning@5f0e984:lib/prune.py).

Here are the scores themselves, of a model that is there whole, and their cache. Where no model is there and none is
needed afterwards, ``streamed_scores.py`` takes the same scores from the checkpoint, a block at a time.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.data.examples import text_samples
from harness.engine.environment import describe_environment
from harness.engine.score_cache import ScoreCache
from harness.engine.weight_scores import as_it_is, weight_scores
from harness.errors import HarnessError, Refused
from harness.method import BlockScoreRequest, Decoder
from harness.progress import Progress, silent
from harness.settings import CalibrationSettings
from harness.source import block_score_checksum
from harness.tensors.linear import linear_layers, stacked_weights, weight_of

SCORES_FOLDER = "block_scores"
"""Folder of the kept scores in the cache."""

Scorer = Callable[[BlockScoreRequest, Sequence[torch.Tensor]], list[float]]
"""Returns one score a block, of a request and calibration sequences, each (1, tokens) int64."""
Squares = dict[nn.Module, torch.Tensor]
"""Of each linear layer the sum over tokens of its squared input: (in_features,) fp32."""


def block_scores(
    request: BlockScoreRequest,
    model: nn.Module,
    decoder: Decoder,
    samples: Sequence[torch.Tensor],
    progress: Progress = silent,
) -> list[float]:
    """Return one score per decoder block.

    Args:
        request: Kind of score and its threshold.
        model: The base model, unwrapped.
        decoder: Its parts.
        samples: Calibration sequences, each (1, tokens) int64; used by ``outlier`` alone.
        progress: Called once a sample, or once a matrix.

    Raises:
        Refused: a block holds no linear layer, or weights beside them that would be left out, or one whose spectrum has
            no finite exponent.
        HarnessError: the scores are not finite.
    """
    layers = scored_layers(decoder)
    if request.kind == "outlier":
        assert request.tau is not None
        squares = _input_squares(model, [linear for block in layers for linear in block], samples, progress)
        with torch.no_grad():
            return checked(request, [outlier_percent(block, squares, request.tau) for block in layers])
    return checked(request, weight_scores(request, decoder, layers, as_it_is, progress))


def checked(request: BlockScoreRequest, scores: list[float]) -> list[float]:
    """Return scores that are finite.

    Raises:
        HarnessError: they are not.
    """
    if not all(math.isfinite(score) for score in scores):
        raise HarnessError(f"block scores '{request.kind}' are not finite: {scores}")
    return scores


def calibration_samples(texts: Sequence[str], tokenizer: Any, settings: CalibrationSettings) -> list[torch.Tensor]:
    """Return ``num_samples`` sequences of ``sequence_length`` tokens, cut from the texts in their order.

    Raises:
        HarnessError: the texts do not hold enough tokens.
    """
    return [torch.tensor([sample]) for sample in text_samples(texts, tokenizer, settings, "calibration")]


def cached_block_scores(
    request: BlockScoreRequest,
    *,
    model: Mapping[str, str | None],
    dtype: str,
    calibration: CalibrationSettings,
    data: str,
    device: torch.device,
    cache_folder: Path,
    load: Callable[[], tuple[Scorer, Any]],
    texts: Callable[[], Sequence[str]],
) -> list[float]:
    """Return one score per decoder block, from the cache or computed and kept there.

    Args:
        request: Kind of score and its threshold.
        model: Identity of the base model.
        dtype: Of its weights.
        calibration: Which text, and how much of it.
        data: Identity of that text.
        device: Where the scores are computed.
        cache_folder: Root of the cache.
        load: Gives what scores the model, and its tokenizer; called only when the scores are not in the cache.
        texts: Gives the calibration texts; called only then, and where text is needed.

    Raises:
        HarnessError: as :func:`block_scores` and :func:`calibration_samples`.
    """
    key = _score_key(request, model, dtype=dtype, calibration=calibration, data=data, device_type=device.type)
    cache = ScoreCache(cache_folder / SCORES_FOLDER)
    scores = cache.get(key)
    if scores is None:
        score, tokenizer = load()
        samples = calibration_samples(texts(), tokenizer, calibration) if request.kind == "outlier" else []
        scores = score(request, samples)
        cache.put(key, scores)
    return scores


def kept_block_scores(
    request: BlockScoreRequest,
    *,
    model: Mapping[str, str | None],
    dtype: str,
    calibration: CalibrationSettings,
    data: str,
    device_type: str,
    cache_folder: Path,
) -> tuple[list[float] | None, Path]:
    """Return the scores that :func:`cached_block_scores` would find in the cache, or None; and the file of them."""
    key = _score_key(request, model, dtype=dtype, calibration=calibration, data=data, device_type=device_type)
    cache = ScoreCache(cache_folder / SCORES_FOLDER)
    return cache.get(key), cache.file(key)


def _score_key(
    request: BlockScoreRequest,
    model: Mapping[str, str | None],
    *,
    dtype: str,
    calibration: CalibrationSettings,
    data: str,
    device_type: str,
) -> dict[str, Any]:
    return {
        "kind": request.kind,
        "tau": request.tau,
        "model": dict(model),
        "dtype": dtype,
        "calibration": calibration.model_dump(mode="json"),
        "data": data,
        "packages": {name: describe_environment().version_of(name) for name in ("torch", "transformers", "tokenizers")},
        "code": block_score_checksum(),
        "device": device_type,
    }


def scored_layers(decoder: Decoder) -> list[list[nn.Module]]:
    """Return the linear layers of each block.

    Raises:
        Refused: there are none, or weights that are no layers of their own would be left out of the score.
    """
    return [_linears(block, name) for block, name in zip(decoder.blocks, decoder.block_names, strict=True)]


def _linears(block: nn.Module, name: str) -> list[nn.Module]:
    if stacked := stacked_weights(block):
        raise Refused(
            f"block '{name}' holds stacked weights ({stacked[0]}), as fused experts are, and its score is of linear "
            "layers alone: take a law that needs no scores"
        )
    found = linear_layers(block)
    if not found:
        raise Refused(f"block '{name}' holds no linear layer to score: take a law that needs no scores")
    return found


def _input_squares(
    model: nn.Module, linears: Sequence[nn.Module], samples: Sequence[torch.Tensor], progress: Progress
) -> Squares:
    """Return what passes of the samples through the whole model give each linear layer."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    try:
        with watched_inputs(linears) as squares:
            for index, sample in enumerate(samples):
                progress("scoring blocks, sample", index, len(samples))
                forward(model, sample.to(device))
    finally:
        model.train(was_training)
    return squares


@contextmanager
def watched_inputs(linears: Sequence[nn.Module]) -> Iterator[Squares]:
    """Add up the squared inputs of linear layers, whose weights are there, over what is passed through them inside."""
    weights = {linear: weight_of(linear) for linear in linears}
    squares = {linear: torch.zeros(weight.shape[1], device=weight.device) for linear, weight in weights.items()}
    del weights

    def collect(linear: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        squares[linear] += inputs[0].float().square().flatten(0, -2).sum(0)

    hooks = [linear.register_forward_pre_hook(collect) for linear in linears]
    try:
        yield squares
    finally:
        for hook in hooks:
            hook.remove()


def forward(model: nn.Module, sample: torch.Tensor) -> None:
    """Pass a calibration sequence through a model.

    Args:
        model: Any causal language model.
        sample: (1, tokens) int64, on its device.
    """
    # The head's part of the pass is not needed; not every class of models can leave it out.
    known = inspect.signature(model.forward).parameters
    fewer = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    with torch.no_grad():
        model(input_ids=sample, use_cache=False, **fewer)


def outlier_percent(linears: Sequence[nn.Module], squares: Squares, tau: float) -> float:
    """Return the share of outliers among the weights of a block, 0 to 100."""

    def importance(linear: nn.Module) -> torch.Tensor:
        weight = weight_of(linear)
        return weight.float().abs() * squares[linear].sqrt()  # (out_features, in_features)

    size = sum(weight_of(linear).numel() for linear in linears)
    mean = sum(float(importance(linear).sum(dtype=torch.float64)) for linear in linears) / size
    above = sum(int((importance(linear) > tau * mean).sum()) for linear in linears)
    return 100.0 * above / size
