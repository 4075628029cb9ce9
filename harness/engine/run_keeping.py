"""The weights of one run, kept before it is scored and merged after it; a full disk costs no score."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from harness.engine.keeping import (
    WEIGHTS,
    first_line,
    keep_merged,
    keep_merged_alone,
    keep_trained,
    needs_merging,
)
from harness.engine.loading import HOST, RandomWeights
from harness.engine.run_parts import RunParts, Trained
from harness.files import remove
from harness.kept import ADAPTER
from harness.tensors.adapters import load_adapter
from harness.tensors.loading import load_model
from harness.tensors.sharded import reshard


def keep(run: RunParts, trained: Trained) -> None:
    """Keep the weights before they are scored; where the disk refuses, the scores are worth having all the same."""
    task, train = run.task, run.task.spec.train
    folder, data = task.work_folder / WEIGHTS, None if train is None else task.datasets.get(train.data)
    with run.meter.phase("save"):
        run.progress("saving", 0, None)
        try:
            whole = keep_trained(
                trained.method, trained.model, trained.tokenizer, folder, task.model, data=data, ranks=run.ranks
            )
        except (OSError, SafetensorError) as error:
            if run.ranks.first:
                remove(folder)
            run.outcome.weights_error = f"the weights could not be kept: {first_line(error)}"
            return
    if whole:
        run.outcome.weights = folder.name
        run.leave(run.record("interrupted", run.task.unscored("ended before it was scored"), None))


def merge(run: RunParts, trained: Trained, folder: Path) -> None:
    """Write the merged weights beside a kept adapter; the adapter stays where that fails."""
    if not run.ranks.from_first(lambda: "merge" if needs_merging(folder) else ""):
        return
    with run.meter.phase("merge"):
        run.progress("merging", 0, None)
        try:
            if run.ranks.several and trained.method.has_adapter:
                keep_merged_alone(trained.method, lambda: _loaded_alone(run, folder / ADAPTER), folder, run.ranks)
            else:
                keep_merged(trained.method, trained.model, folder, run.ranks)
        except (OSError, SafetensorError) as error:
            run.outcome.weights_error = f"the merged weights could not be kept: {first_line(error)}"
            return
    run.outcome.weights = run.outcome.weights or folder.name


def _loaded_alone(run: RunParts, adapter: Path) -> nn.Module:
    """Return base model and adapter as one process has them, on the host."""
    task, dtype = run.task, run.task.spec.dtype
    if task.model_folder is not None:
        base = load_model(task.model_folder, dtype, HOST)
    else:
        base = RandomWeights(task.model, dtype, run.device, task.spec.seed).build_alone(task.work_folder)
    return load_adapter(base, adapter)


def keep_unscored(run: RunParts, trained: Trained) -> None:
    """Keep the weights of a run that could not be scored, whether or not anybody asked for them."""
    asked = run.task.keep_weights
    if not run.ranks.can_still_gather():
        if run.outcome.weights is None and run.outcome.weights_error is None:
            run.outcome.weights_error = "the weights could not be gathered: the run's processes ended apart"
        return
    reshard(trained.model)
    try:
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
        if run.outcome.weights is None and run.outcome.weights_error is None:
            keep(run, trained)
        if run.outcome.weights_error is None and (asked or run.outcome.weights is None):
            merge(run, trained, run.task.work_folder / WEIGHTS)
    except Exception as error:
        run.outcome.weights_error = f"the weights could not be kept whole: {first_line(error)}"
    run.outcome.weights_held = run.outcome.weights is not None and not asked
