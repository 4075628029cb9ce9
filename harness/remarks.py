"""What a reader of a run's figures has to be told beside them: one function a kind, from the record alone.

A run says its remarks when it ends, ``harness show`` and the report say them again, and the report marks the label. A
new kind is one more function in ``KINDS``; it reads facts that the record holds and returns None where there is nothing
to say, so that records of every age are told about in today's words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from harness.catalogue.packaged_tasks import tasks_read
from harness.record import Judging, Record
from harness.silent_settings import SILENT, Asked

EXPECTED_SHARE = 0.01
"""Of the rows that are held out where no more are asked for."""
MUCH_MORE = 1.2
"""Times the wanted rows: above, what was held out is said."""
LARGE_SHARE = 0.2
"""Of all rows: above, what was held out is said."""
REPEATED = 0.01
"""Of the rows to train on: above, repeated ones are said; of packed tokens, what did not fill a row."""
READ_FOR = {"train": "training", "calibration": "block scores", "general": "the general text"}
"""Roles of data in a run whose text should not be what is scored."""
LONGEST_SETTING = 40
"""Characters of a setting's value that are repeated; suppressed tokens may be thousands."""


@dataclass(frozen=True)
class Remark:
    """One thing to know of a run."""

    kind: str
    """A key of ``KINDS``."""
    sentence: str
    """Without a full stop, numbers and all."""


def remarks_of(record: Record) -> tuple[Remark, ...]:
    """Return what there is to say of a run, in the order of ``KINDS``."""
    said = ((kind, say(record)) for kind, say in KINDS.items())
    return tuple(Remark(kind, sentence) for kind, sentence in said if sentence is not None)


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


def _scored_text_read(record: Record) -> str | None:
    """Return which tasks score questions whose text the run read before."""
    spec = record.spec
    read = {
        purpose: tasks
        for role, purpose in READ_FOR.items()
        if role in spec.sources and (tasks := tasks_read(spec.sources[role], spec.evaluation))
    }
    if not read:
        return None
    said = ", ".join(f"{purpose} ({', '.join(tasks)})" for purpose, tasks in read.items())
    return f"text of questions that rows = '{spec.evaluation.rows}' scores was read for {said}"


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


def _contexts_cut(record: Record) -> str | None:
    """Return of which tasks contexts were longer than the model's length, and what was asked that they lost."""
    if record.scoring is None or not (cut := record.scoring.cut_contexts):
        return None
    shots = max((score.num_fewshot or 0 for score in record.scores if score.task in cut), default=0)
    lost = f", {shots}-shot is not true of them" if shots else ""
    return f"contexts were longer than the model's length and lost their beginning{lost}: {_by_task(record, cut)}"


def _by_task(record: Record, counts: Mapping[str, int]) -> str:
    """Return numbers of items by task, of how many where a score says it."""
    num_items = {score.task: score.n for score in record.scores}
    return ", ".join(
        f"{task} {n} of {num_items[task]}" if task in num_items else f"{task} {n}" for task, n in counts.items()
    )


def _long_continuations(record: Record) -> str | None:
    """Return of which tasks choices were longer than the model's length."""
    if record.scoring is None or not (long := record.scoring.long_continuations):
        return None
    return f"choices were longer than the model's length and were scored in pieces: {_by_task(record, long)}"


def _ties(record: Record) -> str | None:
    """Return of which tasks the likeliest choices were equally likely."""
    if record.scoring is None or not (tied := record.scoring.tied_items):
        return None
    return f"different choices are equally likely to the last bit, and the first counts: {_by_task(record, tied)}"


def _questions_in_shots(record: Record) -> str | None:
    """Return of which tasks prompts hold the scored question with its answer: their rows hold it twice."""
    if record.scoring is None or not (shown := record.scoring.questions_in_shots):
        return None
    return f"prompts hold the scored question among their few-shot examples: {_by_task(record, shown)}"


def _repeated_answers(record: Record) -> str | None:
    """Return which metrics would be others in another order."""
    if record.scoring is None or not (repeated := record.scoring.repeated_answers):
        return None
    tasks = "; ".join(f"{task}: {', '.join(metrics)}" for task, metrics in repeated.items())
    return f"lm-eval gives metrics behind exact_match the answer once for each of several targets: {tasks}"


def _own_generation(record: Record) -> str | None:
    """Return what the model's own generation settings changed."""
    if record.scoring is None or not (own := record.scoring.own_generation):
        return None
    return (
        f"tasks that generate were answered under the model's own generation settings, as by lm-eval: {_settings(own)}"
    )


def _overruled_generation(record: Record) -> str | None:
    """Return which of the model's own generation settings MT-Bench's protocol set aside."""
    if record.scoring is None or not (own := record.scoring.overruled_generation):
        return None
    return f"MT-Bench was answered without the model's own generation settings: {_settings(own)}"


def _settings(values: Mapping[str, JsonValue]) -> str:
    said = {name: json.dumps(value) for name, value in values.items()}
    return ", ".join(f"{name} = {text if len(text) <= LONGEST_SETTING else '…'}" for name, text in said.items())


def _empty_answers(record: Record) -> str | None:
    """Return how many of MT-Bench's turns the model said nothing to."""
    if record.scoring is None or not (empty := record.scoring.num_empty_answers):
        return None
    return f"{empty} of MT-Bench's turns have an empty answer, which a judge will grade as it is"


def _short_of_room(record: Record) -> str | None:
    """Return how many of MT-Bench's turns had less room than was asked for."""
    if record.scoring is None or not (short := record.scoring.num_short_of_room):
        return None
    return f"{short} of MT-Bench's turns had less room in the model's length than max_new_tokens asks for"


def judging_remarks(judging: Judging) -> tuple[str, ...]:
    """Return what there is to say of how a judge's verdicts were had and read."""
    said = []
    if judging.num_several:
        said.append(
            f"{judging.num_several} judgments give several ratings that differ, of which the "
            f"{judging.verdict or 'first'} counts"
        )
    if judging.num_thinking:
        said.append(f"{judging.num_thinking} judgments begin with thinking, in which no rating is read")
    if judging.num_cut:
        said.append(f"{judging.num_cut} judgments ended at {judging.max_tokens} tokens, perhaps before their verdict")
    if judging.temperature == "default":
        said.append("the judge was asked at the endpoint's own temperature, and not at 0 as the protocol says")
    return tuple(said)


def _weights_lost(record: Record) -> str | None:
    """Return why weights that were to be kept are not there."""
    return record.weights_error


def _silent(say: Callable[[Asked], str | None]) -> Callable[[Record], str | None]:
    """Return what says of a run that trained which of its settings did nothing."""

    def said(record: Record) -> str | None:
        train, asked = record.train, record.train_settings
        if train is None or asked is None:
            return None
        declared = None if record.proof is None else record.proof.declared
        named = ((), ()) if declared is None else (declared.full_rank, declared.unprojected)
        return say(Asked(record.spec.config, asked, train.num_steps, *named))

    return said


KINDS: Mapping[str, Callable[[Record], str | None]] = {
    "rows cut": _rows_cut,
    "packing": _packing,
    "blank rows": _blank_rows,
    "held out": _holding_out,
    "held-out questions": _held_out_asked,
    "repeated rows": _repeated_rows,
    "scored text read": _scored_text_read,
    "end left out": _end_left_out,
    "special tokens once": _special_tokens_once,
    "contexts cut": _contexts_cut,
    "weights lost": _weights_lost,
    "choices in pieces": _long_continuations,
    "tied choices": _ties,
    "question among its shots": _questions_in_shots,
    "metrics by order": _repeated_answers,
    "model's own generation settings": _own_generation,
    "generation settings set aside": _overruled_generation,
    "empty answers": _empty_answers,
    "short of room": _short_of_room,
    **{kind: _silent(say) for kind, say in SILENT.items()},
}
"""Every kind of remark: how it is called, and what it says of a record."""
