#!/usr/bin/env bash
# With bitsandbytes 0.50.2, optim="galore_adamw_8bit" trains no matrix with fewer than 4,096 numbers in its subspace.
#
# A good guess: galore-torch's 8-bit optimizer is its fp32 one with moments in fewer bits, so that a step moves every
#   weight that has a gradient, by about the same; a small matrix keeps fp32 moments and is the more exact for it.
# What happens: GaLoreAdamW8bit hands its settings to bitsandbytes by position. Two of those that it means were
#   taken out of bitsandbytes, so its percentile_clipping = 100 arrives as max_unorm = 100, and block_wise = True as
#   skip_zeros = True. max_unorm limits an update to 100 norms of the parameter, and is applied where the moments are in
#   fp32: below 4,096 numbers. A projected matrix was set to zero before, to receive the update of its subspace:
#   0 norms are allowed, and nothing of the gradient arrives, at any learning rate. Its weight decay does (0.01 of the
#   class's own, which the Trainer leaves as it is). Weights that are zero, as new biases are, never leave zero either.
#   Matrices above 4,096 numbers in the subspace are right. No warning; the loss still falls, as the rest is trained.
# Why it matters: at the rank 4 of GaLore's GLUE runs, RoBERTa-base's attention (768 x 768) has 3,072 numbers in the
#   subspace: query, key, value and attention output follow no gradient, nor do the classifier's and every other new
#   bias. The same run with galore_adamw trains them. A comparison of the two then says that 8 bits cost quality, and a
#   sweep over ranks has a cliff at 4,096 numbers.
# Where: galore_torch 1.0 adamw8bit.py, AdamW8bit.__init__; bitsandbytes 0.50.2 optim/optimizer.py, Optimizer2State, and
#   backends/cpu/ops.py, _compute_update_norm_and_scale. transformers 5.23.0 trainer_optimizer.py takes the class as it
#   is. On a CPU the class needs torch.cuda.synchronize replaced, which it calls at every step; CUDA was not run here.
#
# Needs Python 3.11 to 3.13 and the package index; CPU only.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6 accelerate==1.15.0 \
    galore-torch==1.0 bitsandbytes==0.50.2
cd "$place"
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 "$place/venv/bin/python" - <<'PY'
from importlib.metadata import version

import torch
from transformers import RobertaConfig, RobertaForSequenceClassification, Trainer, TrainingArguments
from transformers.utils import logging

logging.set_verbosity_error()
torch.cuda.synchronize = lambda device=None: None
STEPS, RATE = 5, 1e-3


def moved(optim, rank):
    """Return the largest change of each weight in a few steps, by name."""
    torch.manual_seed(0)
    config = RobertaConfig(num_hidden_layers=1, vocab_size=500, max_position_embeddings=40)  # the rest: RoBERTa-base
    model = RobertaForSequenceClassification(config).train()
    args = TrainingArguments(
        output_dir="out", use_cpu=True, report_to=[], learning_rate=RATE, lr_scheduler_type="constant", optim=optim,
        optim_target_modules=["attention", "intermediate", "output"],
        optim_args=f"rank={rank}, update_proj_gap=500, scale=4",
    )
    optimizer = Trainer(model=model, args=args).create_optimizer()
    decay = optimizer.param_groups[-1]["weight_decay"]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.randint(5, 500, (8, 16))
    for _ in range(STEPS):
        model(input_ids=ids, labels=torch.arange(8) % 2).loss.backward()
        assert all(p.grad.any() for name, p in model.named_parameters() if name in SHOWN)
        optimizer.step()
        optimizer.zero_grad()
    by_decay = {name: (w * (1 - (1 - RATE * decay) ** STEPS)).abs().max().item() for name, w in before.items()}
    return {name: (p.detach() - before[name]).abs().max().item() for name, p in model.named_parameters()}, by_decay


LAYER = "roberta.encoder.layer.0."
SHOWN = {
    LAYER + "attention.self.query.weight": "768 x 768",
    LAYER + "attention.self.value.weight": "768 x 768",
    LAYER + "attention.output.dense.weight": "768 x 768",
    LAYER + "intermediate.dense.weight": "3072 x 768",
    LAYER + "attention.self.value.bias": "768, zero at first",
    "classifier.dense.bias": "768, zero at first",
    "classifier.dense.weight": "768 x 768, not projected",
}
print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "galore-torch", "bitsandbytes")))
seen = {}
for rank in (4, 8):
    print(f"\nrank {rank}: numbers in the subspace of 768 x 768: {768 * rank}; largest change in {STEPS} steps")
    for optim in ("galore_adamw", "galore_adamw_8bit"):
        seen[optim, rank], by_decay = moved(optim, rank)
    for name, what in SHOWN.items():
        both = [seen[optim, rank][name] for optim in ("galore_adamw", "galore_adamw_8bit")]
        print(f"  {name.removeprefix(LAYER):30} {what:25} galore_adamw {both[0]:.1e}   galore_adamw_8bit {both[1]:.1e}")

square = [name for name, what in SHOWN.items() if what == "768 x 768"]
zero = [name for name, what in SHOWN.items() if "zero" in what]
plain, in_8_bits = seen["galore_adamw", 4], seen["galore_adamw_8bit", 4]
assert all(plain[name] > 1e-4 for name in SHOWN)
assert all(in_8_bits[name] == 0.0 for name in zero)
assert all(abs(in_8_bits[name] / by_decay[name] - 1) < 0.05 for name in square)
print(f"\nat rank 4 the squares moved by their weight decay alone: {max(by_decay[name] for name in square):.1e}")
assert in_8_bits["classifier.dense.weight"] > 1e-4 and in_8_bits[LAYER + "intermediate.dense.weight"] > 1e-4
# at twice the rank the matrices are above 4,096 and move as they should; biases at zero still do not
plain, in_8_bits = seen["galore_adamw", 8], seen["galore_adamw_8bit", 8]
assert all(0.5 < in_8_bits[name] / plain[name] < 2 for name in square)
assert all(in_8_bits[name] == 0.0 for name in zero)
print("as described: below 4,096 numbers in the subspace no gradient is followed, and nothing is said")
PY
