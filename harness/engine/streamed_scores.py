"""Block scores of a model that is never there whole: the same numbers as ``block_scores.py``, a block at a time.

For outlier ratios every calibration sequence goes through one block, then through the next, as in OWL's own loop
(luuyin/OWL@dddb7a4, lib/prune_all.py); between two blocks the hidden states of all sequences are kept. What is run is
the model's own forward pass, in which the embedding returns what the block before has left, all blocks but one hand on
what they are given, and norm and head do, too. So masks and positions are the model's own, and each block is called
with what a pass of the whole model calls it with: scores are equal to the last bit where kernels repeat.

Only models whose blocks are known to need nothing else are run so; others are loaded whole, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn

from harness.catalogue.models import BaseModelSpec
from harness.engine.block_scores import (
    Scorer,
    block_scores,
    checked,
    forward,
    outlier_percent,
    scored_layers,
    watched_inputs,
)
from harness.engine.hidden_states import HiddenStates
from harness.engine.weight_scores import weight_scores
from harness.method import BlockScoreRequest, Decoder
from harness.progress import Progress, silent
from harness.tensors.decoder import find_decoder
from harness.tensors.loading import load_model
from harness.tensors.streamed import CannotStream, StreamedModel, stream_model


def checkpoint_scorer(
    folder: Path,
    dtype: str,
    device: torch.device,
    spec: BaseModelSpec,
    *,
    scratch: Path,
    progress: Progress = silent,
    tell: Callable[[str], None],
) -> Scorer:
    """Return what scores the blocks of the model in a folder, with as little of it in memory as can be.

    Args:
        folder: As ``load_model``.
        dtype: ``fp32`` or ``bf16``.
        device: Where the scores are computed.
        spec: Its entry.
        scratch: Folder on a disk with room for the hidden states of all calibration samples.
        progress: As :func:`block_scores`; streamed, it is called once a sample and block.
        tell: Is told in a sentence where the model has to be loaded whole, and why.

    Raises:
        HarnessError: as ``load_model`` and ``find_decoder``.
    """
    try:
        streamed = stream_model(folder, dtype, device, spec)
    except CannotStream as reason:
        tell(f"{spec.name} is loaded whole for the scores of its blocks: {reason}")
        model = load_model(folder, dtype, device)
        decoder = find_decoder(model, spec)
        return lambda request, samples: block_scores(request, model, decoder, samples, progress)
    return lambda request, samples: streamed_block_scores(request, streamed, samples, scratch, progress)


def streamed_block_scores(
    request: BlockScoreRequest,
    streamed: StreamedModel,
    samples: Sequence[torch.Tensor],
    scratch: Path,
    progress: Progress = silent,
) -> list[float]:
    """Return one score per decoder block.

    Args:
        request: Kind of score and its threshold.
        streamed: The model.
        samples: Calibration sequences, each (1, tokens) int64; used by ``outlier`` alone.
        scratch: As :func:`checkpoint_scorer`.
        progress: Called once a sample and block, or once a matrix.

    Raises:
        Refused: as :func:`block_scores`.
        HarnessError: as there; or the checkpoint cannot be read, or the disk does not take the hidden states.
    """
    decoder = streamed.decoder
    layers = scored_layers(decoder)
    if request.kind != "outlier":
        return checked(request, weight_scores(request, decoder, layers, streamed.filled, progress))
    assert request.tau is not None
    scores, number = [], len(decoder.blocks)
    with HiddenStates(scratch) as hidden, _relayed(decoder) as relay:
        for index, block in enumerate(decoder.blocks):
            embedding = nullcontext() if index else streamed.filled(decoder.embedding)
            with embedding, streamed.filled(block), watched_inputs(layers[index]) as squares:
                for at, sample in enumerate(samples):
                    said = f"scoring, block {index + 1} of {number}, sample {at + 1} of {len(samples)}"
                    progress(said, index * len(samples) + at, number * len(samples))
                    relay.given = hidden.get(at, streamed.device) if index else None
                    left = relay.run(block, streamed.model, sample.to(streamed.device))
                    if index + 1 < number:
                        hidden.put(at, left)
                    del left
                relay.given = None
                with torch.no_grad():
                    scores.append(outlier_percent(layers[index], squares, request.tau))
    return checked(request, scores)


class _Relay:
    """Runs a model's forward pass in which one block alone computes."""

    def __init__(self) -> None:
        self.given: torch.Tensor | None = None
        """In the place of what the embedding returns: (1, tokens, width); None: that itself."""
        self._turn: nn.Module | None = None
        self._passed: list[torch.Tensor] = []

    def run(self, block: nn.Module, model: nn.Module, sample: torch.Tensor) -> torch.Tensor:
        """Return what a block leaves of what is given: (1, tokens, width).

        Args:
            block: Its weights are there.
            model: The block's.
            sample: (1, tokens) int64, on the device.
        """
        self._turn, self._passed = block, []
        forward(model, sample)
        # Held against code that is not the one that was read.
        assert len(self._passed) == 1 and isinstance(self._passed[0], torch.Tensor), "blocks do not run one by one"
        return self._passed.pop()

    def embedding(self, own: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Return a forward pass of the embedding."""
        return lambda *args, **kwargs: own(*args, **kwargs) if self.given is None else self.given

    def block(self, block: nn.Module, own: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Return a forward pass of a block."""

        def run(states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            if self._turn is not block:
                return states
            self._passed.append(own(states, *args, **kwargs))
            return self._passed[-1]

        return run


@contextmanager
def _relayed(decoder: Decoder) -> Iterator[_Relay]:
    """Put a relay's forward passes in the place of a decoder's own inside."""
    relay = _Relay()
    stands: dict[nn.Module, Callable[..., torch.Tensor]] = {
        decoder.embedding: relay.embedding(decoder.embedding.forward),
        **{block: relay.block(block, block.forward) for block in decoder.blocks},
        decoder.final_norm: _handed_on,
        decoder.head: _handed_on,
    }
    for module, stand in stands.items():
        module.forward = stand
    try:
        yield relay
    finally:
        for module in stands:
            del module.forward


def _handed_on(states: torch.Tensor) -> torch.Tensor:
    return states
