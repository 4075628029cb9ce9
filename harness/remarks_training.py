"""What has to be told of a run's training: rows, text, settings that did nothing, weights that are not there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from harness.record import Record
from harness.silent_settings import SILENT, Asked, said_of

EXPECTED_SHARE = 0.01
"""Of the rows that are held out where no more are asked for."""
MUCH_MORE = 1.2
"""Times the wanted rows: above, what was held out is said."""
LARGE_SHARE = 0.2
"""Of all rows: above, what was held out is said."""
VISIBLE_ERROR = 1e-5
"""Share of a norm: below, as in fp32, rounding is not worth a sentence."""
REPEATED = 0.01
"""Of the rows to train on: above, repeated ones are said; of packed tokens, what did not fill a row."""


def _rows_cut(record: Record) -> str | None:
    """Return how many rows were longer than the sequence: those lost the beginning of their prompt."""
    train, asked, rows = record.train, record.train_settings, record.rows
    if train is None or asked is None:
        return None
    cut, trained = (
        sum(train.curve.truncated_rows),
        train.num_steps * asked.batch_size * asked.gradient_accumulation_steps,
    )
    said = []
    if cut:
        said.append(
            f"{cut} of {trained} trained rows were longer than sequence_length = {asked.sequence_length} and were cut"
        )
        if rows is not None and rows.num_cut_tokens:
            said.append(f"which left {rows.num_cut_tokens:,} tokens out")
        if rows is not None and rows.num_cut_answers:
            said.append(f"{rows.num_cut_answers} of these rows lost the end of their answer")
    if rows is not None and rows.num_validated_cut_rows:
        which = f"{rows.num_validated_cut_rows} of {rows.num_validated_rows} rows of the held-out batch were cut"
        said.append(f"{which}, by {rows.num_validated_cut_tokens or 0:,} tokens")
    return ", ".join(said) or None


def _other_devices(record: Record) -> str | None:
    """Return which steps another number of devices took: no peak or time of the record is of them."""
    train = record.train
    if train is None or not (before := train.other_ranks_before_step):
        return None
    return (
        f"the first {before} of {train.num_steps} steps were taken by another number of devices: peaks, the time of a "
        "step and the proof of the optimizer's state are of the steps since"
    )


def _packing(record: Record) -> str | None:
    """Return what packing left out: rows of prompts alone, and the rest behind the last whole row if it is much."""
    rows, asked = record.rows, record.train_settings
    if rows is None or asked is None or rows.num_packed_tokens is None:
        return None
    said, length = [], asked.sequence_length
    kept, rest, untrained = rows.num_packed_tokens, rows.num_unpacked_tokens or 0, rows.num_untrained_rows or 0
    if untrained:
        said.append(f"{untrained} of {kept // length + untrained} packed rows hold no token to train on")
    if rest > REPEATED * (total := kept + untrained * length + rest):
        said.append(f"{rest:,} of {total:,} tokens stand behind the last whole packed row")
    return f"{' and '.join(said)}: left out" if said else None


def _holding_out(record: Record) -> str | None:
    """Return what was held out where that is much more than was asked for, or much of the data."""
    rows, asked = record.rows, record.train_settings
    if rows is None or asked is None or not (held := rows.num_held_out_rows) or not (trained := rows.num_rows):
        return None
    wanted = max(asked.validation_rows, math.ceil((held + trained) * EXPECTED_SHARE))
    if rows.num_prompts is None or (held <= MUCH_MORE * wanted and held <= LARGE_SHARE * (held + trained)):
        return None
    return (
        f"{held} of {held + trained} rows, those of {rows.num_held_out_prompts} of {rows.num_prompts} prompts, were "
        "held out of training"
    )


def _repeated_rows(record: Record) -> str | None:
    """Return how many training rows repeat another, where they are many."""
    rows = record.rows
    if rows is None or not rows.num_rows or (repeated := rows.num_repeated_rows or 0) <= REPEATED * rows.num_rows:
        return None
    return f"{repeated} of {rows.num_rows} rows to train on repeat another"


def _held_out_asked(record: Record) -> str | None:
    """Return how many held-out texts ask what a training text asks."""
    rows = record.rows
    if rows is None or not rows.num_held_out_asked:
        return None
    return (
        f"{rows.num_held_out_asked} of {rows.num_held_out_rows} held-out texts ask what a training text asks: the "
        "held-out loss is in part of questions that were trained on"
    )


def _blank_rows(record: Record) -> str | None:
    """Return how many rows held nothing to train on."""
    if record.rows is None or not (blank := record.rows.num_blank_rows):
        return None
    return f"{blank} blank rows of the training data were left out"


def _open_rows(record: Record) -> str | None:
    """Return how many conversations did not end with an answer."""
    if record.rows is None or not (rows := record.rows.num_open_rows):
        return None
    whose = "conversation does not end" if rows == 1 else "conversations do not end"
    return f"{rows} {whose} with an answer: what stood behind the last answer was left out"


def _end_left_out(record: Record) -> str | None:
    """Return what a tokenizer would have put behind every text."""
    if record.encoding is None or not (ends := record.encoding.left_out):
        return None
    return f"the tokenizer puts {' '.join(ends)} behind every text, which was left out of prompts, contexts and answers"


def _special_tokens_once(record: Record) -> str | None:
    """Return how many rows brought special tokens that would otherwise have been added."""
    facts = record.encoding
    if facts is None or not (facts.num_rows_begun or facts.num_rows_ended):
        return None
    beginning = " ".join(facts.beginning or ())
    told = [f"{facts.num_rows_begun} began with {beginning}"] if facts.num_rows_begun else []
    told += [f"{facts.num_rows_ended} ended as answers end"] if facts.num_rows_ended else []
    return f"of the rows trained on {' and '.join(told)} in their own text: none was added to these"


def _adapter_start(record: Record) -> str | None:
    """Return how far a start of adapters inside the base weights moved weights and output, where it did visibly."""
    adapters = (record.proof.method if record.proof else {}).get("adapters")
    start = adapters.get("start") if isinstance(adapters, dict) else None
    errors = [start.get(key) for key in ("weight_error", "output_error")] if isinstance(start, dict) else []
    weights, output = errors if len(errors) == 2 else (None, None)
    if not isinstance(weights, float) or not isinstance(output, float) or max(weights, output) < VISIBLE_ERROR:
        return None
    return (
        f"the base weights without what the adapters began with were rounded: before the first step the model is "
        f"{weights:.1e} of its adapted weights' norm and {output:.1e} of its logits' norm away from the base model"
    )


def _weights_lost(record: Record) -> str | None:
    """Return why weights that were to be kept are not there."""
    return record.weights_error


def _held_back(record: Record) -> str | None:
    """Return which matrices a norm-growth limiter all but stopped, should it have been, and where longest."""
    reported = None if record.proof is None else record.proof.method.get("projected")
    if not isinstance(reported, dict):
        return None
    counts: dict[str, int] = {}
    for name, entry in reported.items():
        number = entry.get("num_held_back") if isinstance(entry, dict) else None
        if isinstance(number, int) and number > 0:
            counts[name] = number
    if not counts:
        return None
    longest = max(counts, key=lambda name: counts[name])
    what, stood = "updates", "which all but stood still meanwhile"
    if record.spec.config.get("projector") == "svd":  # Fira's: GaLore's part of an update passes no limiter
        what, stood = "what is added to updates", "where GaLore's part alone moved them"
    remedy = "; limiter_at_zero = 'skip' leaves gradients of zero out of it"
    return (
        f"the norm-growth limiter left less than a hundredth of {what} in {len(counts)} of {len(reported)} projected "
        f"matrices, {stood}: {longest} for {counts[longest]}"
        f"{'' if record.spec.config.get('limiter_at_zero') == 'skip' else remedy}"
    )


class _Silent:
    """What says of runs that trained which of their settings did nothing, found once for runs that share them."""

    def __init__(self) -> None:
        self._record: Record | None = None
        self._said: dict[str, str] = {}
        self._last: tuple[Asked, dict[str, str]] | None = None

    def sentences(self, record: Record) -> dict[str, str]:
        """Return the sentences that there are, by kind."""
        if record is not self._record:
            self._record, self._said = record, self._found(record)
        return self._said

    def _found(self, record: Record) -> dict[str, str]:
        train, settings = record.train, record.train_settings
        if train is None or settings is None:
            return {}
        declared = None if record.proof is None else record.proof.declared
        full_rank, unprojected = ((), ()) if declared is None else (declared.full_rank, declared.unprojected)
        config, last = record.spec.config, self._last
        if (
            last is None
            or last[0].config is not config
            or last[0].train is not settings
            or (last[0].num_steps, last[0].full_rank, last[0].unprojected) != (train.num_steps, full_rank, unprojected)
        ):
            asked = Asked(config, settings, train.num_steps, full_rank, unprojected)
            last = self._last = asked, said_of(asked)
        return last[1]

    def kind(self, kind: str) -> Callable[[Record], str | None]:
        """Return what says one of them."""
        return lambda record: self.sentences(record).get(kind)


def _quantized_base(record: Record) -> str | None:
    """Return that the base model is not the one that others are trained from and scored on."""
    held = None if record.train is None else record.train.quantized
    if held is None:
        return None
    constants = "quantized constants" if held.double else "constants in fp32"
    return (
        f"the base model is not as it was published: {held.num_layers} layers are held in {held.kind} with "
        f"{constants}, {held.num_params:,} weights in {held.packed_bytes + held.constants_bytes:,} bytes; losses, "
        "those before training too, and scores are of that model, and what differs from labels on weights that are not "
        "quantized, base among them, holds what that does. Merged weights are another model again: the adapters added "
        "to what the 4 bits stand for, rounded"
    )


_SILENT = _Silent()

TRAINING: Mapping[str, Callable[[Record], str | None]] = {
    "rows cut": _rows_cut,
    "other devices": _other_devices,
    "packing": _packing,
    "blank rows": _blank_rows,
    "open conversations": _open_rows,
    "held out": _holding_out,
    "held-out questions": _held_out_asked,
    "repeated rows": _repeated_rows,
    "end left out": _end_left_out,
    "special tokens once": _special_tokens_once,
    "adapter start": _adapter_start,
    "weights lost": _weights_lost,
    "held back": _held_back,
    "quantized base": _quantized_base,
    **{kind: _SILENT.kind(kind) for kind in SILENT},
}
"""Kinds of remarks on training: how they are called, and what they say of a record."""
