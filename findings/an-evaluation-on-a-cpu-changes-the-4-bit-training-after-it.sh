#!/usr/bin/env bash
# QLoRA on a CPU: one look at a held-out loss, in eval mode and without gradients, changes every loss that follows.
#
# A good guess: frozen weights stay as they are and an evaluation only reads, so a run that looks at its held-out loss
#   trains as one that does not.
# What happens: on CPUs with AVX512-BF16 the first forward pass of a Linear4bit in eval mode whose input requires no
#   gradient repacks the frozen weight in place for an inference kernel and rounds its constants to bf16, and nothing
#   turns it back when training goes on. In that format the layer is a product without a backward pass: no gradient
#   reaches its input, so adapters below it learn from the residual stream alone. bitsandbytes says nothing; torch warns
#   once that an operator has no autograd kernel.
# Why it matters: with and without evaluation, and for every other frequency of it, one seed gives different adapters; a
#   check of a training recipe on a CPU (many continuous integrations have such CPUs) tests another training than the
#   one on a GPU, where nothing is repacked.
# What to do: layer.support_avx512bf16_for_cpu = False on every bitsandbytes.nn.Linear4bit before the first evaluation,
#   or evaluate with the layers in training mode and dropout off by hand.
# Where: bitsandbytes 0.50.2, nn/modules.py, Linear4bit.forward; functional.py, _convert_weight_packed_for_cpu; autograd
#   /_functions.py, matmul_4bit (packing_format_for_cpu). transformers 5.23.0, peft 0.21.2.
#
# Needs Python 3.11 to 3.13 and the package index; CPU only. On a CPU without AVX512-BF16 it says so and shows nothing.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2 bitsandbytes==0.50.2 \
    accelerate==1.15.0 numpy==2.4.6
cd "$place"
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_VERBOSITY=error "$place/venv/bin/python" - <<'PY'
import logging
import sys
import warnings
from importlib.metadata import version

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
warnings.simplefilter("ignore")
import bitsandbytes
import peft
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "bitsandbytes")))
if not bitsandbytes.functional.has_avx512bf16():
    print("this CPU has no AVX512-BF16: nothing is repacked here")
    sys.exit(0)
torch.manual_seed(0)
shape = LlamaConfig(
    vocab_size=256,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
)
AutoModelForCausalLM.from_config(shape).to(torch.bfloat16).save_pretrained("checkpoint")
source = torch.Generator().manual_seed(1)
rows = torch.randint(0, 256, (3, 4, 32), generator=source)  # two batches, seen again and again, and a held-out one


def trained(look, packed):
    """Return the losses of 24 steps, with a look after 2 or none, and how many frozen weights of how many it changed."""
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base = AutoModelForCausalLM.from_pretrained("checkpoint", dtype=torch.bfloat16, quantization_config=how)
    layers = [one for one in base.modules() if isinstance(one, bitsandbytes.nn.Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu &= packed
    torch.manual_seed(2)
    model = peft.get_peft_model(base, peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses, changed = [], 0
    for step in range(24):
        if look and step == 2:
            before = [layer.weight.data.clone().flatten() for layer in layers]
            model.eval()
            with torch.no_grad():
                model(input_ids=rows[2], labels=rows[2])
            changed = sum(not torch.equal(one, layer.weight.data.flatten()) for one, layer in zip(before, layers))
        model.train()
        loss = model(input_ids=rows[step % 2], labels=rows[step % 2]).loss
        loss.backward()
        losses.append(round(loss.item(), 4))
        optimizer.step()
        optimizer.zero_grad()
    return losses, changed, len(layers)


plain, _, _ = trained(look=False, packed=True)
looked, changed, total = trained(look=True, packed=True)
kept, untouched, _ = trained(look=True, packed=False)
print("losses of steps 1, 2, 12, 18 and 24")
shown = lambda losses: [losses[step] for step in (0, 1, 11, 17, 23)]
print("no look:            ", shown(plain))
print("a look after step 2:", shown(looked), f"({changed} of {total} frozen weights changed)")
print("the same, kept off: ", shown(kept), f"({untouched} of {total})")
assert plain[:2] == looked[:2], "the two runs begin alike"
assert changed == total, "the look repacks every frozen weight"
assert max(abs(one - other) for one, other in zip(plain[3:], looked[3:])) > 0.05, "later losses are others"
assert kept == plain and untouched == 0, "with the format kept off the look changes nothing"
print("as described: one look on a CPU repacks every frozen 4-bit weight, and the training after it is another")
PY
