"""Which models take rows padded on the right without a mask, and that nothing but rounding moves when they do."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from harness.data.batches import MicroBatch, collate
from harness.data.examples import Example
from harness.engine.loss import summed_loss
from harness.engine.padding import needs_padding_mask
from harness.tensors.causality import CAUSAL_ARCHITECTURES

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LENGTHS = (40, 7, 16, 23)
WINDOW = 11
CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral, a short window": ("MistralConfig", {"sliding_window": WINDOW}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2, a short window": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {}),
    "gemma": ("GemmaConfig", {}),
    "gemma2, a short window": ("Gemma2Config", {"sliding_window": WINDOW}),
    "phi3": ("Phi3Config", {"sliding_window": None}),
    "phi3, a short window": ("Phi3Config", {"sliding_window": WINDOW}),
}
BIDIRECTIONAL: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("GemmaConfig", {"use_bidirectional_attention": True}),
    "gemma3_text": ("Gemma3TextConfig", {"use_bidirectional_attention": True, "sliding_window": WINDOW}),
    "llama": ("LlamaConfig", {"is_causal": False}),
}


def model_of(config_class: str, settings: dict[str, Any], attention: str | None = None) -> Any:
    config = getattr(transformers, config_class)(**SHAPE, **settings)
    implementation = attention or ("eager" if config.model_type == "gemma2" else "sdpa")  # it has no other
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return AutoModelForCausalLM.from_config(config, attn_implementation=implementation).train()


def padded_batch() -> MicroBatch:
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(3, 64, (length,), generator=generator).tolist() for length in LENGTHS]
    return collate([Example(tuple(ids), (False, *(True for _ in ids[1:]))) for ids in rows], pad_id=0)


def loss_and_gradients(model: nn.Module, batch: MicroBatch) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = summed_loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("wrapped", [False, True], ids=["", "lora"])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_model_loses_nothing_without_a_mask(name: str, wrapped: bool) -> None:
    model = model_of(*CAUSAL[name])
    if wrapped:
        config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        with torch.random.fork_rng():
            torch.manual_seed(6)
            model = peft.get_peft_model(model, config)
    assert not needs_padding_mask(model)
    batch = padded_batch()
    under_mask, wanted = loss_and_gradients(model, batch)
    loss, found = loss_and_gradients(model, batch.to(torch.device("cpu"), masked=False))
    assert loss == pytest.approx(under_mask, rel=1e-6)
    assert found.keys() == wanted.keys()
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[key], rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_a_bidirectional_model_keeps_its_mask_because_its_loss_would_change(name: str) -> None:
    model = model_of(*BIDIRECTIONAL[name])
    assert needs_padding_mask(model)
    batch = padded_batch()
    under_mask, _ = loss_and_gradients(model, batch)
    without, _ = loss_and_gradients(model, batch.to(torch.device("cpu"), masked=False))
    assert without != pytest.approx(under_mask, rel=1e-4)


def test_every_architecture_that_goes_without_was_tried() -> None:
    tried = {getattr(transformers, config_class).model_type for config_class, _ in CAUSAL.values()}
    assert tried == CAUSAL_ARCHITECTURES


@pytest.mark.parametrize("config_class", ["MixtralConfig", "OPTConfig", "Gemma3TextConfig", "Qwen2MoeConfig"])
def test_an_architecture_that_was_not_read_keeps_its_mask(config_class: str) -> None:
    assert needs_padding_mask(model_of(config_class, {}))


def test_a_model_that_is_not_transformers_keeps_its_mask() -> None:
    assert needs_padding_mask(nn.Linear(2, 2))


def test_what_changes_a_known_architecture_keeps_the_mask() -> None:
    assert needs_padding_mask(model_of("LlamaConfig", {"attention_dropout": 0.1}))
    other_layers = model_of("Qwen2Config", {})
    other_layers.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    assert needs_padding_mask(other_layers)
    other = model_of("LlamaConfig", {})
    other.config._attn_implementation = "somebody's"
    assert needs_padding_mask(other)
    assert not needs_padding_mask(other, other_attention=("somebody's",))
    made_bidirectional = model_of("GemmaConfig", {})
    made_bidirectional.config.use_bidirectional_attention = True  # read when masks are made, not when modules are
    assert needs_padding_mask(made_bidirectional)
    not_causal = model_of("LlamaConfig", {})
    not_causal.model.layers[1].self_attn.is_causal = False
    assert needs_padding_mask(not_causal)


def test_virtual_tokens_before_a_row_keep_the_mask() -> None:
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    assert needs_padding_mask(peft.get_peft_model(model_of("LlamaConfig", {}), settings))


def test_subclasses_from_elsewhere_keep_the_mask() -> None:
    class Changed(transformers.LlamaForCausalLM):  # type: ignore[misc]
        pass

    assert needs_padding_mask(Changed(transformers.LlamaConfig(**SHAPE)))
