"""What has to be told of how a run was scored, its answers were written, or a judge graded them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from pydantic import JsonValue

from harness.catalogue.packaged_tasks import tasks_read
from harness.record import Judging, Record
from harness.spec import RunSpec

READ_FOR = {"train": "training", "calibration": "block scores", "general": "the general text"}
"""Roles of data in a run whose text should not be what is scored."""
LONGEST_SETTING = 40
"""Characters of a setting's value that are repeated; suppressed tokens may be thousands."""


def _scored_text_read(record: Record) -> str | None:
    """Return which tasks score questions whose text the run read before."""
    if record.train is None and not record.scores:
        return None  # it ended before it read or scored anything
    spec = record.spec
    read = {
        purpose: tasks
        for role, purpose in READ_FOR.items()
        if role in spec.sources
        and (tasks := (*tasks_read(spec.sources[role], spec.evaluation), *_files_read(spec, spec.sources[role])))
    }
    if not read:
        return None
    said = ", ".join(f"{purpose} ({', '.join(tasks)})" for purpose, tasks in read.items())
    return f"text of questions that rows = '{spec.evaluation.rows}' scores was read for {said}"


def _files_read(spec: RunSpec, source: str) -> tuple[str, ...]:
    """Return the tasks whose scored rows lie in the very file that a source is."""
    checksum = source.removeprefix("file:").partition(":")[0] if source.startswith("file:") else None
    return tuple(task for task, files in spec.scored_files.items() if checksum in files)


def _rows_of_files(record: Record) -> str | None:
    """Return of which of lm-eval's tasks the scored rows are not lm-eval's."""
    scored = {score.task for score in record.scores}
    told = [
        f"{task} (SHA-256 {', '.join(sorted(sha[:12] for sha in record.spec.scored_files[task]))})"
        for task in record.spec.stands_in
        if task in scored
    ]
    return f"rows of a file stand in for lm-eval's own: {', '.join(told)}" if told else None


def _contexts_cut(record: Record) -> str | None:
    """Return of which tasks contexts were longer than the model's length, and what was asked that they lost."""
    if record.scoring is None or not (cut := record.scoring.cut_contexts):
        return None
    shots = max((score.num_fewshot or 0 for score in record.scores if score.task in cut), default=0)
    lost = f", {shots}-shot is not true of them" if shots else ""
    return f"contexts were longer than the model's length and lost their beginning{lost}: {_by_task(record, cut)}"


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


def _by_task(record: Record, counts: Mapping[str, int]) -> str:
    """Return numbers of items by task, of how many where a score says it."""
    num_items = {score.task: score.n for score in record.scores}
    return ", ".join(
        f"{task} {n} of {num_items[task]}" if task in num_items else f"{task} {n}" for task, n in counts.items()
    )


def _settings(values: Mapping[str, JsonValue]) -> str:
    said = {name: json.dumps(value) for name, value in values.items()}
    return ", ".join(f"{name} = {text if len(text) <= LONGEST_SETTING else '…'}" for name, text in said.items())


SCORING: Mapping[str, Callable[[Record], str | None]] = {
    "scored text read": _scored_text_read,
    "evaluation rows": _rows_of_files,
    "contexts cut": _contexts_cut,
    "choices in pieces": _long_continuations,
    "tied choices": _ties,
    "question among its shots": _questions_in_shots,
    "metrics by order": _repeated_answers,
    "model's own generation settings": _own_generation,
    "generation settings set aside": _overruled_generation,
    "empty answers": _empty_answers,
    "short of room": _short_of_room,
}
"""Kinds of remarks on scoring: how they are called, and what they say of a record."""
