"""Rotary positions that are scaled by length: no row's score, text or loss depends on what shares its batch."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM

from harness.engine.padding import check_padded_rotation
from harness.errors import HarnessError, Refused
from harness.evaluation.language_model import HarnessLM
from harness.settings import TrainSettings
from harness.tensors.rotary import hold_rotation, reset_rotation, rotation_limit
from tests.unit.test_evaluation_sharing import VOCABULARY, Letters
from tests.unit.test_padding import BIDIRECTIONAL, model_of

LIMIT = 32
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [3.0, 4.0, 5.0, 6.0],
    "original_max_position_embeddings": LIMIT,
    "factor": 4.0,
}
SCALED: dict[str, tuple[str, dict[str, Any]]] = {
    "dynamic": ("LlamaConfig", {"max_position_embeddings": LIMIT, "rope_parameters": DYNAMIC}),
    "longrope": (
        "Phi3Config",
        {
            **{"max_position_embeddings": 128, "original_max_position_embeddings": LIMIT, "sliding_window": None},
            "rope_parameters": LONG,
        },
    ),
    "longrope, shared rows": ("LlamaConfig", {"max_position_embeddings": 128, "rope_parameters": LONG}),
    "dynamic in one type of layer": (
        "Gemma3TextConfig",
        {
            "max_position_embeddings": LIMIT,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {"sliding_attention": PLAIN, "full_attention": DYNAMIC},
        },
    ),
}
UNSCALED = {
    "plain": PLAIN,
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": LIMIT,
    },
}


def scaled(name: str) -> Any:
    config_class, settings = SCALED[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, config_class)(**SHAPE, **copy.deepcopy(settings))  # it writes into them
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def requests_of(draw: random.Random) -> list[tuple[None, list[int], list[int]]]:
    def drawn(low: int, high: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(low, high))]

    contexts = [drawn(2, 80) for _ in range(8)] + [drawn(10, 14) for _ in range(4)]
    return [(None, context, drawn(1, 12)) for context in contexts for _ in range(3)]


@torch.no_grad()
def alone(model: Any, context: list[int], continuation: list[int]) -> float:
    """Return the log-likelihood by a model that has read nothing before."""
    fresh = copy.deepcopy(model)
    logits = fresh(torch.tensor([[*context, *continuation][:-1]])).logits[0, -len(continuation) :].log_softmax(-1)
    return float(logits.gather(1, torch.tensor(continuation)[:, None]).sum())


@pytest.mark.parametrize("name", SCALED)
def test_a_score_is_that_of_a_row_alone_whatever_is_scored_beside_it(name: str) -> None:
    model, requests = scaled(name), requests_of(random.Random(1))
    wanted = [alone(model, context, continuation) for _, context, continuation in requests]
    lm = HarnessLM(model, Letters(), device="cpu", batch_tokens=4096, max_length=120)
    for _ in range(2):  # what was read the first time changes nothing the second
        found = [value for value, _ in lm._loglikelihood_tokens(requests)]
        assert found == pytest.approx(wanted, abs=2e-3)
    back = [value for value, _ in lm._loglikelihood_tokens(requests[::-1])][::-1]
    assert back == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize("flat", [True, False])
def test_rows_share_as_before_where_positions_are_not_scaled(flat: bool) -> None:
    requests = [(None, [5] * 20 + [number], [7, number]) for number in range(3, 20)]
    requests += [(None, [6] * 20, [7, number]) for number in (4, 5)]  # a shorter row beside, which is padded
    model = scaled("dynamic")
    lm = HarnessLM(model, Letters(), device="cpu", batch_tokens=4096, max_length=120)
    lm._can_lay_flat = lm._can_lay_flat and flat
    found = [value for value, _ in lm._loglikelihood_tokens(requests)]
    assert lm.num_processed_tokens < 40 + 3 * len(requests), "the shared beginnings went through once"
    assert found == pytest.approx([alone(model, one, two) for _, one, two in requests], abs=2e-3)


@pytest.mark.parametrize("name", SCALED)
def test_a_text_is_that_of_its_prompt_alone(name: str) -> None:
    draw = random.Random(2)
    texts = ["".join(draw.choice("abcdefgh ") for _ in range(length)) for length in (3, 9, 9, 25, 31, 40, 40, 60)]
    settings = {"until": ["zz"], "max_gen_toks": 12, "do_sample": False}
    requests = [Instance("generate_until", {}, (text, dict(settings)), n) for n, text in enumerate(texts)]  # type: ignore[arg-type]
    wanted = []
    for request in requests:
        lm = HarnessLM(scaled(name), Letters(), device="cpu", batch_tokens=4096, max_length=120)
        wanted += lm.generate_until([request])
    together = HarnessLM(scaled(name), Letters(), device="cpu", batch_tokens=4096, max_length=120)
    for _ in range(2):
        assert together.generate_until(requests) == wanted


@pytest.mark.parametrize(("name", "limit"), [*((name, LIMIT) for name in SCALED), *((name, None) for name in UNSCALED)])
def test_where_rotation_begins_to_depend_on_length(name: str, limit: int | None) -> None:
    model = scaled(name) if name in SCALED else model_of("LlamaConfig", {"rope_parameters": UNSCALED[name]})
    assert rotation_limit(model) == limit
    hold_rotation(model)
    assert rotation_limit(model) is None


def test_a_rotation_that_was_reset_is_that_of_a_new_model() -> None:
    model = scaled("dynamic")
    rotary = model.model.rotary_emb
    new = rotary.inv_freq.clone()
    model(torch.arange(3, 93)[None])
    assert not torch.equal(rotary.inv_freq, new)
    reset_rotation(model)
    assert torch.equal(rotary.inv_freq, new)
    assert rotary.max_seq_len_cached == LIMIT


def settings(**changes: Any) -> TrainSettings:
    values: dict[str, Any] = {
        **{"data": "rows", "prompt": "plain", "loss_on": "answer", "packing": False, "sequence_length": LIMIT},
        **{"batch_size": 2, "num_steps": 1, "learning_rate": 1e-3, "lr_scheduler": "constant", "dtype": "fp32"},
    }
    return TrainSettings(**{**values, **changes})


def test_padded_rows_beyond_that_length_are_refused_for_training() -> None:
    model = scaled("longrope")
    check_padded_rotation(model, settings())
    check_padded_rotation(model, settings(sequence_length=100, packing=True))
    check_padded_rotation(model_of("LlamaConfig", {}), settings(sequence_length=100))
    with pytest.raises(Refused, match=r"beyond 32 tokens.*sequence_length = 100 .*take sequence_length = 32 or less"):
        check_padded_rotation(model, settings(sequence_length=100))


@pytest.mark.parametrize("name", BIDIRECTIONAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_sees_what_follows_is_refused(name: str, dtype: torch.dtype) -> None:
    lm = HarnessLM(model_of(*BIDIRECTIONAL[name]).to(dtype).eval(), Letters(), device="cpu", batch_tokens=64)
    with pytest.raises(HarnessError, match="sees tokens that follow"):
        lm._loglikelihood_tokens([(None, [5, 6, 7], [8])])


@pytest.mark.parametrize("config_class", ["MixtralConfig", "OPTConfig", "Gemma3TextConfig", "Qwen2MoeConfig"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_architecture_that_was_not_read_is_scored_without_padding(config_class: str, dtype: torch.dtype) -> None:
    model = model_of(config_class, {"layer_types": None} if config_class == "Gemma3TextConfig" else {}).to(dtype).eval()
    draw = random.Random(3)
    requests = [
        (None, [draw.randrange(3, 60) for _ in range(draw.randint(2, 9))], [draw.randrange(3, 60)]) for _ in range(12)
    ]
    wanted = [alone(model, context, continuation) for _, context, continuation in requests]
    shapes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append((kwargs["input_ids"].shape, kwargs["attention_mask"].min().item())),
        with_kwargs=True,
    )
    lm = HarnessLM(model, Letters(), device="cpu", batch_tokens=64)
    found = [value for value, _ in lm._loglikelihood_tokens(requests)]
    lengths = {len(context) for _, context, _ in requests}
    assert {shape[1] for shape, _ in shapes[1:]} == lengths, "the first pass is the trial"
    assert all(smallest == 1 for _, smallest in shapes)
    tolerance = 2e-3 if dtype == torch.float32 else 0.1
    assert found == pytest.approx(wanted, abs=tolerance)
