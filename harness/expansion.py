"""Expansion: a suite's file is read, checked, and becomes RunSpecs in a fixed order, each with an identity of its own.

Precedence of a setting, weakest first: the suite's ``[train]``, the label's entry in methods.toml (or in the suite's
``[methods]``), the suite's ``[settings.LABEL]``, a tuned learning rate, one point of the suite's ``[sweep.LABEL]``,
``--set``. The last two show in the label, as in ``owlore[rank=64]``, so that a plain label never names two
configurations of one suite.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from harness.catalogue.labels import LabelEntry
from harness.catalogue.models import BaseModelSpec
from harness.catalogue.packaged_tasks import check_packaged_rows
from harness.catalogue.resolved import Catalogue, named, packaged_catalogue
from harness.catalogue.tuned import Choice, Tuned, read_tuned, tuned_file
from harness.errors import HarnessError, NotInstalled, Refused, near_miss
from harness.gathering import Gathered, early_train_faults
from harness.label_text import points_with, read_label, setting_value
from harness.method import METHODS, Method, check_run
from harness.outside import file_checksums, outside_code
from harness.settings import (
    CalibrationSettings,
    Dtype,
    EvaluationSettings,
    GeneralTextSettings,
    Implied,
    TrainSettings,
    later_settings,
    with_implied,
)
from harness.spec import RunSpec
from harness.suite import Suite, label_with, model_labels, suite_names, sweep_points
from harness.toml_files import read_toml, validate

ENOUGH_FAULTS = 100
"""Found in labels at the points of their sweeps; the message holds fewer."""
MODELS_TABLE = re.compile(r"^[ \t]*\[models\.", re.MULTILINE)


def load_suite(name: str, catalogue: Catalogue | None = None) -> Suite:
    """Return a packaged suite by name, or the suite in a file when ``name`` ends in ``.toml``.

    Args:
        name: Of the suite, or its file.
        catalogue: What names stand for beside the suite's own; None: the packaged one.

    Raises:
        HarnessError: no such suite, or the file is not valid, a label is unknown, a setting is not the method's, or a
            task has none of the rows that it is to be scored on.
    """
    if name.endswith(".toml"):
        table, where = _read_file(Path(name))
    else:
        packaged = suite_names()
        if name not in packaged:
            raise HarnessError(f"there is no suite '{name}'{near_miss(name, packaged)}")
        table, where = read_toml(f"{name}.toml")
    faults = Gathered(where)
    with faults.taken():
        suite = validate(Suite, named(table, where), f"{where}:")
    if faults.found:
        faults.take(*early_train_faults(table, where))
        faults.raise_any()
    if name.endswith(".toml"):
        suite = suite.placed(Path(name).parent)
    known = catalogue_for(suite, where, catalogue)
    if not known.tasks.include_path:  # else what has rows of its own is known once their YAML is read
        with faults.taken():
            check_packaged_rows(suite.evaluation, f"{where}: [evaluation]", known.tasks.rows)
    for label in suite.labels:
        for settings in sweep_points(suite.sweep.get(label, {})):
            if len(faults.found) < ENOUGH_FAULTS:
                with faults.taken():
                    _resolve(suite, label, known, settings, where)
    faults.raise_any()
    return suite


def _read_file(file: Path) -> tuple[dict[str, Any], str]:
    """Return the table in a suite's file; in TOML no key is a list and tables at once."""
    try:
        return read_toml(file)
    except HarnessError as error:
        if "is not valid TOML" in str(error) and MODELS_TABLE.search(file.read_text(encoding="utf-8")):
            raise HarnessError(
                f"{error}; models lists those to run; one of the suite's own is [base_models.NAME]"
            ) from error
        raise


def load_tuned(name: str, suite: Suite) -> Tuned | None:
    """Return the tuned learning rates of a suite, or None when it names no file of them.

    Args:
        name: As given to :func:`load_suite`.
        suite: What that returned.

    Raises:
        HarnessError: the file is missing or not valid, or is another suite's, version's or grid's.
    """
    if suite.tuned is None:
        return None
    file = tuned_file(name, suite.tuned)
    if not file.is_file():
        raise HarnessError(
            f"suite '{suite.name}' takes its learning rates from {file}, which is not there: run harness tune --suite "
            f"{name} first"
        )
    tuned = read_tuned(file)
    tuned.check(suite.name, suite.version, suite.tune, str(file))
    return tuned


def catalogue_for(suite: Suite, where: str, catalogue: Catalogue | None = None) -> Catalogue:
    """Return what the names in a suite stand for: its own labels before those that are known.

    Args:
        suite: As read.
        where: How to call its file in a message.
        catalogue: What names stand for beside the suite's own; None: the packaged one.

    Raises:
        HarnessError: an alias is of no label, or a model or data set of the suite's takes a name that is taken.
    """
    known = packaged_catalogue() if catalogue is None else catalogue
    return known.with_entries(suite, where, may_redefine_labels=True)


def parse_assignment(text: str) -> tuple[str, Any]:
    """Return key and value of ``key=value``; the value is read as TOML, and as a plain string where it is none.

    Raises:
        HarnessError: there is no ``=``.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise HarnessError(f"--set {text}: expected key=value, such as rank=64")
    return key.strip(), setting_value(value)


def expand(
    suite: Suite,
    *,
    models: Mapping[str, BaseModelSpec],
    sources: Mapping[str, str],
    known: Catalogue | None = None,
    labels: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    overrides: Mapping[str, Any] | None = None,
    limit: int | None = None,
    max_steps: int | None = None,
    tuned: Tuned | None = None,
    own: Mapping[str, str] = MappingProxyType({}),
    data: str | None = None,
) -> list[RunSpec]:
    """Return the suite's runs in a fixed order: model, then label, then seed; with a ladder in that of its rungs.

    Args:
        suite: As read by :func:`load_suite`.
        models: The base models to run, in order, identities resolved as far as they are known.
        sources: Identity of each data set by name.
        known: What names stand for, the suite's own among them, as :func:`catalogue_for` has it; None: that of the
            packaged catalogue.
        labels: Labels to run instead of the suite's; any of methods.toml or the suite's own, with settings in
            brackets: ``lora[rank=8]`` is that point of a sweep, else the label under these settings.
        seeds: Seeds instead of the suite's.
        overrides: ``--set`` values, of the method or of training; each must fit every label that is run.
        limit: Items of each task instead of the suite's.
        max_steps: Upper bound of optimizer steps.
        tuned: Learning rates by model and label, from :func:`load_tuned`; None: those of the settings.
        own: What identifies tasks and rows of the user's own that the suite scores, by role of ``sources``.
        data: What every label that trains is trained on instead of what the suite says; it shows in their labels.

    Raises:
        HarnessError: a label is unknown, a setting does not fit, or a learning rate was to be tuned and was not.
    """
    assert all(model.weights == suite.weights for model in models.values())
    where = f"suite '{suite.name}'"
    known = catalogue_for(suite, where) if known is None else known
    evaluation = suite.evaluation if limit is None else suite.evaluation.model_copy(update={"limit": limit})
    runs = []
    asked = _asked(labels or (), overrides or {})
    for name, label in model_labels(suite, models, None if labels is None else list(asked)):
        model = models[name]
        rows = {} if data is None or not _trains(label, known) else {"data": data}
        settings = [{**rows, **changes} for changes in asked.get(label, [overrides or {}])]
        for point, changes in _points(suite.sweep.get(label, {}), settings):
            choice = None if tuned is None else tuned.choice(model.name, label_with(label, point))
            rate = {} if choice is None else {"learning_rate": choice.learning_rate}
            method, entry, config, train, dtype = _resolve(suite, label, known, changes, where, tuned=rate)
            if tuned is not None and method.trains and not rate and "learning_rate" not in changes:
                raise HarnessError(
                    f"suite '{suite.name}': no learning rate was tuned for label '{label_with(label, point)}' on "
                    f"model '{model.name}': run harness tune, or give one with --set learning_rate=X"
                )
            needs_scores = method(config).block_scores_needed() is not None
            if needs_scores and suite.weights == "random":
                raise HarnessError(
                    f"suite '{suite.name}': label '{label}' draws blocks by scores, and scores of random weights "
                    "mean nothing; set probability = 'uniform'"
                )
            if needs_scores and suite.calibration is None:
                raise HarnessError(
                    f"suite '{suite.name}': label '{label}' needs block scores; name their data in [calibration]"
                )
            calibration = suite.calibration if needs_scores else None
            general = suite.general if method.trains else None
            conversation = _conversation_of(suite, model.name, train)
            files, code = file_checksums(config), outside_code(entry.method, conversation)
            # What does not train is one run a suite, whichever seeds are asked for.
            for seed in (seeds if seeds is not None else suite.seeds) if method.trains else suite.seeds[:1]:
                runs.append(
                    RunSpec(
                        suite=suite.name,
                        suite_version=suite.version,
                        protocol=suite.protocol,
                        model=model.identity(),
                        label=label_with(label, changes),
                        method=entry.method,
                        config=config.model_dump(mode="json"),
                        later=dict(later_settings(method.Config)),
                        train=train,
                        evaluation=evaluation,
                        calibration=calibration,
                        general=general,
                        sources=_sources_of(train, evaluation, calibration, general, sources) | dict(own),
                        max_steps=max_steps if method.trains else None,
                        seed=seed,
                        base_dtype=dtype,
                        conversation=conversation,
                        files=files,
                        code=code,
                    )
                )
            if choice is not None and method.trains and "learning_rate" not in changes:
                _check_tuned(suite, choice, runs[-1])
    return runs


def _asked(labels: Sequence[str], overrides: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Return by label, in order, the settings under which each is asked for: those in brackets and of ``--set``.

    Raises:
        HarnessError: a text is no label, is given twice, or ``--set`` says otherwise than its brackets.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for text in labels:
        asked = read_label(text)
        for key, value in asked.changes.items():
            if key in overrides and overrides[key] != value:
                raise HarnessError(f"label '{text}' has {key}={value}, and --set {key}={overrides[key]}: leave one out")
        changes = {**overrides, **asked.changes}
        if changes in found.setdefault(asked.label, []):
            raise HarnessError(f"label '{text}' is given twice")
        found[asked.label].append(changes)
    return found


def _points(
    sweep: Mapping[str, Sequence[Any]], asked: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each point of a sweep with all that its run changes, under each of some settings."""
    seen: list[dict[str, Any]] = []
    for settings in asked:
        for point in points_with(sweep, settings):
            if (changes := {**point, **settings}) not in seen:
                seen.append(changes)
                yield point, changes


def _check_tuned(suite: Suite, choice: Choice, spec: RunSpec) -> None:
    """Refuse a learning rate that was chosen on something else than the run trains."""
    assert suite.tune is not None
    if (what := choice.refusal(spec, suite.tune.max_steps)) is not None:
        raise HarnessError(
            f"suite '{suite.name}': the learning rate {choice.learning_rate:g} of label '{choice.label}' on model "
            f"'{choice.model}' was tuned on {what}: run harness tune again, or give one with --set learning_rate=X"
        )


def training_labels(suite: Suite, labels: Sequence[str] | None = None, catalogue: Catalogue | None = None) -> list[str]:
    """Return which of some labels, or of the suite's, train.

    Args:
        suite: As read.
        labels: Those to look at; None: the suite's.
        catalogue: What names stand for beside the suite's own; None: the packaged one.

    Raises:
        HarnessError: a label is unknown.
    """
    entries = catalogue_for(suite, f"suite '{suite.name}'", catalogue)
    return [label for label in labels or suite.labels if _trains(label, entries)]


def _trains(label: str, known: Catalogue) -> bool:
    return METHODS.get(known.labels[label].method if label in known.labels else label).trains


def _conversation_of(suite: Suite, model: str, train: TrainSettings | None) -> str | None:
    """Return the conversation template that a run of a model uses, in training and in generation alike."""
    if suite.evaluation.mt_bench is None and (train is None or train.prompt != "conversation"):
        return None
    if model not in suite.conversation:
        raise HarnessError(
            f"suite '{suite.name}': names no conversation template for model '{model}'; give it in [conversation]"
        )
    return suite.conversation[model]


def _sources_of(
    train: TrainSettings | None,
    evaluation: EvaluationSettings,
    calibration: CalibrationSettings | None,
    general: GeneralTextSettings | None,
    sources: Mapping[str, str],
) -> dict[str, str]:
    used: dict[str, str] = {} if evaluation.rows is None else {"evaluation": evaluation.rows}
    if train is not None:
        used["train"] = train.data
    if calibration is not None:
        used["calibration"] = calibration.data
    if general is not None:
        used["general"] = general.data
    if evaluation.mt_bench is not None:
        used["mt_bench"] = evaluation.mt_bench.data
    return {role: sources.get(name, name) for role, name in sorted(used.items())}


def _resolve(
    suite: Suite,
    label: str,
    known: Catalogue,
    changes: Mapping[str, Any],
    where: str,
    *,
    tuned: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[type[Method], LabelEntry, Any, TrainSettings | None, Dtype | None]:
    """Return the method, its entry, its checked config and the train settings of one label at one sweep point.

    Of one that does not train the last is the precision that [train] says, where it is not fp32.
    """
    entry = known.labels.get(label)
    if entry is None:
        if label not in (*METHODS.names(), *METHODS.broken()):
            raise HarnessError(
                f"{where}: there is no label '{label}'{near_miss(label, [*known.labels, *METHODS.names()])}"
            )
        entry = LabelEntry(method=label)
    try:
        method = METHODS.get(entry.method)
    except HarnessError as error:
        raise HarnessError(f"{where}: label '{label}': {error}") from error
    faults = Gathered(where)
    config: dict[str, Any] = {}
    train: dict[str, Any] = with_implied(suite.train, TrainSettings.implied)
    packaged = packaged_catalogue().labels
    layers: Iterable[tuple[str, Mapping[str, Any]]] = (
        (f"[methods.{label}]" if label not in packaged or label in suite.methods else "methods.toml", entry.values()),
        (f"[settings.{label}]", suite.settings.get(label, {})),
        (f"tuned = '{suite.tuned}'", tuned),
        ("the sweep or --set", changes),
    )
    method_keys = set(method.Config.model_fields)
    train_keys = set(TrainSettings.model_fields) if method.trains else {"dtype"}
    implied: Implied = {**TrainSettings.implied, **method.Config.implied}
    for origin, values in layers:
        for key, value in with_implied(values, implied).items():
            if key in method_keys:
                config[key] = value
            elif key in train_keys:
                train[key] = value
                _keep_one_length(train, key)
            else:
                settable = method_keys | train_keys
                faults.take(
                    HarnessError(
                        f"{where}: {origin}: label '{label}' (method {entry.method}) has no setting '{key}'"
                        f"{near_miss(key, settable)}"
                    )
                )
    with faults.taken():
        checked = validate(method.Config, config, f"{where}: label '{label}' (method {entry.method}):")
    with faults.taken():
        settings = validate(TrainSettings, train, f"{where}: [train] of label '{label}':") if method.trains else None
    faults.raise_any()
    _check_data(suite, settings, known, f"{where}: label '{label}'")
    if settings is not None and settings.sequence_length == 1:
        raise HarnessError(
            f"{where}: label '{label}': sequence_length = 1 leaves no token to predict from another: set 2 or more"
        )
    try:
        check_run(method, checked, settings)
    except NotInstalled:
        pass  # its runs are refused one by one, with the reason: the other labels need no such package
    except Refused as error:
        raise Refused(f"{where}: label '{label}' (method {entry.method}): {error}") from error
    return method, entry, checked, settings, None if method.trains else _base_dtype(train, where)


def _base_dtype(train: Mapping[str, Any], where: str) -> Dtype | None:
    """Return in which precision weights that are not trained are scored: as those that are; None: fp32.

    Raises:
        HarnessError: it is none.
    """
    dtype = train.get("dtype", "fp32")
    if dtype not in get_args(Dtype):
        raise HarnessError(f"{where}: [train]: dtype is {dtype!r}, expected one of {', '.join(get_args(Dtype))}")
    return None if dtype == "fp32" else dtype


def _check_data(suite: Suite, train: TrainSettings | None, known: Catalogue, where: str) -> None:
    """Refuse what lacks a tokenizer where one is needed, or would score what learnt from noise."""
    datasets = known.datasets
    dataset = None if train is None else datasets.get(train.data)
    drawn = dataset is not None and dataset.drawn is not None
    texts = {"calibration": suite.calibration, "general": suite.general}
    found = {table: datasets.get(text.data) for table, text in texts.items() if text is not None}
    for used in (dataset, *found.values()):
        if used is not None and used.layout == "mt-bench":
            raise HarnessError(f"{where}: data set '{used.name}' is asked by MT-Bench and never trained on")
    for table, used in found.items():
        if used is not None and used.drawn is not None:
            raise HarnessError(f"{where}: [{table}] needs a data set of text, and '{used.name}' holds none")
    if suite.general is not None and suite.weights == "random":
        raise HarnessError(f"{where}: random weights have no text to forget: leave [general] out")
    bench = suite.evaluation.mt_bench
    if bench is not None and known.dataset(bench.data).layout != "mt-bench":
        raise HarnessError(f"{where}: [evaluation.mt_bench]: data set '{bench.data}' is not of the layout mt-bench")
    if (suite.evaluation.tasks or bench is not None) and (drawn or suite.weights == "random"):
        what = f"data '{train.data}' are random tokens" if train is not None and drawn else "weights are random"
        rest = "" if bench is None else " and drop [evaluation.mt_bench]"
        raise HarnessError(f"{where}: its {what}, so scores would mean nothing: set tasks = [] in [evaluation]{rest}")
    if suite.weights == "random" and train is not None and not drawn:
        raise HarnessError(
            f"{where}: random weights come without a tokenizer, which data '{train.data}' need: set data = "
            "'random-tokens'"
        )


def _keep_one_length(train: dict[str, Any], key: str) -> None:
    other = {"num_steps": "num_epochs", "num_epochs": "num_steps"}.get(key)
    if other is not None:
        train.pop(other, None)
