"""What the engine offers a method during a run: the concrete ``harness.method.RunContext``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch

from harness.data.batches import MicroBatch
from harness.engine.ranks import ALONE, Ranks
from harness.method import BlockScoreRequest, Decoder
from harness.settings import TrainSettings
from harness.tensors import seeding

StreamRows = Callable[[str, int, int], MicroBatch]
"""Stream, index and number of rows -> these rows of the training set in the stream's own order, on the host."""
InferenceLoss = Callable[[str, int, int], float]
"""The same -> their mean loss."""


class EngineContext:
    """The context of one real run: scalars are read from tensors, block scores were computed beforehand."""

    def __init__(
        self,
        *,
        seed: int,
        num_steps: int,
        train: TrainSettings,
        decoder: Decoder,
        block_scores: Mapping[BlockScoreRequest, Sequence[float]] | None = None,
        scalar_reader: Callable[[torch.Tensor], float] | None = None,
        stream_rows: StreamRows | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.seed = seed
        self.num_steps = num_steps
        self.train = train
        self.decoder = decoder
        self._block_scores = dict(block_scores or {})
        self._read_scalar = scalar_reader
        self.ranks = ranks
        """The processes that share the run out."""
        self.rank, self.num_ranks = ranks.rank, ranks.size
        self.stream_rows = stream_rows
        """Where rows of a method's own stream come from; None: nowhere."""
        self.answer_inference: InferenceLoss | None = None
        """Who makes the passes of :meth:`inference_loss`: whoever takes the steps sets it."""

    def with_decoder(self, decoder: Decoder) -> EngineContext:
        """Return the same context for a decoder whose parameters were replaced."""
        return EngineContext(
            seed=self.seed,
            num_steps=self.num_steps,
            train=self.train,
            decoder=decoder,
            block_scores=self._block_scores,
            scalar_reader=self._read_scalar,
            stream_rows=self.stream_rows,
            ranks=self.ranks,
        )

    def sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a small tensor over all processes."""
        return self.ranks.sum(tensor)

    def torch_generator(self, stream: str) -> torch.Generator:
        """Return a fresh CPU generator of a named stream."""
        return seeding.torch_generator(self.seed, stream)

    def numpy_generator(self, stream: str) -> np.random.Generator:
        """Return a fresh numpy generator of a named stream."""
        return seeding.numpy_generator(self.seed, stream)

    def seed_globally(self, stream: str) -> AbstractContextManager[None]:
        """Seed the global generators from a named stream inside a ``with``."""
        return seeding.seeded_globally(self.seed, stream)

    def block_scores(self, request: BlockScoreRequest) -> Sequence[float]:
        """Return the scores that the method announced in ``block_scores_needed``."""
        assert request in self._block_scores, f"{request} was not announced by block_scores_needed"
        return self._block_scores[request]

    def read_scalar(self, tensor: torch.Tensor) -> float:
        """Return the value of a one-element tensor; waits for the device."""
        if self._read_scalar is not None:
            return self._read_scalar(tensor)
        return float(tensor.item())

    def inference_loss(self, stream: str, index: int, num_rows: int) -> float:
        """Return the mean loss of rows of a stream of the method's own, from a pass without gradients, in nats."""
        assert self.answer_inference is not None, "nobody takes steps yet"
        return self.answer_inference(stream, index, num_rows)
