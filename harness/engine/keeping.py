"""Keeps trained weights: before the evaluation what is enough to score them again, after it what a user loads.

The model that is scored must not be touched, and merging an adapter changes it: so the adapter is written first, with
the tokenizer, and the merged weights once the scores are there. A method whose export changes the model, and that has
no adapter, is kept afterwards alone.

Where processes share a run out, the first one writes what all gather (:mod:`harness.engine.gathered_weights`), and what
its disk refuses is refused in all. The merged weights of an adapter it makes alone, of base and adapter as they lie on
the disk: that takes the host memory of a whole model, and rounds as a CPU does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from harness.catalogue.datasets import DatasetSpec
from harness.catalogue.models import BaseModelSpec
from harness.engine.gathered_weights import agree, gathered_adapter, save_gathered
from harness.engine.ranks import ALONE, Ranks
from harness.files import beside, make_folder, put, remove, sync_tree
from harness.kept import ADAPTER, BASE, CARD, CONFIG, Origin, Source
from harness.method import Method

WEIGHTS = "weights"
"""Of a run's work folder."""


def keep_trained(
    method: Method,
    model: nn.Module,
    tokenizer: Any,
    folder: Path,
    base: BaseModelSpec,
    *,
    data: DatasetSpec | None = None,
    ranks: Ranks = ALONE,
) -> bool:
    """Write, durably, what gives the trained model back, where that leaves it as it is; return whether it was written.

    Args:
        method: The one that trained.
        model: What ``finalize`` returned.
        tokenizer: The model's.
        folder: Where to; made here.
        base: What was trained: where its files lay is kept beside an adapter, which needs them.
        data: What it was trained on; None: on nothing.
        ranks: The processes that share the model out; all call this.

    Raises:
        OSError: the disk refuses; in every process.
    """

    def begin() -> None:
        make_folder(folder)
        tokenizer.save_pretrained(folder)

    agree(ranks, begin)
    adapter: Any = method.adapter(model)
    whole = adapter is None and type(method).export is Method.export
    if adapter is not None:
        given = {"state_dict": gathered_adapter(model, ranks)} if ranks.several else {}
        agree(ranks, lambda: adapter.save_pretrained(folder / ADAPTER, safe_serialization=True, **given))
    elif whole:
        _save(model, folder, ranks)
    origin = Origin(
        model=base.name,
        folder=None if base.folder is None or adapter is None else str(base.folder),
        base=Source(
            name=base.name,
            hub_id=base.hub_id,
            revision=base.revision,
            licence=base.licence,
            stands_in=base.folder is not None,
        ),
        data=None if data is None else _data_source(data),
    )

    def end() -> None:
        (folder / ADAPTER / CARD).unlink(missing_ok=True)  # peft's, which has nothing to say but the base's local path
        (folder / BASE).write_text(origin.model_dump_json(), encoding="utf-8")
        sync_tree(folder)

    agree(ranks, end)
    return adapter is not None or whole


def _data_source(data: DatasetSpec) -> Source:
    return Source(
        name=data.name,
        hub_id=data.hub_id,
        revision=data.revision or data.commit,
        repository=data.repository,
        licence=data.licence,
        stands_in=data.file is not None,
    )


def needs_merging(folder: Path) -> bool:
    """Return whether kept weights are not yet those of a model of the base architecture."""
    return not (folder / CONFIG).is_file()


def keep_merged(method: Method, model: nn.Module, folder: Path, ranks: Ranks = ALONE) -> None:
    """Write, durably, the model as the base architecture has it into a folder that lacks it; may change the model.

    Raises:
        OSError: the disk refuses; in every process.
    """
    part = beside(folder / "merged")

    def end() -> None:
        for file in sorted(part.iterdir(), key=lambda file: file.name == CONFIG):  # by which the whole is known
            put(file, folder / file.name)

    try:
        agree(ranks, lambda: make_folder(part))
        _save(method.export(model), part, ranks)
        agree(ranks, end)
    finally:
        remove(part)


def keep_merged_alone(method: Method, load: Callable[[], nn.Module], folder: Path, ranks: Ranks) -> None:
    """Do what :func:`keep_merged` does in the first process alone, with a model that it loads.

    Raises:
        OSError: the disk refuses; in every process.
    """
    agree(ranks, lambda: keep_merged(method, load(), folder))


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _save(model: Any, folder: Path, ranks: Ranks) -> None:
    if ranks.several:
        save_gathered(model, folder, ranks)
    else:
        model.save_pretrained(folder, safe_serialization=True)
