"""A GGUF file as a folder that ``from_pretrained`` loads: fp32 safetensors, configuration, tokenizer, chat template.

Our own loader: gguf's reader and dequantisation, then the names of a Llama in transformers, with the rows of query and
key put back from llama.cpp's order into transformers'. It is bit-identical to transformers' own (a slow test compares
them), three times as fast, and leaves no quantizer on the model, which would refuse to be saved or trained. The
tokenizer is transformers'. The same weights can be written as a Mistral, whose computation without a sliding window is
the same.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")

_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(gguf_file: Path, folder: Path, architecture: str, progress: Progress = silent) -> None:
    """Write a GGUF file of the architecture ``llama`` into ``folder`` as what ``from_pretrained`` loads.

    Args:
        gguf_file: Its checksum is already checked.
        folder: An empty folder.
        architecture: One of ``ARCHITECTURES``.
        progress: Called once a tensor.

    Raises:
        HarnessError: the file is of another architecture, or holds a tensor that has no place in it.
    """
    import gguf
    from safetensors.numpy import save_file
    from transformers import GenerationConfig, LlamaConfig, MistralConfig

    if architecture not in ARCHITECTURES:
        raise HarnessError(f"{gguf_file.name}: cannot be written as {architecture}; known: {', '.join(ARCHITECTURES)}")
    _save_tokenizer(gguf_file, folder)
    reader = gguf.GGUFReader(gguf_file)
    settings = _settings(reader, gguf_file)
    weights: dict[str, np.ndarray[Any, Any]] = {}
    for done, tensor in enumerate(reader.tensors):
        progress("converting the weights", done, len(reader.tensors))
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        weights[_name(tensor.name, gguf_file)] = _unpermuted(tensor.name, values, settings)
    settings["tie_word_embeddings"] = "lm_head.weight" not in weights
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    mistral = architecture == "MistralForCausalLM"
    config = MistralConfig(**settings, sliding_window=None) if mistral else LlamaConfig(**settings)
    config.architectures = [architecture]
    config.save_pretrained(folder)
    special = {name: settings[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**special).save_pretrained(folder)
    progress("converting the weights", len(weights), len(weights))


def _settings(reader: Any, gguf_file: Path) -> dict[str, Any]:
    """Return the configuration that the metadata describe, by transformers' names."""

    def read(key: str) -> Any:
        field = reader.get_field(key)
        if field is None:
            raise HarnessError(f"{gguf_file.name}: its metadata lack '{key}'")
        return field.contents()

    if (found := read("general.architecture")) != "llama":
        raise HarnessError(f"{gguf_file.name}: has the architecture '{found}', only 'llama' can be converted")
    hidden_size, num_heads = read("llama.embedding_length"), read("llama.attention.head_count")
    return {
        "vocab_size": read("llama.vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": read("llama.feed_forward_length"),
        "num_hidden_layers": read("llama.block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": read("llama.attention.head_count_kv"),
        "head_dim": read("llama.rope.dimension_count"),
        "max_position_embeddings": read("llama.context_length"),
        "rms_norm_eps": read("llama.attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_type": "default", "rope_theta": read("llama.rope.freq_base")},
        "bos_token_id": read("tokenizer.ggml.bos_token_id"),
        "eos_token_id": read("tokenizer.ggml.eos_token_id"),
        "pad_token_id": read("tokenizer.ggml.padding_token_id"),
        "dtype": "float32",
    }


def _name(name: str, gguf_file: Path) -> str:
    if name in _NAMES:
        return _NAMES[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if match is None or match[2] not in _BLOCK_NAMES:
        raise HarnessError(f"{gguf_file.name}: tensor '{name}' has no place in a Llama")
    return f"model.layers.{match[1]}.{_BLOCK_NAMES[match[2]]}.weight"


def _unpermuted(name: str, values: np.ndarray[Any, Any], settings: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return a tensor with each head's rows in transformers' order.

    llama.cpp keeps the two halves of a rotary pair side by side (0, d/2, 1, d/2 + 1, …), transformers half by half.

    Args:
        name: The GGUF tensor's name.
        values: (heads * head_dim, hidden_size) for query and key, else any shape; float32.
        settings: Of the configuration.
    """
    import numpy as np

    heads = {
        "attn_q": settings["num_attention_heads"],
        "attn_k": settings["num_key_value_heads"],
    }.get(name.split(".")[-2])
    if heads is None:
        return np.ascontiguousarray(values)
    pairs = values.reshape(heads, -1, 2, values.shape[-1])  # (heads, head_dim / 2, 2, hidden_size)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(values.shape))


def _save_tokenizer(gguf_file: Path, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    # Not AutoTokenizer: it reads the whole file first to learn the model's type, and gives the same tokenizer.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    tokenizer.save_pretrained(folder)
    # Both keys say where the tokenizer was read from, which is nobody's business later.
    file = folder / "tokenizer_config.json"
    table = json.loads(file.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only"):
        table.pop(key, None)
    file.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
