"""``harness layers``: the scores of a model's decoder blocks, and how often a label's sampling law would draw each.

Scores come from the runs' own cache and go into it: what is printed is what a run of the same suite would use.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.assets.cache import cache_root
from harness.assets.prepare import prepare_dataset, prepare_model, source_identities
from harness.assets.training_rows import load_texts
from harness.commands._assets import convert
from harness.commands._output import Display, plot_file, print_table
from harness.commands._selection import Selection, given_wheels, select
from harness.commands.requests import AssetsRequest, SelectionRequest
from harness.errors import HarnessError
from harness.expansion import labels_for, load_suite
from harness.method import METHODS, BlockScoreRequest
from harness.methods._block_probabilities import block_probabilities
from harness.methods._inclusion import inclusion_probabilities
from harness.methods._settings import LayerSamplingSettings
from harness.report.layers import LayerScores, write_layer_plot
from harness.settings import CalibrationSettings
from harness.spec import RunSpec

SCORE_NAMES = {"outlier": "outlier ratio, %", "weight_norm": "weight norm"}


@dataclass(frozen=True)
class _Asked:
    """What the command line asks for, checked before anything is loaded."""

    selection: Selection
    spec: RunSpec
    settings: LayerSamplingSettings
    request: BlockScoreRequest
    calibration: CalibrationSettings
    dtype: str


def show_layers(
    chosen: SelectionRequest, assets: AssetsRequest, *, in_json: bool = False, plot: str | None = None
) -> int:
    """Print a line a block: its score, its probability, and how often a period would train it."""
    file = None if plot is None else plot_file("--out", plot)
    wheels = given_wheels(assets.wheels)
    asked = _asked(chosen)
    with Display() as display:
        scores = _scores(asked, offline=assets.offline, wheels=wheels, display=display)
    settings, num_blocks = asked.settings, len(scores)
    if settings.active_layers > num_blocks:
        raise HarnessError(f"active_layers is {settings.active_layers}, but the model has {num_blocks} blocks")
    uniform = [1.0 / num_blocks] * num_blocks
    probabilities = block_probabilities(settings, num_blocks, scores) or uniform
    inclusion = inclusion_probabilities(settings, probabilities)
    table = _table(asked, scores, probabilities, inclusion)
    if in_json:
        print(json.dumps(table, indent=2))
    else:
        _print(table)
    if file is not None:
        drawn = LayerScores(
            title=f"Decoder blocks of {asked.spec.model_name}, drawn as {asked.spec.label} draws them",
            score_name=SCORE_NAMES[asked.request.kind],
            scores=scores,
            probabilities=probabilities,
            inclusion=inclusion,
            inclusion_name=f"in a period's draw ({_law(settings)})",
        )
        write_layer_plot(drawn, file)
    return 0


def _asked(chosen: SelectionRequest) -> _Asked:
    """Return what is asked for; the suite resolves label and training settings as it does for a run."""
    for label in chosen.labels:
        _require_sampling(chosen.suite, label)
    selection = select(chosen)
    suite, first = selection.suite, selection.specs[0]
    if suite.weights == "random":
        raise HarnessError(f"suite '{suite.name}' has random weights, whose blocks' scores mean nothing: name another")
    if any(spec.config != first.config for spec in selection.specs):
        raise HarnessError(f"suite '{suite.name}' sweeps settings of label '{first.label}'; name another suite")
    method = METHODS.get(first.method)
    config = method.Config.model_validate(first.config)
    assert isinstance(config, LayerSamplingSettings) and first.train is not None
    request = method(config).block_scores_needed()
    if request is None:
        if config.tau is None:
            raise HarnessError(f"label '{first.label}' draws without scores, so it has no tau: give --tau")
        request = BlockScoreRequest("outlier", config.tau)
    if suite.calibration is None:
        raise HarnessError(f"suite '{suite.name}' has no [calibration], which names the data that blocks are scored on")
    return _Asked(selection, first, config, request, suite.calibration, first.train.dtype)


def _require_sampling(suite_name: str, label: str) -> None:
    """Raise where a label's method draws no blocks; a label that is not known is said to be so later."""
    entry = labels_for(load_suite(suite_name), f"suite '{suite_name}'").get(label)
    if entry is not None and not issubclass(METHODS.get(entry.method).Config, LayerSamplingSettings):
        raise HarnessError(f"label '{label}' (method {entry.method}) trains no sample of blocks: it draws none")


def _scores(asked: _Asked, *, offline: bool, wheels: Sequence[Path], display: Display) -> list[float]:
    """Return one score a block, from the cache where it is there; the model is loaded only where it is not."""
    from harness.engine.block_scores import cached_block_scores
    from harness.engine.environment import default_device
    from harness.tensors.decoder import find_decoder
    from harness.tensors.loading import load_model, load_tokenizer

    calibration, selection = asked.calibration, asked.selection
    model = selection.models[asked.spec.model_name]
    device = default_device()

    def load() -> tuple[Any, Any, Any]:
        folder = prepare_model(model, convert=convert, offline=offline, wheels=wheels, progress=display.progress)
        display.progress("loading", 0, None)
        loaded = load_model(folder, asked.dtype, device)
        return loaded, find_decoder(loaded, model), load_tokenizer(folder)

    def texts() -> list[str]:
        prepare_dataset(
            calibration.data, overrides=selection.data, offline=offline, wheels=wheels, progress=display.progress
        )
        display.progress("scoring blocks", 0, None)
        return load_texts(calibration.data, overrides=selection.data, offline=offline)

    return cached_block_scores(
        asked.request,
        model=asked.spec.model,
        dtype=asked.dtype,
        calibration=calibration,
        data=source_identities(selection.data)[calibration.data],
        device=device,
        cache_folder=cache_root(),
        load=load,
        texts=texts,
    )


def _table(
    asked: _Asked, scores: Sequence[float], probabilities: Sequence[float], inclusion: Sequence[float]
) -> dict[str, Any]:
    settings = asked.settings
    return {
        "model": asked.spec.model_name,
        "suite": asked.selection.suite.name,
        "label": asked.spec.label,
        "score": asked.request.kind,
        "tau": asked.request.tau,
        "dtype": asked.dtype,
        "calibration": asked.calibration.model_dump(mode="json"),
        "sampling": settings.sampling,
        "probability": settings.probability,
        "active_layers": settings.active_layers,
        "blocks": [
            {"block": block, "score": score, "sampling_probability": p, "inclusion_probability": chance}
            for block, (score, p, chance) in enumerate(zip(scores, probabilities, inclusion, strict=True))
        ],
    }


def _print(table: dict[str, Any]) -> None:
    score_name = SCORE_NAMES[table["score"]] + ("" if table["tau"] is None else f" (tau {table['tau']:g})")
    print_table(
        [
            {
                "block": str(row["block"]),
                score_name: f"{row['score']:.6g}",
                "probability": f"{row['sampling_probability']:.6f}",
                "drawn in a period": f"{row['inclusion_probability']:.6f}",
            }
            for row in table["blocks"]
        ]
    )
    calibration = table["calibration"]
    print(
        f"\n{table['model']} in {table['dtype']}, label {table['label']}: probability = {table['probability']}, "
        f"sampling = {table['sampling']}, active_layers = {table['active_layers']}; scored on "
        f"{calibration['num_samples']} samples of {calibration['sequence_length']} tokens of {calibration['data']}"
    )


def _law(settings: LayerSamplingSettings) -> str:
    how = {"without_replacement": "without replacement", "bernoulli": "by coin flips", "tour": "in turn"}
    return f"{settings.active_layers} {how[settings.sampling]}"
