#!/usr/bin/env bash
# A Gemma with use_bidirectional_attention=True is causal as soon as another row of its batch is padded.
#
# A good guess: the flag decides ("If True, the model will attend to all text tokens instead of using a causal mask"),
#   for every row, batch and implementation of attention; a row's logits depend on no other row; padding hides
#   padding.
# What happens: the flag reaches the attention modules (is_causal) and not the maker of masks, which asks
#   config.is_causal. Under sdpa a batch without padding gets no mask and the modules' word counts: every token sees
#   the whole row. One padded token anywhere in the batch makes a mask, a causal one: no token of any row sees what
#   follows. Under eager there is always a mask, so the flag never does anything. Gemma 3 with its flag, and Llama or
#   Mistral with is_causal=False, do what they say in each of these cases.
# Why it matters: a full row has one loss beside rows of its length and another beside a shorter one, so losses,
#   embeddings and scores move with batch size, sorting and the last batch of an epoch, and a model trained in batches
#   of equal lengths is scored as another model. With one row a batch nobody sees it.
# Where: transformers 5.23.0, models/gemma/configuration_gemma.py, GemmaConfig (no is_causal);
#   models/gemma/modeling_gemma.py, GemmaAttention.__init__; masking_utils.py, create_causal_mask (config.is_causal)
#   and _ignore_causal_mask_sdpa; integrations/sdpa_attention.py, sdpa_attention_forward (is_causal without a mask).
#   Gemma 4 had the same gap and sets config.is_causal since huggingface/transformers pull request 46079.
#
# Needs Python 3.11 to 3.13 and the package index; CPU only.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cd "$place"
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 "$place/venv/bin/python" - <<'PY'
from importlib.metadata import version

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GemmaConfig, LlamaConfig, MistralConfig

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
LENGTH = 12
generator = torch.Generator().manual_seed(3)
rows = torch.randint(3, 64, (2, LENGTH), generator=generator)
changed = rows.clone()
changed[0, -1] = 3 if rows[0, -1] != 3 else 4  # the last token of the first row, which is never padded
ones = torch.ones_like(rows)
padded = ones.clone()
padded[1, -1] = 0  # of the other row
MASKS = {"no mask": None, "a mask of ones": ones, "other row padded": padded}


@torch.no_grad()
def seen(model, mask):
    """Return how far logits before the last token move with it, and the loss of the first row."""
    before, after = (model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0] for ids in (rows, changed))
    return (before - after)[:-1].abs().max().item(), functional.cross_entropy(before[:-1], rows[0, 1:]).item()


CASES = {
    "Gemma, use_bidirectional_attention=True": GemmaConfig(**SHAPE, use_bidirectional_attention=True),
    "Gemma, as it comes": GemmaConfig(**SHAPE),
    "Gemma 3, use_bidirectional_attention=True": Gemma3TextConfig(**SHAPE, use_bidirectional_attention=True),
    "Llama, is_causal=False": LlamaConfig(**SHAPE, is_causal=False),
    "Mistral, is_causal=False": MistralConfig(**SHAPE, is_causal=False),
}
print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers")))
print("the first row, full in every case: how far its last token moves the logits before it, and its loss, nats\n")
found = {}
for name, config in CASES.items():
    for attention in ("sdpa", "eager"):
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
        for beside, mask in MASKS.items():
            found[name, attention, beside] = moved, loss = seen(model, mask)
            says = "sees the future" if moved else "causal"
            print(f"{name:42} {attention:6} {beside:17} {moved:8.4f} {loss:8.4f}   {says}")

flagged = "Gemma, use_bidirectional_attention=True"
for (name, attention, beside), (moved, loss) in found.items():
    if name == flagged:
        sees = attention == "sdpa" and beside != "other row padded"  # a good guess: always
    else:
        sees = name != "Gemma, as it comes"
    assert (moved > 1e-2) == sees and (moved == 0.0) == (not sees), (name, attention, beside)
    if name != flagged:  # a good guess of every model: no other row matters
        assert abs(loss - found[name, attention, "no mask"][1]) < 1e-4
alone, beside_padding = (found[flagged, "sdpa", beside][1] for beside in ("a mask of ones", "other row padded"))
print(f"\none padded token in the other row moves the loss of the full row from {alone:.4f} to {beside_padding:.4f}")
assert abs(alone - beside_padding) > 1e-2
assert beside_padding == found["Gemma, as it comes", "sdpa", "other row padded"][1]  # the flag is gone altogether
print("as described: whether this Gemma is causal is decided by the padding of other rows")
PY
