"""Brings what a selection needs into the cache and says where it lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.assets.mt_bench import prepare_mt_bench
from harness.assets.prepare import prepare_dataset, prepare_model, prepare_rows
from harness.commands._selection import Selection
from harness.conversation import find_template

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Prepared:
    """Where everything lies."""

    model_folders: Mapping[str, Path]
    """By name; a model with random weights has none."""
    rows_folder: Path | None
    mt_bench_folder: Path | None = None


def prepare(selection: Selection, *, offline: bool, wheels: Sequence[Path], progress: Progress) -> Prepared:
    """Download and convert what the runs of a selection need, and nothing else.

    Raises:
        HarnessError: something is missing and cannot be had; the sentence says how to get it.
    """
    specs = selection.specs
    for template in sorted({spec.conversation for spec in specs if spec.conversation is not None}):
        find_template(template)
    datasets = sorted(
        {spec.train.data for spec in specs if spec.train is not None}
        | {spec.calibration.data for spec in specs if spec.calibration is not None}
        | {spec.general.data for spec in specs if spec.general is not None}
    )
    for name in datasets:
        prepare_dataset(name, overrides=selection.data, offline=offline, wheels=wheels, progress=progress)
    rows_folder = None
    if any(spec.evaluation.tasks and spec.evaluation.rows != "hub" for spec in specs):
        rows_folder = prepare_rows(offline=offline, wheels=wheels, progress=progress)
    mt_bench_folder = None
    for name in {spec.evaluation.mt_bench.data for spec in specs if spec.evaluation.mt_bench is not None}:
        mt_bench_folder = prepare_mt_bench(selection.data.get(name), offline=offline, wheels=wheels, progress=progress)
    folders = {
        name: prepare_model(model, convert=convert, offline=offline, wheels=wheels, progress=progress)
        for name, model in selection.models.items()
        if model.weights == "pretrained"
    }
    return Prepared(folders, rows_folder, mt_bench_folder)


def convert(gguf_file: Path, folder: Path, architecture: str, progress: Progress) -> None:
    """Convert packaged weights; the engine, and torch with it, is imported only when there is something to convert."""
    from harness.engine.conversion import convert_gguf

    convert_gguf(gguf_file, folder, architecture, progress)
