#!/usr/bin/env bash
# BartForCausalLM keeps the decoder's cross-attention: trainable, adapted by LoRA, counted, and reached by no gradient.
#
# A good guess: the causal language model of an encoder-decoder family is a decoder without its other half. What
#   requires a gradient gets one, and half of the adapters on q_proj and v_proj are not for nothing.
# What happens: each block of BartForCausalLM (and of MBart's, Pegasus's and Blenderbot's) holds encoder_attn and its layer
#   norm, which run only where encoder_hidden_states is passed. Without it their gradient is None in every step: a quarter
#   of the blocks' parameters where the feed-forward part is four times as wide as the model. The names inside are q_proj,
#   k_proj, v_proj and out_proj again, so LoRA's targets match them: half of all adapters are never trained.
# Why it matters: trainable parameters, their share and the memory of weights and adapters are counted with what never
#   moves: at one "rank" a decoder of this kind has twice the adapters of a LLaMA-like one, and trains as many. A sampler
#   or a projection that goes by the names of matrices spends its budget there. Weight decay does not touch them either,
#   so they stay at the bit what the checkpoint had.
# What to do: freeze or delete encoder_attn and encoder_attn_layer_norm before counting and choosing targets; give LoRA a
#   regular expression such as r".*\.self_attn\.(q|v)_proj".
# Where: transformers 5.23.0, models/bart/modeling_bart.py, BartDecoderLayer.__init__ and forward; peft 0.21.2 takes
#   target_modules by the end of the name.
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
from transformers import AutoModelForCausalLM, BartConfig, BlenderbotConfig, LlamaConfig, MBartConfig, PegasusConfig

SIZE = 32
BART = {"d_model": SIZE, "decoder_ffn_dim": 4 * SIZE, "encoder_ffn_dim": 4 * SIZE}
LAYERS = {"decoder_layers": 2, "encoder_layers": 2, "decoder_attention_heads": 4, "encoder_attention_heads": 4}
ALONE = {"is_decoder": True, "is_encoder_decoder": False, "max_position_embeddings": 64, "vocab_size": 64}
KINDS = {"bart": BartConfig, "mbart": MBartConfig, "pegasus": PegasusConfig, "blenderbot": BlenderbotConfig}
LLAMA = LlamaConfig(vocab_size=64, hidden_size=SIZE, intermediate_size=4 * SIZE, num_hidden_layers=2, num_attention_heads=4)


def after_a_step(model):
    """Return the trainable tensors by whether a step of AdamW with weight decay on the loss reached them."""
    torch.manual_seed(1)
    ids = torch.randint(4, 64, (2, 16))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.1)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    idle = {name: p for name, p in trained.items() if p.grad is None}
    assert all(torch.equal(p, before[name]) for name, p in idle.items())
    assert all(".encoder_attn" in name for name in idle)
    return trained, idle


def blocks(tensors):
    return sum(p.numel() for name, p in tensors.items() if ".layers." in name)


print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft")), "\n")
for kind, config in {"llama": LLAMA, **{name: make(**BART, **LAYERS, **ALONE) for name, make in KINDS.items()}}.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    trained, idle = after_a_step(model)
    lora = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    adapters, never = after_a_step(lora)
    share = blocks(idle) / blocks(trained)
    print(f"{kind:10} {type(model).__name__:22} of the blocks' trainable parameters {share:5.1%} get no gradient; of "
          f"{len(adapters)} adapter tensors {len(never)}")
    assert (len(adapters), len(never)) == ((8, 0) if kind == "llama" else (16, 8)), kind
    assert share == 0 if kind == "llama" else 0.2 < share < 0.4, share
print("\nas described: cross-attention is trainable, adapted and never reached")
PY
