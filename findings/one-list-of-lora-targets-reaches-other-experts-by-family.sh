#!/usr/bin/env bash
# One list of LoRA targets, gate_proj/up_proj/down_proj, trains other parts of each mixture of experts.
#
# A good guess: target_modules=["gate_proj", "up_proj", "down_proj"] puts an adapter of rank r on every matrix that is
#   called so, routed experts, shared experts and dense layers alike, in every family whose checkpoint has those names;
#   adapters of one rank on two families can be compared by their trainable parameters.
# What happens: transformers 5 holds routed experts as stacked tensors, gate_up_proj and down_proj, which are no modules.
#   peft rewrites the list for model types that transformers' conversion table sends to "qwen2_moe" or "mixtral", and
#   takes the names out of it. So
#   - deepseek_v3: the routed experts are adapted, gate_up_proj at twice the rank; the shared expert and the dense first
#     layers, whose modules are called gate_proj, up_proj and down_proj, get none.
#   - qwen3_moe: the routed experts are adapted, at twice the rank too; its dense layers (mlp_only_layers) get none.
#   - qwen2_moe: is itself no key of that table: the shared expert alone is adapted, no routed one.
#   - mixtral: the same; beside "q_proj" and "v_proj" the three names do nothing.
#   No message names what was left out.
# Why it matters: "LoRA on all MLP matrices" of two mixtures are two methods. In one all routed experts are trained, in the
#   other none; trainable parameters, memory and scores follow, and a table sets them beside each other under one name.
#   Where the names stand beside attention's, none of this fails.
# What to do: read the adapted names off the model. For stacked experts give target_parameters=["experts.gate_up_proj",
#   "experts.down_proj"], and name shared experts and dense layers by a path that the rewriting does not take.
# Where: peft 0.21.2, utils/transformers_weight_conversion.py, _convert_peft_config_moe; transformers 5.23.0,
#   conversion_mapping.py, _MODEL_TO_CONVERSION_PATTERN.
#
# Needs Python 3.11 to 3.13 and the package index; CPU only.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6
cd "$place"
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$place/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, DeepseekV3Config, MixtralConfig, Qwen2MoeConfig, Qwen3MoeConfig

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
WIDE = {"intermediate_size": 64, "moe_intermediate_size": 48, "num_experts_per_tok": 2}
HEADS = {"kv_lora_rank": 8, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
GROUPS = {"n_group": 2, "topk_group": 1, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
CONFIGS = {  # the first block is dense where the family has dense blocks
    "deepseek_v3": DeepseekV3Config(**SMALL, **WIDE, **HEADS, **GROUPS),
    "qwen3_moe": Qwen3MoeConfig(**SMALL, **WIDE, num_experts=4, head_dim=8, mlp_only_layers=[0]),
    "qwen2_moe": Qwen2MoeConfig(**SMALL, **WIDE, num_experts=4, shared_expert_intermediate_size=48),
    "mixtral": MixtralConfig(**SMALL, intermediate_size=48, num_local_experts=4, num_experts_per_tok=2),
}
MLP = ["gate_proj", "up_proj", "down_proj"]


def part(name):
    """Return which part of the model an adapted tensor belongs to."""
    if ".mlp.experts" in name:
        return "routed experts"
    if "shared_expert" in name:
        return "shared expert"
    return "dense layers" if ".mlp." in name else "attention"


def adapted(config, targets):
    """Return by part what carries an adapter, and the ranks of the adapters there."""
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(r=4, target_modules=targets))
    found = {}
    for name, tensor in model.named_parameters():
        if "lora_A" in name:
            rank = tensor.shape[0] // (4 if ".mlp.experts" in name else 1)  # of stacked experts one behind the other
            found.setdefault(part(name), set()).add(rank)
    return {name: sorted(ranks) for name, ranks in sorted(found.items())}


print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft")), "\n")
seen = {}
for kind, config in CONFIGS.items():
    seen[kind] = adapted(config, ["q_proj", "v_proj", *MLP] if kind == "mixtral" else MLP)
    print(f"{kind:12} has routed experts{', a shared expert' * (kind in ('deepseek_v3', 'qwen2_moe'))}"
          f"{', a dense block' * (kind in ('deepseek_v3', 'qwen3_moe'))}; adapters of rank: {seen[kind]}")
assert seen == {
    "deepseek_v3": {"routed experts": [4, 8]},
    "qwen3_moe": {"routed experts": [4, 8]},
    "qwen2_moe": {"shared expert": [4]},
    "mixtral": {"attention": [4]},
}, seen
print("\nas described: which MLP matrices one list reaches depends on the family")
PY
