#!/usr/bin/env bash
# A sliding window exactly as long as the row, or one padded token, makes training memory quadratic in the length.
#
# A good guess: a window that a row does not exceed changes nothing: 4,096 tokens in Mistral-7B v0.1's window of 4,096
#   cost what 4,095 cost and one token. A padding mask costs the bytes of the mask. sdpa needs no quadratic memory.
# What happens: key and query see each other where query - key < window, so a row of exactly `window` tokens loses no
#   pair, and still the mask is made (kv_length >= window is asked, not >). The same mask is made of a whole batch for
#   one padded token, though behind right padding of a causal model no counted token looks. Under a mask torch turns
#   it into one of floats in every layer anew, and every layer keeps its own for the backward pass: rows x length x
#   length each. Besides transformers repeats grouped keys and values to all heads. Loss and gradients are those
#   without a mask but for rounding.
# Why it matters: with four layers of width 128 at 2,048 tokens the peak doubles by one token, which decides what fits
#   and which method "needs less"; two runs at 4,095 and 4,096 tokens, or one whose first batch happens to hold no
#   padding, run different kernels. Leave a mask of right padding out; set sliding_window=None where no row
#   exceeds it.
# Where: transformers 5.23.0, masking_utils.py, sliding_window_overlay (kv_idx > q_idx - sliding_window) and
#   _ignore_causal_mask_sdpa (kv_length >= local_attention_size; fast_all(padding_mask));
#   integrations/sdpa_attention.py, use_gqa_in_sdpa (attention_mask is None). torch 2.13.0,
#   aten/src/ATen/native/transformers/attention.cpp, convert_boolean_attn_mask, for the CPU's and CUDA's
#   memory-efficient kernels (CUDA was not run here).
#
# Needs Python 3.11 to 3.13 and the package index; CPU only.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cd "$place"
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 "$place/venv/bin/python" - <<'PY' 2>&1 | grep -v USDT # the profiler's own lines
from importlib.metadata import version

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, MistralConfig

LAYERS = 4


def step(length, window, *, padded=False, masked=False):
    """Return loss, gradients and the peak of one forward and backward pass, bytes above the weights.

    Args:
        length: Tokens of the row.
        window: Of all layers, or None.
        padded: Whether the last token is padding, without a label.
        masked: Whether the model is told so.
    """
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(
        MistralConfig(
            vocab_size=64,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=LAYERS,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=8192,
            sliding_window=window,
        ),
        attn_implementation="sdpa",
    ).train()
    ids = torch.randint(3, 64, (1, length), generator=torch.Generator().manual_seed(3))
    labels, mask = ids.clone(), None
    if padded:
        labels[0, -1] = -100
    if masked:
        mask = torch.ones_like(ids)
        mask[0, -1] = 0
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
    records = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for record in sorted(records, key=lambda event: event.start_ns()):
        live += record.nbytes()
        peak = max(peak, live)
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()]), peak


def apart(a, b):
    """Return the largest difference of two gradients over the largest gradient."""
    return ((a[1] - b[1]).abs().max() / a[1].abs().max()).item()


print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers")))
print(f"Mistral, {LAYERS} layers, fp32, one row, sdpa; peak of torch's allocator above the weights, MB = 10^6 bytes\n")
print("tokens  window  padding   loss      peak, MB")
extra = {}
for length in (512, 1024, 2048):
    cases = {
        (length, None, "none"): step(length, None),
        (length, length + 1, "none"): step(length, length + 1),
        (length - 1, length, "none"): step(length - 1, length),
        (length, length, "none"): step(length, length),
        (length, None, "unmasked"): step(length, None, padded=True),
        (length, None, "masked"): step(length, None, padded=True, masked=True),
    }
    for (tokens, window, padding), (loss, _, peak) in cases.items():
        print(f"{tokens:6}  {window or '-':>6}  {padding:8}  {loss:.6f}  {peak / 1e6:8.1f}")
    plain, longer, shorter, equal, unmasked, masked = cases.values()
    extra[length] = equal[2] - plain[2]
    for name, without, under in (("window = length", plain, equal), ("one padded token, masked", unmasked, masked)):
        print(f"{name}: {under[2] / without[2]:.2f} times the peak, gradients apart by {apart(without, under):.0e}")
    print()
    # what a good guess says of loss and gradients holds
    for a, b in ((plain, longer), (plain, equal), (unmasked, masked)):
        assert abs(a[0] - b[0]) < 1e-5 and apart(a, b) < 1e-5
    # and of memory for a longer window, for one token less, and for padding without a mask
    assert longer[2] == plain[2] == unmasked[2] and 0 < plain[2] - shorter[2] < 0.01 * plain[2]
    # but not for a window of the row's length, nor under a mask
    assert equal[2] > 1.25 * plain[2] and masked[2] == equal[2]
    assert extra[length] > 4 * LAYERS * length**2  # a mask of fp32 in every layer
growth = extra[2048] / extra[1024]
print(f"twice the tokens: {growth:.2f} times the additional bytes")
assert growth > 3.5
print("as described: masks that hide nothing double the peak at 2,048 tokens")
PY
