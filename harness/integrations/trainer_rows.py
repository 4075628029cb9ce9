"""Rows of a Trainer's own data for the passes that a method makes by itself: as micro-batches of the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from itertools import islice
from typing import Any

import torch

from harness.data.batches import IGNORED, MicroBatch, shuffled
from harness.errors import Refused
from harness.tensors import seeding

READ = {"input_ids", "labels", "attention_mask"}
"""Of what a collator returns."""


class TrainerRows:
    """The rows that a Trainer trains on, looked at without moving what it will see."""

    def __init__(self, dataloader: Any, seed: int) -> None:
        """Take the Trainer's loader and the seed of the method's streams.

        Raises:
            Refused: rows can only be had one after the other.
        """
        self._loader = getattr(dataloader, "base_dataloader", dataloader)  # below accelerate's, which keeps count
        self._seed = seed
        if not isinstance(self._loader.dataset, Sized):
            raise Refused(
                "the method looks at rows beside those that it is trained on, and a data set without a length gives "
                "each row once: give the Trainer a data set with a length"
            )

    def first(self, number: int) -> list[MicroBatch]:
        """Return the micro-batches with which training will begin.

        Raises:
            Refused: an epoch has fewer.
        """
        if number > len(self._loader):
            raise Refused(
                f"the method looks at {number} micro-batches before the first step, and the Trainer's data hold "
                f"{len(self._loader)}: lower probe_batches in settings"
            )
        with seeding.restored():  # a sampler may draw from the global generator, and will draw the same again
            return [micro_batch(features) for features in islice(iter(self._loader), number)]

    def refuse_more_at_once(self, num_rows: int) -> None:
        """Refuse a pass over more rows than there are.

        Raises:
            Refused: how many there are.
        """
        if num_rows > len(self._loader.dataset):
            raise Refused(
                f"the method takes the loss of {num_rows:,} training rows at once, and the Trainer's data hold "
                f"{len(self._loader.dataset):,}: lower their number in settings"
            )

    def stream_batch(self, stream: str, index: int, num_rows: int) -> MicroBatch:
        """Return the ``index``-th so many rows of an order that is a named stream's own, as the harness's own runs.

        Raises:
            Refused: they hold no token to take a loss of.
        """
        dataset = self._loader.dataset
        order = shuffled(len(dataset), self._seed, stream, index * num_rows)
        with seeding.seeded_globally(self._seed, f"{stream}/rows/{index}"):  # collators may draw
            batch = micro_batch(self._loader.collate_fn([dataset[next(order)] for _ in range(num_rows)]))
        if not batch.num_trained_tokens:
            raise Refused(f"{num_rows} rows, on which the method takes a loss of its own, hold no token to train on")
        return batch


def micro_batch(features: Mapping[str, torch.Tensor]) -> MicroBatch:
    """Return what a collator returned as a micro-batch of the engine.

    Args:
        features: ``input_ids`` and ``labels``, (rows, length) int64, and perhaps ``attention_mask`` of the same shape.

    Raises:
        Refused: labels are missing, or there is more that the model would read.
    """
    if missing := {"input_ids", "labels"} - set(features):
        raise Refused(f"the Trainer's rows have no {missing.pop()}, of which the method takes a loss of its own")
    if more := sorted(set(features) - READ):
        raise Refused(
            f"the Trainer's rows have {more[0]}, which the method's own passes over them would leave out: give rows of "
            "input_ids, labels and attention_mask (no packing without padding)"
        )
    ids, labels, mask = features["input_ids"], features["labels"], features.get("attention_mask")
    return MicroBatch(
        ids,
        labels,
        None if mask is None or bool(mask.all()) else mask,
        num_tokens=ids.numel() if mask is None else int(mask.sum()),
        num_trained_tokens=int((labels[:, 1:] != IGNORED).sum()),
    )
