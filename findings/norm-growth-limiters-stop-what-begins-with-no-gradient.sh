#!/usr/bin/env bash
# Under APOLLO a matrix whose gradient is zero in one step stands still for over a thousand steps: in a block that
# LLaMA Pro adds, five matrices of seven, from the first step on.
#
# A good guess: a step without a gradient is a step lost. AdamW and GaLore move on at the next one.
# What happens: the norm-growth limiter divides each update so that its norm is at most 1.01 times the sum of the last
#   one and 1e-8. After an update of zero the next norm is 1.01e-8, then 2.03e-8, and so on: 1,388 steps to a norm of
#   1, 1,851 to 100. The loss falls meanwhile, by what else is trained, and nothing is said.
# Why it matters: gradients of exactly zero are what function-preserving initialisation makes. LLaMA Pro (arXiv
#   2401.02415; llama_pro.py of LLaMA-Factory, which has APOLLO too) adds copies of blocks whose o_proj and down_proj
#   are zero, so that in the first step q_proj, k_proj, v_proj, gate_proj and up_proj of the new blocks, which are all
#   that is trained, get none. A fine-tuning run of a thousand steps then trains two matrices of seven, and a
#   comparison of optimizers measures that. An initialisation of 1e-3 in their place trains all of them. Fira has the
#   same limiter on what it adds to GaLore's update: its matrices move, by GaLore's part alone.
# What to do: begin with small numbers in the place of zeros, take a first step with another optimizer, or
#   disable_nl=True (apollo-torch).
# Where: apollo_torch 1.0.3 apollo.py, APOLLOAdamW.step, state["scaled_grad"]; fira 1.0.2 fira_adamw.py, AdamW.step,
#   state["scaling_grad"]. transformers 5.23.0 trainer_optimizer.py gives optim="apollo_adamw" the former.
#
# Needs Python 3.11 to 3.13 and the package index; CPU only.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6 \
    apollo-torch==1.0.3 fira==1.0.2 galore-torch==1.0 bitsandbytes==0.50.2
cd "$place"
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 "$place/venv/bin/python" - <<'PY'
from importlib.metadata import version

import torch
from apollo_torch import APOLLOAdamW
from fira import FiraAdamW
from galore_torch import GaLoreAdamW
from transformers import LlamaConfig, LlamaForCausalLM

STEPS, NEW = 1000, 2
SILENT = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=32, tie_word_embeddings=False,
)


def grouped(optimizer, **low_rank):
    """Return what builds an optimizer of a block's matrices at a low rank, and of its norms as they are."""
    low_rank |= {"rank": 8, "update_proj_gap": 200, "proj_type": "std"}
    return lambda matrices, norms: optimizer([{"params": norms}, {"params": matrices, **low_rank}], lr=1e-3)


APOLLO = {"scale": 1.0, "proj": "random", "scale_type": "channel"}
WAYS = {
    "torch AdamW": lambda matrices, norms: torch.optim.AdamW(matrices + norms, lr=1e-3, weight_decay=0.0),
    "GaLore": grouped(lambda groups, lr: GaLoreAdamW(groups, lr=lr, no_deprecation_warning=True), scale=1.0),
    "Fira": grouped(lambda groups, lr: FiraAdamW(groups, lr=lr, no_deprecation_warning=True), alpha=1.0),
    "APOLLO": grouped(lambda groups, lr: APOLLOAdamW(groups, lr=lr), **APOLLO),
    "APOLLO, no limiter": grouped(lambda groups, lr: APOLLOAdamW(groups, lr=lr, disable_nl=True), **APOLLO),
}


def expanded(start):
    """Return a model whose last block is new: o_proj and down_proj of scale ``start``, zero for an identity."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).requires_grad_(False)
    block = model.model.layers[NEW].requires_grad_(True)
    with torch.no_grad():
        for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
            weight.copy_(start * torch.randn(weight.shape))
    return model, block


def trained(way, start):
    """Return the root mean square change of each matrix of the new block, in learning rates, and the last loss."""
    model, block = expanded(start)
    named = dict(block.named_parameters())
    matrices, norms = ([p for p in named.values() if (p.ndim == 2) == wanted] for wanted in (True, False))
    optimizer, before = WAYS[way](matrices, norms), {name: p.detach().clone() for name, p in named.items()}
    generator = torch.Generator().manual_seed(1)
    rows, losses = torch.randint(0, 64, (64, 17), generator=generator), []
    for step in range(STEPS):
        ids = rows[torch.randint(0, 64, (4,), generator=generator)]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        if step == 0 and start == 0.0:
            empty = {name.split(".")[1] for name, p in named.items() if p.ndim == 2 and not p.grad.any()}
            assert empty == set(SILENT), empty
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    moved = {
        name.split(".")[1]: ((p.detach() - before[name]).square().mean().sqrt() / 1e-3).item()
        for name, p in named.items()
        if p.ndim == 2
    }
    norms_kept = [optimizer.state[p].get("scaled_grad") for p in matrices]
    return moved, sum(losses[-50:]) / 50, norms_kept


LIBRARIES = ("torch", "transformers", "apollo-torch", "fira", "galore-torch")
print(", ".join(f"{name} {version(name)}" for name in LIBRARIES))
print(f"\n{STEPS} steps of the new block alone; change of each matrix, root mean square, in learning rates")
found = {}
for start in (0.0, 1e-3):
    print(f"\no_proj and down_proj begin with {'zeros' if start == 0.0 else f'normal numbers of scale {start:g}'}")
    for way in WAYS:
        moved, loss, _ = found[way, start] = trained(way, start)
        told = "  ".join(f"{name} {change:8.5f}" for name, change in moved.items())
        print(f"  {way:19} {told}  loss {loss:.3f}")


def least(way, start):
    return min(found[way, start][0][name] for name in SILENT)


def most(way, start):
    return max(found[way, start][0][name] for name in SILENT)


# a good guess holds of the others, whatever the first gradient
for way in ("torch AdamW", "GaLore", "APOLLO, no limiter"):
    assert least(way, 0.0) > 0.5 * least(way, 1e-3) > 1.0
assert least("Fira", 0.0) > 1.0
assert least("APOLLO", 1e-3) > 1.0
# and fails of APOLLO where it was zero
assert most("APOLLO", 0.0) < 0.02 < least("APOLLO", 1e-3) / 50
assert found["APOLLO", 0.0][0]["o_proj"] > 1.0 and found["APOLLO", 0.0][0]["down_proj"] > 1.0
# the norms are those of growth from zero: n <- 1.01 (n + 1e-8), as long as that is what limits
predicted, steps = 0.0, 0
while predicted < 1.0:
    predicted, steps = 1.01 * (predicted + 1e-8), steps + 1
    at_the_end = predicted if steps <= STEPS - 1 else at_the_end
print(f"\nfrom zero to a norm of 1 it takes {steps} steps; after {STEPS - 1} it is {at_the_end:.3e}, in the states")
kept = found["APOLLO", 0.0][2]
norms = dict(zip(found["APOLLO", 0.0][0], (norm.item() for norm in kept), strict=True))
print("  " + "  ".join(f"{name} {norms[name]:.3e}" for name in SILENT))
assert all(abs(norms[name] / at_the_end - 1) < 0.05 for name in SILENT)
print("\nas described: one gradient of zero, and a matrix stands still for longer than most fine-tuning lasts")
PY
