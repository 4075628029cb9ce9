"""Scores of a model on lm-eval's tasks, with every item's outcome.

Requests, filters, metrics, aggregation and standard errors are lm-eval's own; the glue between them is ours, because
``lm_eval.evaluator.evaluate`` draws progress bars of its own and keeps neither log-likelihoods nor token counts apart.
lm-eval's ``use_cache`` is never used: its key has no model in it.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean, stderr_for_metric
from lm_eval.api.task import Task
from lm_eval.utils import handle_non_serializable, hash_string

from harness.catalogue.tasks import TaskPlaces
from harness.errors import HarnessError, near_miss
from harness.evaluation.groups import with_groups
from harness.evaluation.language_model import HarnessLM
from harness.evaluation.own_tasks import OwnTasks
from harness.evaluation.shots import items_among_their_shots, metrics_behind_exact_match
from harness.evaluation.tasks import load_tasks, no_progress_bars
from harness.files import read_bytes, said_as, write_file
from harness.record import Score
from harness.record_text import ScoringFacts
from harness.settings import EvaluationSettings
from harness.tensors.seeding import fenced

HEADLINE_METRIC = "acc"
NO_FRACTIONS = frozenset(
    {"brier_score", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "likelihood", "bypass"}
    | {"bleu", "chrf", "chrf++", "ter"}
)
"""Metrics of lm-eval that are no shares of one."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    scores: tuple[Score, ...]
    items: list[dict[str, Any]]
    """One plain JSON object an item: task, index, doc_hash, prompt_hash, target, metrics, and the model's answer."""
    facts: ScoringFacts
    """What a reader of the scores has to know of them."""


def _no_items() -> dict[str, set[int]]:
    return defaultdict(set)


@dataclass
class _Noted:
    """What is seen while requests are answered; items by task."""

    tokens: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Of context and continuation, by the ``id`` of a request."""
    cut: dict[str, set[int]] = field(default_factory=_no_items)
    """A context lost its beginning."""
    long: dict[str, set[int]] = field(default_factory=_no_items)
    """A continuation is longer than the model's length."""
    tied: dict[str, set[int]] = field(default_factory=_no_items)
    """Several choices are the likeliest."""
    shown: dict[str, set[int]] = field(default_factory=_no_items)
    """The question stands among the examples of its prompt."""
    behind_exact_match: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Metrics that several targets change, by task."""
    own_generation: dict[str, Any] = field(default_factory=dict)

    def facts(self) -> ScoringFacts:
        """Return them for the record."""

        def counts(found: Mapping[str, set[int]]) -> dict[str, int]:
            return {task: len(items) for task, items in found.items()}

        return ScoringFacts(
            cut_contexts=counts(self.cut),
            long_continuations=counts(self.long),
            tied_items=counts(self.tied),
            questions_in_shots=counts(self.shown),
            repeated_answers=self.behind_exact_match,
            own_generation=self.own_generation,
        )


def evaluate(
    model: torch.nn.Module,
    tokenizer: Any,
    settings: EvaluationSettings,
    *,
    rows_folder: Path | None,
    datasets_cache: Path,
    device: str,
    offline: bool,
    progress: Callable[[int, int], None] | None = None,
    places: TaskPlaces | None = None,
) -> Evaluation:
    """Return a model's scores on the tasks of the settings; the model is left as it was.

    Args:
        model: On ``device``; peft-wrapped or not.
        tokenizer: The model's.
        settings: Tasks, rows, shots, limit, tokens of a batch.
        rows_folder: Packaged rows, ``<task>/<part>.jsonl``.
        datasets_cache: Where downloads for ``hub`` rows are kept.
        device: Where the model is.
        offline: Touch no network.
        progress: Called with (items done, items in all) after each forward pass.
        places: Of tasks and rows of the user's own.

    Raises:
        HarnessError: a task or its rows are not there, or the model's outputs are not finite.
    """
    with fenced(settings.fewshot_seed), _evaluation_mode(model), no_progress_bars():
        tasks = load_tasks(
            settings, rows_folder=rows_folder, datasets_cache=datasets_cache, offline=offline, places=places
        )
        for task in tasks.values():
            with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that lm-eval does not let one switch off
                task.build_all_requests(limit=settings.limit)
        lm = HarnessLM(model, tokenizer, device=device, batch_tokens=settings.batch_tokens, seed=settings.fewshot_seed)
        noted = _answer(lm, [instance for task in tasks.values() for instance in task.instances], progress)
        scores: list[Score] = []
        items: list[dict[str, Any]] = []
        for name, task in tasks.items():
            task.apply_filters()
            if shown := items_among_their_shots(task):
                noted.shown[name] = shown
            if metrics := metrics_behind_exact_match(task):
                noted.behind_exact_match[name] = metrics
            found = _items(name, task, settings.limit, noted)
            items.extend(found)
            scores.extend(_scores(name, task, found, (settings.metrics or {}).get(name)))
        return Evaluation(
            tuple(with_groups(settings, tasks, scores, OwnTasks(places or TaskPlaces()))), items, noted.facts()
        )


def write_items(path: Path, items: Sequence[dict[str, Any]]) -> None:
    """Write items as JSON Lines, compressed with zstandard, whole and durably.

    Raises:
        HarnessError: it cannot be written.
    """
    lines = "".join(json.dumps(item, ensure_ascii=False, allow_nan=False) + "\n" for item in items)
    with said_as(f"{path}: the items could not be written"):
        write_file(path, zstandard.ZstdCompressor(level=10).compress(lines.encode()))


def read_items(path: Path) -> list[dict[str, Any]]:
    """Return the items of a file that :func:`write_items` wrote.

    Raises:
        HarnessError: it cannot be read, or is cut off or damaged.
    """
    data = read_bytes(path)
    try:
        text = zstandard.ZstdDecompressor().decompress(data).decode()
        return [json.loads(line) for line in text.split("\n") if line]  # splitlines() would also cut at U+2028
    except (zstandard.ZstdError, ValueError, RecursionError) as error:
        raise HarnessError(f"{path}: is no file of items, or was cut off ({error})") from error


def _answer(lm: HarnessLM, instances: Sequence[Instance], progress: Callable[[int, int], None] | None) -> _Noted:
    """Have the model answer every request; return what is seen meanwhile."""
    left = Counter((instance.task_name, instance.doc_id) for instance in instances)
    total, noted = len(left), _Noted()
    kinds: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        kinds[instance.request_type].extend([instance] * (instance.repeats or 1))
        left[(instance.task_name, instance.doc_id)] += (instance.repeats or 1) - 1
    if progress is not None:
        progress(0, total)
    for kind, requests in kinds.items():

        def answered(indices: Sequence[int], requests: Sequence[Instance] = requests) -> None:
            for index in indices:
                left[(requests[index].task_name, requests[index].doc_id)] -= 1
            if progress is not None:
                progress(sum(count <= 0 for count in left.values()), total)

        lm.on_progress = answered
        for request, response in zip(requests, getattr(lm, kind)(requests), strict=True):
            request.resps.append(response)
        for index in lm.cut_requests:
            noted.cut[str(requests[index].task_name)].add(requests[index].doc_id)
        if kind == "generate_until":
            noted.own_generation |= lm.own_generation_fields
        if kind == "loglikelihood":
            for request, pair in zip(requests, lm.token_counts, strict=True):
                noted.tokens[id(request)] = pair
                if pair[1] > lm.max_length:
                    noted.long[str(request.task_name)].add(request.doc_id)
    return noted


def _items(name: str, task: Task, limit: int | None, noted: _Noted) -> list[dict[str, Any]]:
    """Return the outcome of every item of a task whose requests are answered and filtered."""
    requests: dict[int, list[Instance]] = defaultdict(list)
    for instance in task.instances:
        requests[instance.doc_id].append(instance)
    items = []
    for index, doc in task.doc_iterator(limit=limit):
        asked = sorted(requests[index], key=lambda instance: instance.idx)
        metrics: dict[str, Any] = {}
        for filter_name in asked[0].filtered_resps:
            results = task.process_results(doc, [instance.filtered_resps[filter_name] for instance in asked])
            suffix = "" if filter_name == "none" else f",{filter_name}"
            metrics.update({f"{metric}{suffix}": _plain(value) for metric, value in results.items()})
        item = {
            "task": name,
            "index": index,
            "doc_hash": hash_string(
                json.dumps(asked[0].doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
            ),
            "prompt_hash": hash_string(asked[0].args[0]),
            "target": _plain(task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)),
            "metrics": metrics,
        }
        if asked[0].request_type == "loglikelihood":
            pairs = [noted.tokens[id(instance)] for instance in asked]
            item["loglikelihoods"] = [float(instance.resps[0][0]) for instance in asked]
            item["greedy"] = [bool(instance.resps[0][1]) for instance in asked]
            item["num_context_tokens"] = [context for context, _ in pairs]
            item["num_continuation_tokens"] = [continuation for _, continuation in pairs]
            _check_finite(item["loglikelihoods"], f"task '{name}', item {index}: the log-likelihood of a choice")
            if _has_tie(asked[: len(asked) // 2] if "acc_mutual_info" in metrics else asked):
                noted.tied[name].add(index)
        else:
            item["responses"] = [[_plain(response) for response in instance.resps] for instance in asked]
        items.append(item)
    return items


def _has_tie(choices: Sequence[Instance]) -> bool:
    """Return whether different choices are the likeliest to the last bit: equal ones are scored once."""
    likeliest = max(float(choice.resps[0][0]) for choice in choices)
    return len({choice.args for choice in choices if float(choice.resps[0][0]) == likeliest}) > 1


def headline_of(metrics: Collection[str], asked: str | None) -> str | None:
    """Return which of a task's metrics enters the average; None of none.

    Args:
        metrics: Each with its filter behind a comma where that has a name, in the task's order.
        asked: The one that the settings name; without a filter it is that of the first that has it.
    """
    if asked is None:
        return HEADLINE_METRIC if HEADLINE_METRIC in metrics else next(iter(metrics), None)
    return asked if asked in metrics else next((m for m in metrics if m.startswith(f"{asked},")), None)


def _scores(name: str, task: Task, items: Sequence[dict[str, Any]], asked: str | None = None) -> list[Score]:
    """Return every metric of a task, aggregated by the task's own functions."""
    values: dict[str, list[Any]] = defaultdict(list)
    for item in items:
        for metric, value in item["metrics"].items():
            values[metric].append(value)
    headline = headline_of(values, asked)
    if asked is not None and headline is None:
        raise HarnessError(f"[evaluation] metrics: task '{name}' has no metric '{asked}'{near_miss(asked, values)}")
    scores = []
    for metric, outcomes in values.items():
        own_name = metric.partition(",")[0]
        aggregate = task.aggregation().get(own_name, mean)
        # Only the mean has its standard error in closed form; the bootstrap of the others is left out.
        stderr = stderr_for_metric(aggregate, bootstrap_iters=1) if aggregate is mean and len(outcomes) > 1 else None
        value = float(aggregate(outcomes))
        _check_finite([value], f"task '{name}': the metric {metric}")
        scores.append(
            Score(
                task=name,
                metric=metric,
                value=value,
                stderr=float(stderr(outcomes)) if stderr is not None else None,
                n=len(outcomes),
                unit="fraction" if own_name not in NO_FRACTIONS else "points",
                higher_is_better=bool(task.higher_is_better().get(own_name, True)),
                task_version=str(task.VERSION),
                num_fewshot=task.get_config("num_fewshot"),
                headline=metric == headline,
            )
        )
    return scores


def _check_finite(values: Sequence[float], what: str) -> None:
    for value in values:
        if not math.isfinite(value):
            raise HarnessError(f"{what} is {value}: the model's outputs are not finite, so there is no score")


def _plain(value: Any) -> Any:
    """Return a metric's or a document's value as plain JSON."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


@contextlib.contextmanager
def _evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout and the like off; put every module back as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
