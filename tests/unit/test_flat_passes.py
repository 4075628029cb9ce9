"""Rows laid one behind another in passes on a CPU: scores as of padded batches, and every module still acts."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from harness.evaluation import flat_passes as flat
from harness.evaluation import language_model
from harness.evaluation.language_model import HarnessLM
from harness.evaluation.packing import Scored, plan_rows
from harness.evaluation.token_scores import token_scores
from tests.unit.test_evaluation_sharing import CLASSES, assert_equal, lm, subjects, tiny

CLASSES = {**CLASSES, "qwen3": (Qwen3Config, Qwen3ForCausalLM)}


def made(kind: str, **changes: Any) -> Any:
    if kind != "qwen3":
        return tiny(kind, **changes)
    torch.manual_seed(0)
    shape = {"vocab_size": 97, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.4}
    return Qwen3ForCausalLM(Qwen3Config(**shape, **heads, **changes)).eval()


def passes_of(found: HarnessLM) -> list[torch.Size]:
    shapes: list[torch.Size] = []
    found.model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    return shapes


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("pass_tokens", [7, 64, 1000])
def test_scores_are_those_of_padded_batches_wherever_rows_are_cut(
    kind: str, pass_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model, "PASS_TOKENS", pass_tokens)
    monkeypatch.setattr(flat, "BLOCK_QUERIES", 12)
    requests = subjects(random.Random(8), num_subjects=2, num_items=13)
    model = made(kind)
    apart = lm(model, shares=False)._loglikelihood_tokens(requests)
    together = lm(model, batch_tokens=1000)
    shapes = passes_of(together)
    assert_equal(together._loglikelihood_tokens(requests), apart)
    assert sum(rows > 1 for rows, _ in shapes) == 0
    assert sum(rows * tokens for rows, tokens in shapes) == together.num_processed_tokens, "nothing is padded"
    stems = {tokens for _, tokens in shapes if tokens > pass_tokens}
    assert len(stems) <= 2, "a stem is a pass of its own"


def test_a_pass_is_as_full_as_another() -> None:
    sequences = [Scored(index, tuple(range(index, index + 30)), (0,)) for index in range(0, 400, 40)]
    passes = flat.flat_passes(
        plan_rows(sequences, row_tokens=0, tokens_per_key=0.0), None, pass_tokens=128, heads_per_key=1
    )
    assert [len(one.tokens) for one in passes] == [100, 100, 100]
    assert sum(len(one.kept) for one in passes) == 10
    cut = [piece for one in passes for piece in one.pieces if piece.held is not None]
    assert [(piece.first, piece.end) for piece in cut] == [(0, 10), (10, 30), (0, 20), (20, 30)]


def test_hooks_see_every_token_but_behind_the_last_layers_attention_those_that_are_asked_for() -> None:
    model = made("llama")
    seen: dict[str, int] = {}
    for name in ("layers.0.mlp", "layers.1.self_attn.k_proj", "layers.1.mlp", "norm"):
        model.model.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: seen.get(name, 0) + output.shape[1]})
        )
    found = lm(model)
    found._loglikelihood_tokens([(None, [5, 6, 7, 8, 9, 10], [11]), (None, [9, 8, 7, 6], [5, 4])])
    assert seen == {"layers.0.mlp": 11, "layers.1.self_attn.k_proj": 11 + 3, "layers.1.mlp": 3, "norm": 3}
    assert model.config._attn_implementation == "sdpa"
    assert not model.model.layers[-1]._forward_pre_hooks


@pytest.mark.parametrize("change", ["bf16", "eager", "own configuration", "window"])
def test_other_models_are_padded_as_before(change: str) -> None:
    model = made("mistral", sliding_window=16) if change == "window" else made("llama")
    if change == "bf16":
        model.to(torch.bfloat16)
    if change == "eager":
        model.set_attn_implementation("eager")
    if change == "own configuration":
        model.model.layers[1].self_attn.config = type(model.config)(**model.config.to_dict())
        model.model.layers[1].self_attn.config._attn_implementation = "sdpa"
    found = lm(model)
    shapes = passes_of(found)
    found._loglikelihood_tokens([(None, list(range(5 + number, 30)), [3]) for number in range(3)])
    assert [rows for rows, _ in shapes] == [3]


def test_attention_that_does_not_know_the_rows_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("llama")
    attention = model.model.layers[0].self_attn
    monkeypatch.setattr(attention, "forward", lambda hidden_states, **_: (hidden_states, None))
    with pytest.raises(AssertionError, match="lets them see each other"):
        lm(model)._loglikelihood_tokens([(None, [5, 6], [7])])


def test_scores_of_tokens_are_those_of_a_log_softmax_and_the_first_of_equal_ones_is_the_likeliest() -> None:
    draw = torch.Generator().manual_seed(3)
    logits = torch.randn(9, 50, generator=draw)
    logits[4] = 0.0
    logits[5, 7] = logits[5, 20] = 9.0
    take = np.array([0, 0, 3, 4, 4, 5, 5, 8])
    targets = np.array([1, int(logits[0].argmax()), 2, 0, 1, 7, 20, int(logits[8].argmax())])
    values, greedy = token_scores([logits[:4], logits[4:]], take, targets)
    assert values == pytest.approx(logits.log_softmax(-1)[take, targets].double().numpy(), abs=1e-5)
    assert greedy.tolist() == [False, True, False, True, False, True, False, True]
