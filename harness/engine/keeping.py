"""Keeps trained weights: before the evaluation what is enough to score them again, after it what a user loads.

The model that is scored must not be touched, and merging an adapter changes it: so the adapter is written first, with
the tokenizer, and the merged weights once the scores are there. A method whose export changes the model, and that has
no adapter, is kept afterwards alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from harness.catalogue.datasets import DatasetSpec
from harness.catalogue.models import BaseModelSpec
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
) -> bool:
    """Write, durably, what gives the trained model back, where that leaves it as it is; return whether it was written.

    Args:
        method: The one that trained.
        model: What ``finalize`` returned.
        tokenizer: The model's.
        folder: Where to; made here.
        base: What was trained: where its files lay is kept beside an adapter, which needs them.
        data: What it was trained on; None: on nothing.
    """
    make_folder(folder)
    tokenizer.save_pretrained(folder)
    adapter: Any = method.adapter(model)
    whole = adapter is None and type(method).export is Method.export
    if adapter is not None:
        adapter.save_pretrained(folder / ADAPTER, safe_serialization=True)
        (folder / ADAPTER / CARD).unlink(missing_ok=True)  # peft's, which has nothing to say but the base's local path
    elif whole:
        _save(model, folder)
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
    (folder / BASE).write_text(origin.model_dump_json(), encoding="utf-8")
    sync_tree(folder)
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


def keep_merged(method: Method, model: nn.Module, folder: Path) -> None:
    """Write, durably, the model as the base architecture has it into a folder that lacks it; may change the model."""
    part = beside(folder / "merged")
    try:
        make_folder(part)
        _save(method.export(model), part)
        for file in sorted(part.iterdir(), key=lambda file: file.name == CONFIG):  # by which the whole is known
            put(file, folder / file.name)
    finally:
        remove(part)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder, safe_serialization=True)
