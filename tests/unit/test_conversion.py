"""Conversion of a tiny random GGUF, against transformers' own loader of such files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from harness.assets.gguf import convert_gguf
from harness.errors import HarnessError

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 64, 96, 4, 2, 16, 2
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"


def add_metadata(writer: gguf.GGUFWriter, tokens: list[str]) -> None:
    writer.add_name("Tiny")
    writer.add_vocab_size(len(tokens))
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(5000.0)
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)


def write_gguf(folder: Path, *, architecture: str = "llama", extra: str | None = None, tied: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tiny.gguf"
    generator = np.random.default_rng(0)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values(), "th", "the"]
    writer = gguf.GGUFWriter(file, architecture)
    add_metadata(writer, tokens)

    def add(name: str, *shape: int, quantized: bool = True) -> None:
        values = generator.standard_normal(shape, dtype=np.float32)
        if quantized:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)

    add("token_embd.weight", len(tokens), HIDDEN)
    add("output_norm.weight", HIDDEN, quantized=False)
    if not tied:
        add("output.weight", len(tokens), HIDDEN)
    for block in range(LAYERS):
        add(f"blk.{block}.attn_norm.weight", HIDDEN, quantized=False)
        add(f"blk.{block}.ffn_norm.weight", HIDDEN, quantized=False)
        add(f"blk.{block}.attn_q.weight", HEADS * HEAD_DIM, HIDDEN)
        add(f"blk.{block}.attn_k.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        add(f"blk.{block}.attn_v.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        add(f"blk.{block}.attn_output.weight", HIDDEN, HEADS * HEAD_DIM)
        add(f"blk.{block}.ffn_gate.weight", FFN, HIDDEN)
        add(f"blk.{block}.ffn_up.weight", FFN, HIDDEN)
        add(f"blk.{block}.ffn_down.weight", HIDDEN, FFN)
    if extra is not None:
        add(extra, HIDDEN, quantized=False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 43)[None]).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "MistralForCausalLM"])
def test_converted_weights_are_those_of_transformers_own_loader(tmp_path: Path, architecture: str, tied: bool) -> None:
    file = write_gguf(tmp_path / "gguf", tied=tied)
    folder = tmp_path / "out"
    folder.mkdir()
    seen: list[tuple[int, int | None]] = []
    convert_gguf(file, folder, architecture, lambda _, done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == 2 + 9 * LAYERS + (not tied)
    reference = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert type(model).__name__ == architecture and not getattr(model, "is_quantized", False)
    expected = reference.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert torch.equal(logits(model), logits(reference))
    assert model.config.rope_parameters["rope_theta"] == 5000.0 and model.config.max_position_embeddings == 128
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 2)
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").is_file()


def test_the_tokenizer_keeps_ids_and_chat_template_and_adds_no_bos(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "gguf")
    folder = tmp_path / "out"
    folder.mkdir()
    convert_gguf(file, folder, "LlamaForCausalLM")
    ours = AutoTokenizer.from_pretrained(folder)
    reference = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text = "the then 12\n<|im_end|>"
    assert ours(text)["input_ids"] == reference(text)["input_ids"]
    assert ours(text)["input_ids"][0] != 1 and ours.decode(ours("the")["input_ids"]) == "the"
    assert ours.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "<|im_start|>x<|im_end|>"
    assert (ours.eos_token_id, ours.pad_token_id) == (2, 2)
    assert str(tmp_path) not in (folder / "tokenizer_config.json").read_text()


def test_what_cannot_be_converted_is_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(HarnessError, match="cannot be written as GPT2LMHeadModel"):
        convert_gguf(tmp_path / "none.gguf", folder, "GPT2LMHeadModel")
    with pytest.raises(HarnessError, match=r"tensor 'blk.0.attn_q_norm.weight' has no place"):
        convert_gguf(write_gguf(tmp_path / "a", extra="blk.0.attn_q_norm.weight"), folder, "LlamaForCausalLM")
    with pytest.raises(HarnessError, match="has the architecture 'qwen2', only 'llama'"):
        convert_gguf(write_gguf(tmp_path / "b", architecture="qwen2"), folder, "LlamaForCausalLM")
