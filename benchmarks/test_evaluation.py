"""Evaluation time, ours against lm-eval's HFLM at its best batch size, on the same items; scores asserted equal.

Runs on the embedded model and the packaged rows, which ``harness prepare --suite quickstart`` puts in the cache.
``HARNESS_BENCH_ITEMS`` sets the items a task (default 8), ``HARNESS_BENCH_ROUNDS`` how often both are timed, one after
the other (default 3).
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.assets.cache import is_complete
from harness.assets.prepare import converted_model_place
from harness.assets.rows import rows_place
from harness.models import load_models

EIGHT = ("boolq", "piqa", "social_iqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
HFLM_BATCH_SIZES = (1, 4, 8)
MODEL = converted_model_place(load_models()["smollm2-135m"])

pytestmark = pytest.mark.skipif(
    not (is_complete(MODEL) and is_complete(rows_place())), reason="run 'harness prepare --suite quickstart' first"
)


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any, str]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).to(device).eval()
    return model, AutoTokenizer.from_pretrained(MODEL), device


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin, result


@pytest.mark.parametrize("shots", [0, 5])
@pytest.mark.parametrize("task", EIGHT)
def test_log_likelihoods_of_a_task(
    task: str, shots: int, loaded: tuple[Any, Any, str], benchmark: Any, tmp_path: Path
) -> None:
    from lm_eval.models.huggingface import HFLM

    from harness.evaluation.language_model import HarnessLM
    from harness.evaluation.tasks import load_tasks
    from harness.settings import EvaluationSettings

    model, tokenizer, device = loaded
    items = int(os.environ.get("HARNESS_BENCH_ITEMS", "8"))
    settings = EvaluationSettings(tasks=(task,), rows="packaged-scored", num_fewshot=shots, limit=items)
    asked = load_tasks(settings, rows_folder=rows_place(), datasets_cache=tmp_path, offline=True)[task]
    asked.build_all_requests(limit=items)
    ours = HarnessLM(model, tokenizer, device=device, batch_tokens=512 if device == "cpu" else 16384)
    theirs = {size: HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size) for size in HFLM_BATCH_SIZES}

    best = min(HFLM_BATCH_SIZES, key=lambda size: timed(lambda: theirs[size].loglikelihood(asked.instances, True))[0])
    wanted_seconds, found_seconds = [], []
    for _ in range(int(os.environ.get("HARNESS_BENCH_ROUNDS", "3"))):
        seconds, found = timed(lambda: ours.loglikelihood(asked.instances))
        found_seconds.append(seconds)
        seconds, wanted = timed(lambda: theirs[best].loglikelihood(asked.instances, True))
        wanted_seconds.append(seconds)
    for (value, greedy), (right, right_greedy) in zip(found, wanted, strict=True):
        assert math.isclose(value, right, rel_tol=1e-4, abs_tol=1e-3)
        assert greedy == right_greedy
    ratio = statistics.median(wanted_seconds) / statistics.median(found_seconds)
    asked_tokens = sum(context + continuation - 1 for context, continuation in ours.token_counts)
    benchmark.extra_info.update(
        hflm_seconds=statistics.median(wanted_seconds),
        hflm_batch_size=best,
        time_ratio=ratio,
        token_ratio=asked_tokens / ours.num_processed_tokens,
    )
    print(
        f"\n{task} {shots}-shot, {items} items: ours {statistics.median(found_seconds):.2f} s, HFLM (batch {best}) "
        f"{statistics.median(wanted_seconds):.2f} s, time ratio {ratio:.2f}, unshared/shared tokens "
        f"{asked_tokens / ours.num_processed_tokens:.2f}"
    )
    benchmark.pedantic(ours.loglikelihood, args=(asked.instances,), rounds=1, iterations=1)
