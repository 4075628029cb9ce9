"""Which layers get an adapter: what fits nothing is refused by name, what is wrapped is listed, ties are respected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM

from harness.catalogue.models import BaseModelSpec
from harness.errors import Refused
from harness.method import METHODS
from harness.methods._targets import kinds, refuse_rows_of_zeros, target_layers, untie_targets
from harness.proof import judge_record
from harness.tensors.decoder import find_decoder
from tests.contract.conftest import FakeContext, tiny_model
from tests.proofs import record_of, task_of
from tests.records import TRAIN


def phi3() -> nn.Module:
    shape: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "pad_token_id": 0}
    return Phi3ForCausalLM(Phi3Config(**shape, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))


def test_fused_layers_are_named_with_what_they_hold() -> None:
    with pytest.raises(Refused) as refused:
        target_layers(phi3(), ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"])
    assert str(refused.value) == (
        "the model has no layer called q_proj, k_proj, v_proj, up_proj for target_modules; here qkv_proj holds q_proj, "
        "k_proj and v_proj in one layer; here gate_up_proj holds up_proj in one layer; its layers are called "
        "embed_tokens, o_proj, qkv_proj, gate_up_proj, down_proj, lm_head"
    )


def test_a_typing_error_beside_a_name_that_fits_is_refused_with_what_was_meant() -> None:
    with pytest.raises(Refused, match=r"no layer called v_porj for target_modules \(did you mean 'v_proj'\?\)"):
        target_layers(tiny_model("llama"), ["q_proj", "v_porj"])


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            "self_attn",
            "model.layers.0.self_attn is a LlamaAttention, .*; name what it holds: q_proj, k_proj, v_proj, o",
        ),
        ("layers.1", "model.layers.1 is a LlamaDecoderLayer, .*; name what it holds: q_proj, .*, down_proj$"),
        ("input_layernorm", "input_layernorm is a LlamaRMSNorm, .*; layers are embed_tokens, q_proj"),
    ],
)
def test_a_module_that_takes_no_adapter_is_refused_in_one_line(target: str, words: str) -> None:
    with pytest.raises(Refused, match=words) as refused:
        target_layers(tiny_model("llama"), ["q_proj", target])
    assert "\n" not in str(refused.value)


def test_a_parameter_that_is_no_layer_is_told_apart_from_a_typing_error() -> None:
    model = tiny_model("llama")
    model.model.layers[0].mlp.register_parameter("experts", nn.Parameter(torch.zeros(2, 4, 4)))  # type: ignore
    with pytest.raises(Refused, match="experts is a parameter of a module of several, no layer of its own"):
        target_layers(model, ["q_proj", "experts"])


def test_a_name_that_only_ends_alike_is_another_layer() -> None:
    assert {name.rpartition(".")[2] for name in target_layers(tiny_model("llama"), ["up_proj"])} == {"up_proj"}
    with pytest.raises(Refused, match="no layer called proj"):
        target_layers(tiny_model("llama"), ["proj"])


def test_the_record_lists_what_was_wrapped_and_how_many_of_each(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of("lora", tiny_llama, tmp_path, target_modules=["q_proj", "layers.1.mlp.down_proj", "lm_head"])
    record = record_of(task, monkeypatch)
    assert record.status == "ok" and record.proof is not None
    adapters: Any = record.proof.method["adapters"]
    assert adapters["wrapped"] == {"q_proj": 4, "down_proj": 1, "lm_head": 1}
    assert adapters["wrapped"] == kinds(adapters["found"])


@pytest.mark.parametrize("variant", ["lora", "dora", "lora-fa"])
def test_transposed_layers_are_declared_as_they_are(variant: str, tiny_llama: Path, tmp_path: Path) -> None:
    """GPT-2 keeps weights as (in, out): what is declared of an adapter must not take one for the other."""
    shape: dict[str, Any] = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, **shape))
    paths = {"blocks": "transformer.h", "embedding": "transformer.wte", "final_norm": "transformer.ln_f"}
    spec = BaseModelSpec(name="gpt2", architecture="GPT2LMHeadModel", folder=tmp_path, **paths)  # type: ignore
    method = METHODS.get("lora")
    task = task_of(variant, tiny_llama, tmp_path, target_modules=["c_attn", "mlp.c_proj"])
    context = FakeContext(1, 2, TRAIN, find_decoder(model, spec))
    found = method(method.Config.model_validate(task.spec.config))
    wrapped = found.prepare(model, context)
    optimizer = found.build_optimizer(wrapped, context)
    declared = found.declare(wrapped, context)
    assert declared is not None
    ids = torch.arange(12).reshape(2, 6)
    wrapped(input_ids=ids, labels=ids).loss.backward()
    optimizer.begin_step(0)
    optimizer.step()
    assert sum(one.state_bytes for one in declared.blocks) == optimizer.state_bytes()["device"]
    trained = [sum(p.numel() for p in block.parameters() if p.requires_grad) for block in context.decoder.blocks]
    assert [one.num_params for one in declared.blocks] == trained


def test_dora_on_rows_of_zeros_is_refused_and_not_called_divergence(
    tiny_llama_tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of(task_of("dora", tiny_llama_tied, tmp_path, target_modules=["q_proj", "lm_head"]), monkeypatch)
    assert record.status == "refused" and record.reason is not None
    assert record.reason.startswith(
        "use_dora divides each row of a weight by its length, and 1 of lm_head are all zero"
    )


def test_dora_without_rows_of_zeros_trains_a_tied_head(
    tiny_llama_tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_tied)
    with torch.no_grad():
        model.lm_head.weight.add_(0.01)
    model.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes((tiny_llama_tied / name).read_bytes())
    record = record_of(task_of("dora", tmp_path / "model", tmp_path, target_modules=["lm_head"]), monkeypatch)
    judgement = judge_record(record)
    assert record.status == "ok" and judgement is not None and not judgement.failed, record.reason


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"], ["q_proj"]])
def test_a_merge_into_a_tied_matrix_changes_the_adapted_layer_alone(targets: list[str], tmp_path: Path) -> None:
    """Merged into the one matrix, the adapter would act in embedding and head: other logits than those scored."""
    import peft

    model = tiny_model("llama", tied=True)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
        wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        scored = wrapped(input_ids=ids).logits
    method = METHODS.get("lora")
    exported: Any = method.export(method.__new__(method), wrapped)
    exported.save_pretrained(tmp_path / "merged")
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(kept(input_ids=ids).logits, scored, rtol=1e-4, atol=1e-4)
    assert kept.config.tie_word_embeddings == (targets == ["q_proj"])


def test_names_are_found_without_values_too() -> None:
    """Planning wraps models that hold none."""
    with torch.device("meta"):
        model = phi3()
    assert kinds(target_layers(model, ["qkv_proj"])) == {"qkv_proj": 2}
    refuse_rows_of_zeros(model)
    untie_targets(model)
