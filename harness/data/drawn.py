"""The rows that a run trains on: read by the name of their data set, or drawn from the run's seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch

from harness.catalogue.datasets import DatasetSpec
from harness.data.examples import Example, Row
from harness.data.rows import load_rows
from harness.settings import TrainSettings
from harness.tensors.seeding import torch_generator


def run_rows(
    settings: TrainSettings,
    dataset: DatasetSpec,
    part: Literal["train", "validation"],
    *,
    vocab_size: int,
    seed: int,
) -> Sequence[Row | Example]:
    """Return the rows of one part of a run's data; the parts share none.

    Args:
        settings: Say the length of the rows, and how many are held out.
        dataset: What is trained on.
        part: Which rows.
        vocab_size: Of the model; drawn ids are below it.
        seed: Of the run.

    Raises:
        HarnessError: as :func:`harness.data.rows.load_rows`.
    """
    if dataset.drawn is None:
        return load_rows(dataset, part, validation_rows=settings.validation_rows)
    assert dataset.num_rows is not None
    num_rows = dataset.num_rows if part == "train" else settings.validation_rows
    return RandomTokens(num_rows=num_rows, length=settings.sequence_length, vocab_size=vocab_size, seed=seed, part=part)


def rows_may_be_padded(settings: TrainSettings, dataset: DatasetSpec | None) -> bool:
    """Return whether a micro-batch of a run's training rows can hold rows of different lengths.

    Args:
        settings: Of the run.
        dataset: What is trained on; None: not known.
    """
    if settings.packing or settings.batch_size == 1:
        return False
    return dataset is None or dataset.drawn is None


class RandomTokens(Sequence[Example]):
    """Rows of token ids, each drawn from a stream of its own when it is asked for; every token is trained on."""

    def __init__(self, *, num_rows: int, length: int, vocab_size: int, seed: int, part: str) -> None:
        """Take the shape of the rows; ``part`` names the stream, so that parts share no row."""
        self._num_rows = num_rows
        self._length = length
        self._vocab_size = vocab_size
        self._seed = seed
        self._part = part

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._num_rows

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """Return one row, or several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        generator = torch_generator(self._seed, f"random_tokens/{self._part}/{index}")
        ids = torch.randint(self._vocab_size, (self._length,), generator=generator)
        return Example(tuple(ids.tolist()), (True,) * self._length)
