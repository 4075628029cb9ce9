#!/usr/bin/env bash
# Under dynamic NTK scaling a row's log-likelihood depends on the rows that the model saw before it.
#
# A good guess: rope_type "dynamic" scales the rotation by the length of what is in front of it; a row that is scored
#   alone, without a cache of keys, has one log-likelihood, whatever was scored earlier. (That rows of one batch share
#   the longest's scaling is the known half.)
# What happens: the module keeps the frequencies of the longest row it has met and takes them back only for a row that
#   is shorter than the original length, strictly. Between the two every row is rotated as the longest one before it
#   was, in batches of one and after any time: the model has a state that no checkpoint, eval() or use_cache=False
#   touches. A row of exactly the original length, which needs no scaling, gets it too; one token less and it does not.
# Why it matters: harnesses score the longest rows first (lm-eval's HFLM sorts by length, longest first), so all rows
#   above the original length are rotated for the longest of the task, the same rows in file order are not, a --limit
#   changes the scores of the rows that stay, and a training loop's loss depends on the shuffle. A held-out loss read
#   before and after training can differ without a change of weights.
# Where: transformers 5.23.0, modeling_rope_utils.py, dynamic_rope_update: dynamic_frequency_update (growth only when
#   seq_len > max_seq_len_cached; reset only when seq_len < original_max_seq_len). Reset was added for short rows after
#   huggingface/transformers issue 25306. longrope has no such state: it chooses by the present batch alone.
# What to do: score such a model one row at a time and set the module back before each, or give the scaling a fixed
#   factor ("linear", "yarn").
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
from transformers import AutoModelForCausalLM, LlamaConfig

ORIGINAL = 64
LENGTHS = (24, 63, 64, 80, 96, 160, 240)


def fresh(kind):
    """Return one and the same model, new, with a kind of rotation."""
    torch.manual_seed(2)
    scaling = {"rope_type": kind, "rope_theta": 10000.0}
    if kind != "default":
        scaling["factor"] = 4.0
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=ORIGINAL,
        initializer_range=0.25,
        rope_parameters=scaling,
    )
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def score(model, row):
    """Return the log-likelihood of a row, in a batch of one, without a cache."""
    logits = model(input_ids=row[None], use_cache=False).logits[0, :-1].double()
    return logits.log_softmax(-1).gather(-1, row[1:, None]).sum().item()


source = torch.Generator().manual_seed(7)
rows = {length: torch.randint(3, 96, (length,), generator=source) for length in LENGTHS}
print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers")))
print(f"Llama of {ORIGINAL} positions, fp32, rows one by one; log-likelihoods in nats\n")
changed = {}
for kind in ("default", "linear", "dynamic"):
    alone = {length: score(fresh(kind), row) for length, row in rows.items()}
    model = fresh(kind)
    shortest_first = {length: score(model, rows[length]) for length in LENGTHS}
    model = fresh(kind)
    longest_first = {length: score(model, rows[length]) for length in reversed(LENGTHS)}
    print(f"{kind}\ntokens   by a new model   shortest first   longest first")
    for length in LENGTHS:
        print(f"{length:6}   {alone[length]:14.3f}   {shortest_first[length]:14.3f}   {longest_first[length]:13.3f}")
    print()
    assert shortest_first == alone  # what a good guess says holds while rows only grow
    changed[kind] = [length for length in LENGTHS if abs(longest_first[length] - alone[length]) > 1e-3]
print(f"changed by what was scored before: {changed}")
assert changed["default"] == changed["linear"] == []
assert changed["dynamic"] == [64, 80, 96, 160]  # not the longest, and not what is shorter than 64
print("as described: between the original length and the longest row so far, the order decides the score")
PY
