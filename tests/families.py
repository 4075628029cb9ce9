"""Every causal language model of the installed transformers, each as a tiny one: configurations shrunk by one rule.

What a setting means is told by its name, in whatever configuration it stands; a list with an entry a layer is cut to
the number of layers. Nothing here knows of the harness.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.conftest import byte_tokenizer

LAYERS = 4
RULES: tuple[tuple[str, int], ...] = (
    (r"((num_)?(hidden_|decoder_|encoder_)?(n_)?layers?|n_layers|num_blocks)", LAYERS),
    (r"((text_)?vocab_size|vocab_size_per_layer_input|padded_vocab_size|n_words)", 264),
    (r"(hidden_size|d_model|n_embd|dim|emb_dim|embedding_size|word_embed_proj_dim|decoder_hidden_size|lru_width)", 32),
    (r"(attention_hidden_size)", 32),
    (r"(n_inner|d_ff|d_inner|.*ffn_dim|.*intermediate_size|ffn_hidden_size)", 48),
    (r"(n_heads?|num_heads|(num_)?(decoder_|encoder_)?(attention_)?heads|(?!linear|mamba).*attention_heads)", 4),
    (r"(.*num_key_value_heads|num_kv_heads|kv_heads|n_head_kv|multi_query_group_num)", 2),
    (r"(head_dim|(?!mamba|linear).*_head_dim|d_kv|d_head|rotary_dim)", 8),
    (r".*(_rank|_low_rank_dim)", 8),
    (r"(num_(local_|routed_)?experts|n_routed_experts|moe_num_experts|num_total_experts|n_experts)", 4),
    (r"(num_experts_per_tok|moe_topk|moe_k|num_selected_experts|moe_top_k|num_experts_per_token|experts_per_token)", 2),
    (r"(n_group|topk_group|num_expert_groups?)", 1),
    (r"(.*max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|max_(target|source)_positions)", 1024),
    (r".*(pad_token_id|padding_idx|pad_index)", 0),
    (r".*token_id", 1),
)
"""Names of settings, whole, and what they become; the first that fits is taken."""
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "laguna": {"num_attention_heads_per_layer": [4] * LAYERS},
    "mamba2": {"num_heads": 8},
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [8, 24]},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a kind of model needs beside the rules, because its own checks bind settings to each other."""


def tiny_config(config_class: Any, **changes: Any) -> Any:
    """Return a configuration of a class with four layers and a few thousand weights."""
    kind = config_class.model_type
    settings = {**shrunk(config_class().to_dict()), **OWN.get(kind, {}), **changes}
    return config_class(
        **{k: value for k, value in settings.items() if k not in ("transformers_version", "model_type")}
    )


def shrunk(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings of a configuration made small."""
    layers = {value for key, value in settings.items() if re.fullmatch(RULES[0][0], str(key))}
    latent = "qk_rope_head_dim" in settings  # of which head_dim is made
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if latent and key in ("head_dim", "qk_head_dim"):
            continue
        if latent and key == "num_key_value_heads":
            found[key] = 4  # as many as heads: keys and values are made from one latent vector
        elif isinstance(value, dict):
            found[key] = shrunk({k: v for k, v in value.items() if not str(k).isdigit() or int(k) < LAYERS})
        elif isinstance(value, list) and len(value) in layers:
            found[key] = value[:LAYERS]
        elif (isinstance(value, int) and not isinstance(value, bool)) or (value is None and key == "head_dim"):
            found[key] = next((small for rule, small in RULES if re.fullmatch(rule, str(key))), value)
        else:
            found[key] = value
    return found


def tiny_folder(kind: str, folder: Path, **changes: Any) -> Path:
    """Write a random tiny model of a kind (``model_type``) and the tokenizer of bytes into a folder, and return it."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    ends = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257}
    config = tiny_config(CONFIG_MAPPING[kind], **ends, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
