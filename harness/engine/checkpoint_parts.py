"""The tensors of a checkpoint in the files of the processes that wrote it, read as another number of them needs them.

A process writes what it holds: its parts of parameters and of the tensors of optimizer state. What every process holds
all of, the first one writes. How a tensor lies in the files stands beside them in JSON: along which dimension parts are
put together, or that they are none that another number of processes could take up. How it lies in the processes that
read is asked of parameters and optimizer; so no name of a state tensor is known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from harness.errors import Refused
from harness.method import StepOptimizer
from harness.tensors.sharded import APART, Apart, Lying, Place, local

Cuts = dict[str, int | Apart]
"""Along which dimension the parts of a tensor follow each other; a tensor that is not named is whole."""


def part_names(kind: str, num_ranks: int) -> list[str]:
    """Return the names of the files that hold tensors of a kind, in the order of the processes."""
    if num_ranks == 1:
        return [f"{kind}.safetensors"]
    return [f"{kind}-{rank}-of-{num_ranks}.safetensors" for rank in range(num_ranks)]


def places_of(optimizer: StepOptimizer, state: Mapping[Any, Any], *, several: bool) -> dict[str, Lying]:
    """Return how the tensors of an optimizer's state lie in its processes, by their paths in it.

    An optimizer says it by a method ``state_places(parameter, shapes by name)``; one process asks none.

    Args:
        optimizer: Whose parameters are shared out where there are several processes.
        state: ``state`` of its ``state_dict``, by the number of the parameter; tensors may be without values.
        several: Whether there are.

    Raises:
        Refused: it does not say it.
    """
    if not several:
        return {}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    asked = getattr(optimizer, "state_places", None)
    if asked is None:
        raise Refused(
            f"{type(optimizer).__name__} does not say how its state is shared out over processes (state_places), which "
            "a checkpoint of several needs: run without checkpoints, or on one device"
        )
    found: dict[str, Lying] = {}
    for index, held in state.items():
        shapes = {key: value.shape for key, value in held.items() if isinstance(value, torch.Tensor)}
        found |= {f"/state/{index}/{key}": lying for key, lying in asked(params[int(index)], shapes).items()}
    return found


def cuts_of(places: Mapping[str, Lying]) -> Cuts:
    """Return how tensors lie in the files of processes that hold them so."""
    return {name: one.dim if isinstance(one, Place) else one for name, one in places.items() if one is not None}


def own_parts(tensors: Mapping[str, torch.Tensor], cuts: Cuts, *, first: bool) -> dict[str, torch.Tensor]:
    """Return what a process writes: its parts, and what is whole if it is the first."""
    return {
        name: local(tensor.detach()).contiguous()
        for name, tensor in tensors.items()
        if first or cuts.get(name) is not None
    }


class Parts(ExitStack):
    """Tensors of one kind in the files of a checkpoint: mapped, and read as far as they are asked for."""

    def __init__(self, files: Sequence[Path], cuts: Cuts, *, rank: int, size: int) -> None:
        """Take the files in the order of the processes that wrote them, and which process of how many reads."""
        super().__init__()
        self._cuts, self._rank = cuts, rank
        self._size = size
        self._files: list[Any] = [self.enter_context(safe_open(file, framework="pt")) for file in files]

    def blank(self) -> dict[str, torch.Tensor]:
        """Return tensors without values in the shapes of the first process's."""
        first = self._files[0]
        return {name: torch.empty(first.get_slice(name).get_shape(), device="meta") for name in first.keys()}  # noqa: SIM118

    def refuse_apart(self, places: Mapping[str, Lying], step: int) -> None:
        """Refuse tensors that only as many processes can take up as wrote them.

        Raises:
            Refused: there are some, and another number reads.
        """
        if self._size != len(self._files) and APART in [*self._cuts.values(), *places.values()]:
            raise Refused(
                f"the checkpoint of step {step} was written by {len(self._files)} processes, and holds optimizer state "
                f"that {self._size} cannot cut anew, as 8-bit moments in blocks that do not line up with their parts "
                f"of a tensor: go on with {len(self._files)}"
            )

    def take(self, name: str, lying: Lying) -> torch.Tensor:
        """Return what this process holds of a tensor, on the host.

        Args:
            name: Of the tensor.
            lying: Here.
        """
        cut = self._cuts.get(name)
        if cut == APART:
            tensor: torch.Tensor = self._files[self._rank].get_tensor(name)
            return tensor
        place = lying if isinstance(lying, Place) else None
        if cut is None:
            return self._piece(self._files[0], name, place)
        assert place is None or place.dim == cut, f"{name} was cut along {cut}, and is to be along {place.dim}"
        pieces, start = [], 0
        for file in self._files:
            length = file.get_slice(name).get_shape()[cut]
            first, last = start, start + length
            if place is not None:
                first, last = max(first, place.start), min(last, place.start + place.length)
            if first < last:
                pieces.append(self._piece(file, name, Place(cut, first - start, last - first, torch.Size())))
            start += length
        if not pieces:
            return self._piece(self._files[0], name, Place(cut, 0, 0, torch.Size()))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=cut)

    @staticmethod
    def _piece(file: Any, name: str, place: Place | None) -> torch.Tensor:
        """Return numbers of one file: of all of a dimension those of ``place``, or None: all."""
        if place is None:
            found: torch.Tensor = file.get_tensor(name)
        else:
            index = (*[slice(None)] * place.dim, slice(place.start, place.start + place.length))
            found = file.get_slice(name)[index]
        return found
