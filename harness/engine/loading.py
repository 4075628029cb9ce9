"""The model of a run that several processes share out, as each loads it: in host memory that they have in common.

Files of the wanted dtype are mapped by each; of others, and of random values, the first process makes files in the
run's work folder, which are gone again once all have mapped them: :mod:`harness.tensors.mapped` says what it takes.
Where a class of models keeps some weights in fp32, a copy in one dtype would round them: of another dtype, each process
then loads a model of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.catalogue.models import BaseModelSpec
from harness.engine.ranks import Ranks
from harness.errors import HarnessError
from harness.files import reason_of, remove
from harness.tensors import seeding
from harness.tensors.loading import UNREADABLE, load_model
from harness.tensors.mapped import build_from_files, build_in_files, convert, is_mapped_as, keeps_precision

SHARED = "shared-weights"
"""Of a run's work folder, while its processes load."""
HOST = torch.device("cpu")
STREAM = "weights"
"""Of random values."""


def load_together(folder: Path, dtype: str, ranks: Ranks, work: Path) -> nn.Module:
    """Return the model in a folder on the host, in every process, of whose weights there is one copy.

    Args:
        folder: As :func:`load_model`.
        dtype: ``fp32`` or ``bf16``.
        ranks: Several processes of one machine.
        work: The run's work folder.

    Raises:
        HarnessError: as :func:`load_model`, in every process; or the disk does not hold a copy.
    """

    def prepare() -> str:
        try:
            if is_mapped_as(folder, dtype) or keeps_precision(folder):
                return str(folder)
        except UNREADABLE:  # loading it says what is wrong
            return str(folder)
        try:
            convert(folder, dtype, work / SHARED)
        except OSError as error:
            raise _no_room(error) from error
        return str(work / SHARED)

    try:
        model: Any = load_model(Path(ranks.refused_by_first(prepare)), dtype, HOST)
        ranks.exchange("mapped")
        model.name_or_path = model.config._name_or_path = str(folder)  # which an adapter names as its base
    finally:
        if ranks.first:
            remove(work / SHARED)
    assert isinstance(model, nn.Module)
    return model


@dataclass(frozen=True)
class RandomWeights:
    """What random values are drawn from."""

    model: BaseModelSpec
    dtype: str
    """``fp32`` or ``bf16``."""
    device: torch.device
    """Whose generator draws: the values are those of one process that builds the model there."""
    seed: int
    """Of the run."""

    def build_together(self, ranks: Ranks, work: Path) -> nn.Module:
        """Return the model on the host, in every process, of whose weights there is one copy.

        Args:
            ranks: Several processes of one machine.
            work: The run's work folder.

        Raises:
            HarnessError: as :func:`build_model`, in every process; or the disk does not hold it.
        """
        made: list[nn.Module] = []

        def prepare() -> str:
            made.append(self._build(work))
            return str(work / SHARED)

        try:
            folder = Path(ranks.refused_by_first(prepare))
            model = made[0] if made else build_from_files(self.model, self.dtype, folder)
            ranks.exchange("mapped")
        finally:
            if ranks.first:
                remove(work / SHARED)
        return model

    def build_alone(self, work: Path) -> nn.Module:
        """Return the same in one process; its files are gone once nothing refers to it.

        Raises:
            HarnessError: as :meth:`build_together`.
        """
        try:
            return self._build(work)
        finally:
            remove(work / SHARED)

    def _build(self, work: Path) -> nn.Module:
        try:
            with seeding.seeded_globally(self.seed, STREAM):
                return build_in_files(self.model, self.dtype, self.device, work / SHARED)
        except OSError as error:
            raise _no_room(error) from error


def _no_room(error: OSError) -> HarnessError:
    return HarnessError(
        f"the weights could not be laid into the run's work folder, from which its devices take them: "
        f"{reason_of(error)}; make room on that disk"
    )
