"""Evaluation time, ours against lm-eval's HFLM at its best batch size, on the same items; scores asserted equal.

Runs on the embedded model and the packaged rows, which ``harness prepare --suite quickstart`` puts in the cache. All
are timed one after the other, round after round; the first round tries every batch size for HFLM and keeps the
quickest. A suite's ratio weights each task by the size of its full set. Subjects of MMLU stand for those with prompts
of about their length.

MMLU is measured at 8 questions a subject, one subject at 60. What all four come to at 60 is computed beside: ours is
timed on all 60 questions, and HFLM's time at 8 is scaled by its tokens, since it shares nothing between questions.

With ``HARNESS_BENCH_BASELINE_PYTHON``, the Python of an environment in which another build of this package is
installed, that build's ``HarnessLM`` takes its turn in a process of its own (:mod:`evaluation_baseline`), and the table
has its column.

On a CPU the seconds are those that the process spent there, so that neighbours on the machine disturb them less; the
ratio of the clock is printed beside. On a GPU they are the clock's. How near the bound is: a time ratio over the token
ratio above 1 is what a token of ours costs less, which has no head but where scores are taken, no log-softmax of all
positions, and no padding.

``HARNESS_BENCH_ITEMS`` sets the items of each of the eight tasks (default 4), ``HARNESS_BENCH_MMLU_ITEMS`` those of a
subject (default 8), ``HARNESS_BENCH_MANY_ITEMS`` those of the subject that is asked many (default 60),
``HARNESS_BENCH_ROUNDS`` the rounds (default 3). ``HARNESS_BENCH_TASKS=boolq,piqa`` measures these alone, and
``HARNESS_BENCH_LAPS=FILE`` keeps what was measured in a JSON file, from which later calls take the other tasks; targets
are asserted once every task is there. ``pytest -s`` shows the tables.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.assets.cache import is_complete
from harness.catalogue.models import load_models
from harness.catalogue.packaged_tasks import COMMONSENSE_TASKS
from harness.data.packaged import ROW_COUNTS, mmlu_subject_tasks, read_rows, rows_place
from harness.preparing.assets import converted_model_place

SUBJECTS = ("world_religions", "moral_disputes", "high_school_statistics", "professional_law")
"""From the shortest prompts to long ones: 260, 480, 870 and 1650 tokens at 5-shot."""

HFLM_BATCH_SIZES = {"cpu": (1, 4, 8), "cuda": (8, 32, 64, 128)}
MMLU_BATCH_SIZES = {**HFLM_BATCH_SIZES, "cpu": (1, 4)}
"""HFLM asks a question of MMLU once for all its letters: these items are a batch or two."""

BATCH_TOKENS = {"cpu": 512, "cuda": 16384}
EIGHT_TASKS_RATIO, MANY_QUESTIONS_RATIO = 3.5, 6.0
"""What is asked for on a CPU."""
MANY_QUESTIONS_OF = "moral_disputes"
"""The subject that stands for the most questions."""
TASKS = "HARNESS_BENCH_TASKS"
SHARE_OF_TOKEN_RATIO = 0.85
"""What is asked for on a GPU."""

sys.path.insert(0, str(Path(__file__).parent))
from evaluation_baseline import PYTHON, Baseline  # noqa: E402
from evaluation_laps import Comparison, Lap, kept_with, table, weighted  # noqa: E402

MODEL = converted_model_place(load_models()["smollm2-135m"])

pytestmark = [
    pytest.mark.timeout(0),
    pytest.mark.skipif(
        not (is_complete(MODEL) and is_complete(rows_place())), reason="run 'harness prepare --suite quickstart' first"
    ),
]


@dataclass
class Stopwatch:
    """Seconds and tokens of a model, padding among them."""

    device: str
    model: Any
    num_tokens: int = 0

    def __post_init__(self) -> None:
        self.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.num_tokens += (args[0] if args else kwargs["input_ids"]).numel()

    def time(self, call: Callable[[], Any]) -> tuple[Lap, Any]:
        import torch

        synchronise = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        self.num_tokens = 0
        synchronise()
        clock, cpu = time.perf_counter(), time.process_time()
        result = call()
        synchronise()
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        return Lap(cpu if self.device == "cpu" else clock, clock, self.num_tokens), result


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any, Stopwatch]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).to(device).eval()
    return model, AutoTokenizer.from_pretrained(MODEL), Stopwatch(device, model)


def compare(
    sizes: Mapping[str, int],
    num_items: int,
    batch_sizes: Mapping[str, Sequence[int]],
    loaded: tuple[Any, Any, Stopwatch],
    folder: Path,
) -> Iterator[Comparison]:
    """Yield the comparison of each task, named with the size of its full set."""
    from lm_eval.models.huggingface import HFLM

    from harness.evaluation.language_model import HarnessLM

    model, tokenizer, watch = loaded
    ours = HarnessLM(model, tokenizer, device=watch.device, batch_tokens=BATCH_TOKENS[watch.device])
    theirs = {n: HFLM(pretrained=model, tokenizer=tokenizer, batch_size=n) for n in batch_sizes[watch.device]}
    baseline = Baseline(MODEL, BATCH_TOKENS["cpu"], folder) if PYTHON in os.environ and watch.device == "cpu" else None
    if baseline is None:
        print(f"\n{PYTHON} is not set, or this is no CPU: no other build is measured")
    rounds = int(os.environ.get("HARNESS_BENCH_ROUNDS", "3"))
    for name, full_size in sizes.items():
        if name not in os.environ.get(TASKS, name).split(","):
            continue
        task = task_of(name, num_items, folder)
        one = Comparison(name, num_items, full_size)
        for lm in (ours, *theirs.values()):  # the first pass of a process takes longer
            lm.loglikelihood(task.instances[:1], True)
        if baseline is not None:
            baseline.answer([task.instances[0].args])
        for number in range(rounds):
            lap, found = watch.time(lambda task=task: ours.loglikelihood(task.instances))  # type: ignore[misc]
            one.ours.append(lap)
            for size in theirs if number == 0 else (one.best,):
                lap, wanted = watch.time(
                    lambda task=task, lm=theirs[size]: lm.loglikelihood(task.instances, True)  # type: ignore[misc]
                )
                one.theirs.setdefault(size, []).append(lap)
                check_equal(one, task, found, wanted)
            if baseline is not None:
                answer = baseline.answer([request.args for request in task.instances])
                one.before.append(Lap(answer["cpu_seconds"], answer["clock_seconds"], 0))
                check_equal(one, task, found, answer["results"])
        yield one
    if baseline is not None:
        baseline.close()


def task_of(name: str, num_items: int, folder: Path) -> Any:
    """Return a task of lm-eval with the requests of its first items."""
    from harness.evaluation.tasks import load_tasks
    from harness.settings import EvaluationSettings

    settings = EvaluationSettings(tasks=(name,), rows="packaged", num_fewshot=5, limit=num_items)
    task = load_tasks(settings, rows_folder=rows_place(), datasets_cache=folder, offline=True)[name]
    task.build_all_requests(limit=num_items)
    return task


def check_equal(one: Comparison, task: Any, found: Sequence[Any], wanted: Sequence[Any]) -> None:
    """Assert that log-likelihoods agree and every item's metrics are the same."""
    items: dict[int, tuple[Any, list[Any], list[Any]]] = {}
    for request, (value, greedy), (right, right_greedy) in zip(task.instances, found, wanted, strict=True):
        assert math.isclose(value, right, rel_tol=1e-4, abs_tol=1e-3), (one.task, request.doc_id)
        assert greedy == right_greedy, (one.task, request.doc_id)
        one.largest_difference = max(one.largest_difference, abs(value - right))
        _, left, other = items.setdefault(request.doc_id, (request.doc, [], []))
        left.append((value, greedy))
        other.append((right, right_greedy))
    assert len(items) == one.num_items
    for doc, left, other in items.values():
        assert task.process_results(doc, left) == task.process_results(doc, other), one.task


def report(title: str, comparisons: Sequence[Comparison], asked: float | None, benchmark: Any, device: str) -> None:
    print(f"\n{title}, on a {device}:\n\n{table(comparisons)}")
    ratio, tokens = weighted(comparisons, "seconds"), weighted(comparisons, "num_tokens")
    benchmark.extra_info.update(
        time_ratio=ratio,
        token_ratio=tokens,
        tasks={one.task: {size: laps[0].seconds for size, laps in one.theirs.items()} for one in comparisons},
    )
    if asked is not None or device != "cpu":
        assert ratio >= (asked if device == "cpu" else SHARE_OF_TOKEN_RATIO * tokens)  # type: ignore[operator]


def test_eight_tasks_at_5_shot(loaded: tuple[Any, Any, Stopwatch], benchmark: Any, tmp_path: Path) -> None:
    items = int(os.environ.get("HARNESS_BENCH_ITEMS", "4"))
    sizes = {task: ROW_COUNTS[task] for task in COMMONSENSE_TASKS}
    found = benchmark.pedantic(
        lambda: kept_with("eight", compare(sizes, items, HFLM_BATCH_SIZES, loaded, tmp_path)), rounds=1, iterations=1
    )
    every = {one.task for one in found} == set(sizes)
    report("The eight tasks, 5-shot", found, EIGHT_TASKS_RATIO if every else None, benchmark, loaded[2].device)


def test_mmlu_at_5_shot(loaded: tuple[Any, Any, Stopwatch], benchmark: Any, tmp_path: Path) -> None:
    """At few questions, measured; and at many, of which ours are measured and HFLM's are scaled by its tokens."""
    items = int(os.environ.get("HARNESS_BENCH_MMLU_ITEMS", "8"))
    many = int(os.environ.get("HARNESS_BENCH_MANY_ITEMS", "60"))
    sizes = {f"mmlu_{subject}": size for subject, size in questions_by_length().items()}
    few = benchmark.pedantic(
        lambda: list(compare(sizes, items, MMLU_BATCH_SIZES, loaded, tmp_path)), rounds=1, iterations=1
    )
    scaled = kept_with("mmlu scaled", (at_many(one, many, loaded, tmp_path) for one in few))
    few = kept_with("mmlu", few)
    every = {one.task for one in few} == set(sizes)
    report(f"MMLU, 5-shot, {items} questions a subject", few, None, benchmark, loaded[2].device)
    title = f"MMLU, 5-shot, {many} questions a subject, HFLM's laps those at {items} scaled by tokens"
    report(title, scaled, MANY_QUESTIONS_RATIO if every else None, benchmark, loaded[2].device)


def at_many(few: Comparison, many: int, loaded: tuple[Any, Any, Stopwatch], folder: Path) -> Comparison:
    """Return a subject's comparison at many questions: ours timed on them, HFLM's laps scaled by what it would read."""
    from harness.evaluation.language_model import HarnessLM

    model, tokenizer, watch = loaded
    task = task_of(few.task, many, folder)
    lm = HarnessLM(model, tokenizer, device=watch.device, batch_tokens=BATCH_TOKENS[watch.device])
    lap, _ = watch.time(lambda: lm.loglikelihood(task.instances))
    few_ids = {request.doc_id for request in task.instances if request.doc_id < few.num_items}
    assert len(few_ids) == few.num_items
    read: dict[int, int] = {}  # a question of letters is read once for all of them
    for request, (context, continuation) in zip(task.instances, lm.token_counts, strict=True):
        assert continuation == 1
        read[request.doc_id] = context
    scale = sum(read.values()) / sum(tokens for doc_id, tokens in read.items() if doc_id in few_ids)
    laps = few.theirs[few.best]
    theirs = [Lap(one.seconds * scale, one.clock_seconds * scale, round(one.num_tokens * scale)) for one in laps]
    return Comparison(few.task, many, few.full_size, [lap], {few.best: theirs}, [], few.largest_difference)


def test_many_questions_of_a_subject_at_5_shot(
    loaded: tuple[Any, Any, Stopwatch], benchmark: Any, tmp_path: Path
) -> None:
    many = int(os.environ.get("HARNESS_BENCH_MANY_ITEMS", "60"))
    sizes = {f"mmlu_{MANY_QUESTIONS_OF}": questions_by_length()[MANY_QUESTIONS_OF]}
    found = benchmark.pedantic(
        lambda: list(compare(sizes, many, {"cpu": (1,), "cuda": HFLM_BATCH_SIZES["cuda"]}, loaded, tmp_path)),
        rounds=1,
        iterations=1,
    )
    report(f"One subject, 5-shot, {many} questions", found, MANY_QUESTIONS_RATIO, benchmark, loaded[2].device)


def questions_by_length() -> dict[str, int]:
    """Return how many of MMLU's test questions each of SUBJECTS stands for: those of the subjects nearest in length."""
    lengths, sizes = {}, {}
    for task in mmlu_subject_tasks(rows_place()):
        subject = task.removeprefix("mmlu/")
        test = read_rows(task, "test")
        shots = sum(map(length, read_rows(task, "dev")))
        lengths[subject], sizes[subject] = math.log(shots + statistics.fmean(map(length, test))), len(test)
    standing = dict.fromkeys(SUBJECTS, 0)
    for subject, size in sizes.items():
        nearest = min(SUBJECTS, key=lambda one, subject=subject: abs(lengths[one] - lengths[subject]))  # type: ignore[misc]
        standing[nearest] += size
    assert sum(standing.values()) == ROW_COUNTS["mmlu/test"]
    return standing


def length(row: Mapping[str, Any]) -> int:
    return len(row["question"]) + sum(map(len, row["choices"]))
