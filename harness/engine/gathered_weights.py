"""Weights that are shared out over the processes of a run, written whole by the first of them.

Every process takes part in gathering, one tensor after the other in the same order; the first writes each before the
next comes, in files as transformers' ``save_pretrained`` writes them, of at most ``MOST_BYTES`` each, so that no
process holds more than one whole tensor. What cannot be written stops no gathering, in which the others wait: the first
process remembers it, and all are told at the end.

An adapter is gathered and saved by peft. Where transformers turns weights of a model into several as it saves them
(experts of a mixture), all are gathered in the first process, whose host holds the model once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from harness.checkpoint_files import INDEX
from harness.engine.ranks import Ranks
from harness.tensors.sharded import class_of, whole
from harness.tensors.tensor_files import TensorFile

MOST_BYTES = 5_000_000_000
"""Of a file."""
PATTERN = "model{suffix}.safetensors"
UNWRITTEN = (OSError, SafetensorError)
"""What says that a file could not be written."""


class FirstUnwritten(OSError):
    """The first process could not write; this is what it was told."""


def save_gathered(model: Any, folder: Path, ranks: Ranks) -> None:
    """Write a model of the base architecture as ``save_pretrained`` does; all processes call it.

    Args:
        model: A transformers model whose parameters are shared out.
        folder: There in the first process, which writes.
        ranks: Of the run.

    Raises:
        OSError: it cannot be written; in every process.
    """
    tensors: dict[str, torch.Tensor] = model.state_dict()
    names, one_to_one = _names_saved(model, tensors)
    writer = _Writer(ranks)
    if not one_to_one:
        held = {name: writer.kept(tensors[name]) for name in names}
        writer.attempt(lambda: model.save_pretrained(folder, state_dict=held, max_shard_size=MOST_BYTES))
        writer.end()
        return
    shapes = {name: _shape(tensors[own]) for name, own in names.items()}
    files, index = _layout(shapes, model.num_parameters())
    writer.attempt(lambda: _save_configuration(model, folder))
    for file, inside in files.items():
        with writer.file(folder / file, {name: shapes[name] for name in inside}) as (order, add):
            for name in order:
                add(whole(tensors[names[name]]))
    if index is not None:
        spelled = json.dumps(index, indent=2, sort_keys=True) + "\n"
        writer.attempt(lambda: (folder / INDEX).write_text(spelled, encoding="utf-8"))
    writer.end()


def gathered_adapter(wrapped: Any, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Return what peft saves of a model with an adapter, whole and on the host, by the model's own names.

    All processes call it; of any but the first the tensors are on ``meta``.

    Args:
        wrapped: peft's model.
        ranks: Of the run.
    """
    import peft

    tensors: dict[str, torch.Tensor] = wrapped.state_dict()
    shapes = {name: _shape(tensor) for name, tensor in tensors.items()}
    saved = {id(shape) for shape in peft.get_peft_model_state_dict(wrapped, state_dict=dict(shapes)).values()}
    writer = _Writer(ranks)
    return {name: writer.kept(tensor) for name, tensor in tensors.items() if id(shapes[name]) in saved}


def agree(ranks: Ranks, act: Callable[[], object]) -> None:
    """Do something in the first process; let every process raise where its disk refuses.

    Raises:
        OSError: it does.
    """
    writer = _Writer(ranks)

    def tried() -> str:
        writer.attempt(act)
        return ""

    ranks.from_first(tried)
    writer.end()


class _Writer:
    """Writes in the first process, and nowhere once that has failed."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._error: Exception | None = None

    def kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a whole tensor on the host, of any but the first process on ``meta``."""
        gathered = whole(tensor)
        return gathered.cpu() if self._ranks.first else gathered.to("meta")

    def attempt(self, act: Callable[[], object]) -> None:
        """Do something, unless something else could not be done before."""
        if not self._ranks.first or self._error is not None:
            return
        try:
            act()
        except UNWRITTEN as error:
            self._error = error

    @contextmanager
    def file(
        self, file: Path, shapes: Mapping[str, torch.Tensor]
    ) -> Iterator[tuple[list[str], Callable[[torch.Tensor], None]]]:
        """Yield the order of a file's tensors, and what takes each."""
        order = TensorFile.order(shapes)
        opened: list[TensorFile] = []
        self.attempt(lambda: opened.append(TensorFile(file, shapes)))
        yield order, lambda tensor: self.attempt(lambda: opened[0].add(tensor))
        for one in opened:
            self.attempt(one.close) if self._error is None else one.abandon()

    def end(self) -> None:
        """Raise in every process what the first met.

        Raises:
            OSError: it could not write.
        """
        told = self._ranks.from_first(lambda: "" if self._error is None else str(self._error))
        if self._error is not None:
            raise self._error
        if told:
            raise FirstUnwritten(told)


def _names_saved(model: Any, tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, str], bool]:
    """Return the names in the model of the tensors that ``save_pretrained`` writes, by what it calls them, and True.

    Where it does not write them one to one, return those that it makes others of, by themselves, and False.

    Source: transformers 5.23, modeling_utils.py, ``PreTrainedModel.save_pretrained``.
    """
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    ignored = model._keys_to_ignore_on_save or ()
    shapes = {name: _shape(tensor) for name, tensor in tensors.items() if name not in ignored}
    own = {id(shape): name for name, shape in shapes.items()}
    left = remove_tied_weights_from_state_dict(dict(shapes), model)
    saved = revert_weight_conversion(model, dict(left))
    if any(id(shape) not in own for shape in saved.values()):
        return {name: name for name in left}, False
    return {name: own[id(shape)] for name, shape in saved.items()}, True


def _layout(
    shapes: Mapping[str, torch.Tensor], num_parameters: int
) -> tuple[Mapping[str, list[str]], dict[str, Any] | None]:
    """Return the names of each file's tensors, and the index of several files."""
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(dict(shapes), filename_pattern=PATTERN, max_shard_size=MOST_BYTES)
    if not split.is_sharded:
        return split.filename_to_tensors, None
    metadata = {"total_parameters": num_parameters, **split.metadata}
    return split.filename_to_tensors, {"metadata": metadata, "weight_map": split.tensor_to_filename}


def _save_configuration(model: Any, folder: Path) -> None:
    """Write what stands beside the weights.

    Source: as :func:`_names_saved`.
    """
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.architectures = [class_of(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _shape(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
