"""The rows that a run trains on: read by the name of their data set, or drawn from the run's seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch

from harness.catalogue.datasets import DatasetSpec
from harness.data.examples import Example, Row
from harness.data.rows import load_parts
from harness.record_text import RowFacts
from harness.settings import TrainSettings
from harness.tensors.seeding import torch_generator


@dataclass(frozen=True)
class RunRows:
    """The rows of a run: those it trains on and those held out, which share none."""

    train: Sequence[Row | Example]
    validation: Sequence[Row | Example]
    facts: RowFacts


def run_rows(settings: TrainSettings, dataset: DatasetSpec, *, vocab_size: int, seed: int) -> RunRows:
    """Return the rows of a run's data, and what is told of them.

    Args:
        settings: Say the length of the rows, and how many are held out.
        dataset: What is trained on.
        vocab_size: Of the model; drawn ids are below it.
        seed: Of the run.

    Raises:
        HarnessError: as :func:`harness.data.rows.load_parts`.
    """
    if dataset.drawn is None:
        parts = load_parts(dataset, settings.validation_rows)
        return RunRows(parts.train, parts.validation, parts.facts)
    assert dataset.num_rows is not None
    length = settings.sequence_length
    train, validation = (
        RandomTokens(num_rows=num_rows, length=length, vocab_size=vocab_size, seed=seed, part=part)
        for part, num_rows in (("train", dataset.num_rows), ("validation", settings.validation_rows))
    )
    return RunRows(train, validation, RowFacts(num_rows=len(train), num_held_out_rows=len(validation)))


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
