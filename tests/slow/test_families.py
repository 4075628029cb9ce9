"""Families of decoders on tiny random models: two steps of each kind of method, padding, and scores as under HFLM.

docs/suites.md shows which families were tried and what came out; its table is held against this one.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness.commands._models import located
from harness.data.batches import collate
from harness.data.examples import Example
from harness.data.packaged import rows_place
from harness.engine.loss import summed_loss
from harness.engine.padding import needs_padding_mask
from harness.tensors.loading import load_model, load_tokenizer
from harness.tensors.parts import parts_of
from tests.conftest import needed
from tests.families import tiny_folder
from tests.proofs import record_of, task_of

pytestmark = pytest.mark.slow
LABELS = ("base", "full", "lora", "galore", "lisa", "owlore")
NO_LAYER = "the model has no layer called .*; .*its layers are called"
ELSEWHERE = "is in no block, embedding, head or final norm, and no setting says whether to train it"
EXPERTS = "is the name of layers and of the stacked weights"
FAMILIES: dict[str, tuple[str | None, str | None, tuple[str, ...]]] = {
    "bloom": (NO_LAYER, ELSEWHERE, ("query_key_value", "dense_h_to_4h")),
    "cohere": (None, None, ("q_proj",)),
    "deepseek_v3": (NO_LAYER, None, ("q_b_proj", "o_proj")),
    "falcon": (NO_LAYER, None, ("query_key_value",)),
    "gemma2": (None, None, ("q_proj",)),
    "gemma3_text": (None, None, ("q_proj",)),
    "gpt2": (NO_LAYER, ELSEWHERE, ("c_attn", "c_proj", "c_fc")),
    "gpt_neox": (NO_LAYER, None, ("query_key_value",)),
    "gptj": (NO_LAYER, None, ("q_proj", "fc_in")),
    "granitemoe": (NO_LAYER, None, ("q_proj",)),
    "mamba": (NO_LAYER, None, ("in_proj", "x_proj")),
    "mixtral": (NO_LAYER, None, ("q_proj",)),
    "mpt": (NO_LAYER, None, ("Wqkv",)),
    "olmo": (None, None, ("q_proj",)),
    "olmo2": (None, None, ("q_proj",)),
    "opt": (NO_LAYER, ELSEWHERE, ("q_proj", "fc1")),
    "phi": (NO_LAYER, None, ("q_proj", "fc1")),
    "phi3": (NO_LAYER, None, ("qkv_proj",)),
    "qwen2_moe": (EXPERTS, None, ("shared_expert.down_proj", "q_proj")),
    "stablelm": (None, None, ("q_proj",)),
    "starcoder2": (NO_LAYER, None, ("q_proj", "c_fc")),
}
"""Why LoRA on the layers of Llama's naming, and methods that train drawn blocks, are refused, and layers for LoRA."""
ONE_MATRIX_EACH = ("deepseek_v3", "granitemoe", "mixtral", "qwen2_moe")
"""Whose experts are stacked in one tensor, which no projection takes."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {kind: tiny_folder(kind, root / kind) for kind in FAMILIES}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if "rows" not in request.fixturenames:
        request.getfixturevalue("monkeypatch").setenv("HARNESS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("label", [*LABELS, "lora on its own layers"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_trains_and_proves_itself_or_is_refused_with_a_reason(
    kind: str, label: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_lora, no_draws, layers = FAMILIES[kind]
    own: dict[str, Any] = {"target_modules": layers} if label not in LABELS else {}
    task = task_of(label.partition(" ")[0], folders[kind], tmp_path, num_steps=2, **own)
    task = task.model_copy(update={"model": located(task.model.model_copy(update={"architecture": None}))})
    record = record_of(task, monkeypatch)
    reason = {"lora": no_lora, "lisa": no_draws, "owlore": no_draws}.get(label)
    if reason is not None:
        assert record.status == "refused" and record.reason is not None
        assert re.search(reason, record.reason), record.reason
        return
    assert (record.status, record.reason) == ("ok", None)
    if label == "galore":
        assert record.proof is not None and record.proof.declared is not None
        left = [name for name in record.proof.declared.unprojected if "expert" in name]
        assert bool(left) == (kind in ONE_MATRIX_EACH), "what is not projected is declared, so that it is said"


@pytest.mark.parametrize("kind", FAMILIES)
def test_rows_that_share_a_batch_lose_what_they_lose_alone(kind: str, folders: dict[str, Path]) -> None:
    model = load_model(folders[kind], "fp32", torch.device("cpu"))
    rows = [tuple(range(10, 10 + length)) for length in (5, 12, 9)]
    examples = [Example(row, (True,) * len(row)) for row in rows]
    together = collate(examples, pad_id=257)
    if not needs_padding_mask(model):
        together = dataclasses.replace(together, attention_mask=None)
    else:
        assert together.attention_mask is not None
    with torch.no_grad():
        alone = sum(float(summed_loss(model, collate([one], pad_id=257))) for one in examples)
        assert math.isclose(float(summed_loss(model, together)), alone, rel_tol=2e-5)


@pytest.fixture(scope="module")
def rows() -> Path:
    return needed(rows_place())


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_scores_as_under_hflm(kind: str, folders: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    import lm_eval.evaluator
    from lm_eval.models.huggingface import HFLM

    from harness.evaluation.scoring import evaluate
    from harness.evaluation.tasks import load_tasks
    from harness.settings import EvaluationSettings

    model, tokenizer = load_model(folders[kind], "fp32", torch.device("cpu")), load_tokenizer(folders[kind])
    settings = EvaluationSettings(tasks=("piqa",), rows="packaged-scored", num_fewshot=0, limit=2, batch_tokens=1024)
    ours = evaluate(model, tokenizer, settings, rows_folder=rows, datasets_cache=tmp_path, device="cpu", offline=True)
    loaded = load_tasks(settings, rows_folder=rows, datasets_cache=tmp_path, offline=True)
    plain = AutoModelForCausalLM.from_pretrained(folders[kind], dtype=torch.float32).eval()
    lm = HFLM(pretrained=plain, tokenizer=tokenizer, batch_size=1)
    theirs: Any = lm_eval.evaluator.evaluate(lm, {"tasks": loaded}, limit=2, bootstrap_iters=0, log_samples=True)
    samples = sorted(theirs["samples"]["piqa"], key=lambda sample: sample["doc_id"])
    assert len(ours.items) == len(samples) == 2
    for item, sample in zip(ours.items, samples, strict=True):
        for value, answer in zip(item["loglikelihoods"], sample["resps"], strict=True):
            assert math.isclose(value, answer[0][0], rel_tol=1e-4, abs_tol=1e-3)


def test_what_is_found_is_what_was_built(folders: dict[str, Path]) -> None:
    for kind, folder in folders.items():
        model = load_model(folder, "fp32", torch.device("cpu"))
        names = dict(model.named_modules())
        assert set(parts_of(folder, {}).values()) - {""} <= set(names), kind
