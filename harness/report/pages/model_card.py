"""The model card of kept weights: what the hub's front matter takes, and what the record says, nothing else.

Scores stand there with their items and interval, not in the front matter: the hub would set them beside others, and
scores of another protocol are no match for them. No local path enters a card.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness import quantities
from harness.kept import ADAPTER, Kept, Source
from harness.proof import judge_record
from harness.readings import seconds_taken
from harness.record import Record, Score
from harness.remarks import remarks_of
from harness.report.statistics.intervals import estimate_score
from harness.report.table import Column, Table, escape_markdown, markdown_table, one_line
from harness.report.units import NOTHING, percent, with_unit

LICENCES = {
    "apache-2.0": "apache-2.0",
    "apache 2.0": "apache-2.0",
    "mit": "mit",
    "bsd-3-clause": "bsd-3-clause",
    "cc by 4.0": "cc-by-4.0",
    "cc by-sa 3.0": "cc-by-sa-3.0",
    "cc by-sa 4.0": "cc-by-sa-4.0",
    "cc by-nc 4.0": "cc-by-nc-4.0",
    "llama 2 community license": "llama2",
    "meta llama 3 community license": "llama3",
    "gemma": "gemma",
}
"""What the hub calls a licence, by how a catalogue writes it in small letters.

Source: the list of identifiers in the hub's documentation of model cards.
"""
SHOWN = (
    quantities.PEAK_MEMORY,
    quantities.TRACKED_PEAK,
    quantities.STEP_TIME,
    quantities.OPTIMIZER_STATE,
    quantities.PARAMETERS_EVER,
    quantities.HELD_OUT_LOSS,
    quantities.GENERAL_LOSS,
)
OF_FILES = frozenset({"weights lost"})
"""Remarks that tell of files of this machine."""
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$", re.ASCII)


def model_card(kept: Kept) -> str:
    """Return the README.md of a folder of kept weights."""
    record = kept.record
    parts = [
        _front_matter(kept),
        f"# {escape_markdown(record.name)}",
        _what_it_is(kept),
        "## Use",
        _use(kept),
        "## Training",
        "\n".join(f"- {what}: {escape_markdown(value)}" for what, value in _training(record)),
        "## Scores",
        *_scores(kept),
        "## Licence",
        _licence(kept),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _front_matter(kept: Kept) -> str:
    """Return the hub's metadata; JSON's strings and lists are YAML's."""
    record, origin = kept.record, kept.origin
    found: dict[str, Any] = {}
    base = _hub_id(origin.base)
    if base is not None:
        found |= {"base_model": base, "base_model_relation": "finetune" if kept.is_whole else "adapter"}
    data = _hub_id(origin.data)
    if data is not None and origin.data is not None and not origin.data.stands_in:
        found["datasets"] = [data]
    found["library_name"] = "transformers" if kept.is_whole else "peft"
    if origin.base is not None and origin.base.licence:
        known = LICENCES.get(origin.base.licence.lower())
        found["license"] = known or "other"
        if known is None:
            found["license_name"] = re.sub(r"[^a-z0-9]+", "-", origin.base.licence.lower()).strip("-") or "other"
    found["pipeline_tag"] = "text-generation"
    found["tags"] = ["finetune-harness", one_line(record.spec.method)]
    lines = [f"{key}: {json.dumps(value)}" for key, value in found.items()]
    return "\n".join(["---", *lines, "---"])


def _hub_id(source: Source | None) -> str | None:
    """Return the hub's id of a source, where it has one in the hub's form."""
    hub_id = None if source is None else source.hub_id
    return hub_id if hub_id is not None and HUB_ID.match(hub_id) else None


def _what_it_is(kept: Kept) -> str:
    record, origin = kept.record, kept.origin
    spec = record.spec
    name = escape_markdown(record.model_name)
    hub_id = _hub_id(origin.base)
    base = f"{name} ({escape_markdown(hub_id)} on the hub)" if hub_id else name
    if spec.train is None:
        done = f"The weights of {base} as they were scored: method {escape_markdown(spec.method)} trains nothing."
    else:
        done = f"{base}, fine-tuned with {escape_markdown(spec.method)} (label {escape_markdown(record.label)})."
    known = [f"{key} {escape_markdown(str(value))}" for key, value in spec.model.items() if value and key != "name"]
    stood = " They were read from a local folder, which the checksum tells." if _stands_in(origin.base) else ""
    weights = f"Base weights: {', '.join(known)}.{stood}" if known else ""
    how = f"It ended {record.status}; record.json says why."
    held = "The run could not be scored; these weights wait for that." if record.weights_held or not _all(kept) else ""
    made = (
        f"Made by one run of finetune-harness, {record.run_id} in record.json, seed {record.seed}, of suite "
        f"{escape_markdown(record.suite)}, version {spec.suite_version}, protocol {escape_markdown(spec.protocol)}."
    )
    return "\n\n".join(
        " ".join(some) for some in ([done, weights], [made, how if not record.is_ok else "", held]) if any(some)
    )


def _stands_in(source: Source | None) -> bool:
    return source is not None and source.stands_in


def _all(kept: Kept) -> list[tuple[Record, Score]]:
    """Return every score of the weights with the record that brought it, the run's own first."""
    return [(record, score) for record in (kept.record, *kept.added) for score in record.scores]


def _use(kept: Kept) -> str:
    found = []
    if kept.is_whole:
        found.append(
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n```'
        )
    if kept.has_adapter:
        base = _hub_id(kept.origin.base) or "FOLDER_OF_THE_BASE"
        found.append(
            ("The adapter alone, on its base:" if kept.is_whole else "An adapter, on its base:")
            + "\n\n```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
            f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
            f'model = PeftModel.from_pretrained(base, "FOLDER/{ADAPTER}")\n```'
        )
    if (packed := _packed(kept)) is not None:
        found.append(packed)
    found.append("FOLDER is the one that this file lies in.")
    return "\n\n".join(found)


def _packed(kept: Kept) -> str | None:
    """Return what of weights trained on a quantized base is not as its scores; None of others."""
    train = kept.record.spec.train
    how = None if train is None else train.quantized
    if train is None or how is None:
        return None
    said = [
        f"Trained and scored on a base quantized to {how.kind}: to have that model, load the base with "
        f'`BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="{how.kind}", '
        f"bnb_4bit_use_double_quant={how.double}, "
        f"bnb_4bit_compute_dtype=torch.{'bfloat16' if train.dtype == 'bf16' else 'float32'})` under the adapter."
    ]
    if kept.is_whole:
        said.append(
            "The merged weights are the adapters added to what the 4 bits stand for, rounded to the precision of the "
            "other weights: not the function that was trained and scored."
        )
    return " ".join(said)


def _training(record: Record) -> Iterator[tuple[str, str]]:
    """Yield what was asked of the training and what came of it."""
    spec, environment = record.spec, record.environment
    yield "settings of the method", _settings(record, spec.config)
    if spec.train is not None:
        yield "data", spec.sources.get("train", spec.train.data)
        yield "settings of training", _settings(record, spec.train.model_dump(mode="json", exclude_none=True))
    if record.train is not None:
        yield "optimizer steps", str(record.train.num_steps)
    for quantity in SHOWN:
        if (value := quantity.read(record)) is not None:
            text = with_unit(value, quantity.unit)
            if quantity.before is not None and (before := quantity.before.read(record)) is not None:
                text = f"{with_unit(before, quantity.unit)} before, {text} after"
            yield quantity.title, text
    if record.train is not None:
        judgement = judge_record(record)
        yield "proof that the method was on", "not judged" if judgement is None else judgement.summary()
    for remark in remarks_of(record):
        if remark.kind not in OF_FILES:
            yield f"remark, {remark.kind}", remark.sentence
    yield "device", f"{environment.device_text}, {environment.num_threads} CPU threads"
    yield "took", f"{seconds_taken(record):.1f} s, evaluation included; began {record.started_at:%Y-%m-%d}"
    yield "packages", ", ".join(f"{name} {version}" for name, version in sorted(environment.packages.items()))
    changed = ", with uncommitted changes" if environment.dirty else ""
    yield "commit of the harness", f"{environment.commit}{changed}" if environment.commit else "not known"
    yield "source of the harness", f"SHA-256 {environment.source_checksum}"


def _settings(record: Record, values: Mapping[str, Any]) -> str:
    """Return settings in words; a file stands there by its checksum, as paths are this machine's."""
    files = record.spec.files or {}
    shown = {key: f"file with SHA-256 {files[key]}" if key in files else value for key, value in values.items()}
    return ", ".join(f"{key}={value}" for key, value in shown.items()) or "none"


def _scores(kept: Kept) -> list[str]:
    scores = _all(kept)
    if not scores:
        return ["None: the weights were not scored."]
    rows = [_score_row(record, score, kept) for record, score in scores]
    columns = ("task", "metric", "value", "95% interval", "n", "shots", "scored")
    evaluation = kept.record.evaluation_settings
    rows_of = f" Items: {escape_markdown(evaluation.rows)}." if evaluation.rows else ""
    text = (
        f"Under the protocol {escape_markdown(kept.record.spec.protocol)}, by lm-eval "
        f"{escape_markdown(kept.record.environment.version_of('lm-eval') or 'of unknown version')}.{rows_of} Intervals "
        "cover the items of this one run, not other seeds; scores of other protocols are no match for these."
    )
    return [_table(columns, rows, right=("value", "95% interval", "n", "shots")), text]


def _score_row(record: Record, score: Score, kept: Kept) -> tuple[str, ...]:
    interval = estimate_score([score]).interval
    edges = NOTHING if interval is None else " to ".join(_value(edge, score) for edge in interval)
    own = "by the run" if record.is_run else f"later, {record.started_at:%Y-%m-%d}"
    if record.judging is not None:
        own = f"{own}, judged by {record.judging.judge}"
    shots = NOTHING if score.num_fewshot is None else str(score.num_fewshot)
    return score.task, score.metric, _value(score.value, score), edges, str(score.n), shots, own


def _value(value: float, score: Score) -> str:
    return f"{percent(value)}%" if score.is_fraction else f"{value:.3f}"


def _licence(kept: Kept) -> str:
    base, data = kept.origin.base, kept.origin.data
    said = [f"Base model: {escape_markdown(base.licence) if base and base.licence else 'not known to the harness'}."]
    if kept.record.spec.train is not None:
        said.append(f"Data: {escape_markdown(data.licence) if data and data.licence else 'not known to the harness'}.")
        if data is not None and data.stands_in:
            said.append("The data were a local file in that place.")
    return " ".join(said)


def _table(titles: Sequence[str], rows: Sequence[tuple[str, ...]], right: Sequence[str] = ()) -> str:
    columns = tuple(Column(title, "right" if title in right else "left") for title in titles)
    return markdown_table(Table(columns, tuple(rows)))
