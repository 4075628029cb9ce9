#!/usr/bin/env bash
# transformers' Trainer trains another model when it evaluates at other steps, wherever anything drops out.
#
# A good guess: an evaluation only reads. Under one seed, eval_steps decides when a loss is seen, and no weight.
# What happens: each pass over a DataLoader begins with a draw from torch's global generator, for the seeds of its workers,
#   also with none (num_workers=0). Training passes begin once an epoch, those of an evaluation in between. Dropout draws from
#   the same generator, so from the first evaluation on every mask is another: LoRA's lora_dropout, attention's and the
#   classifier's. The order of the rows stays, as accelerate draws it from a generator of its own.
# Why it matters: runs that are compared under one seed share their masks only up to the first evaluation at which they
#   differ; after 20 steps their adapters are here two fifths as far apart as under other masks from the first step on. That
#   much of what pairing by seeds was to take out stays in. A run that is repeated with its evaluations switched off, to save
#   time, is another run. Without dropout nothing differs, so that one may have tried it and believe it.
# What to do: evaluate at the same steps in all that is compared; or set dropout to 0; or evaluate under
#   torch.random.fork_rng(), as shown: then the weights are those of a run without evaluations, to the bit.
# Where: transformers 5.23.0, trainer.py, Trainer.evaluate; torch 2.13.0, utils/data/dataloader.py, _BaseDataLoaderIter:
#   _base_seed is drawn by random_(generator=loader.generator), and None is the global one.
#
# Needs Python 3.11 to 3.13 and the package index; CPU only.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 peft==0.21.2 numpy==2.4.6
cd "$place"
cat >show.py <<'PY'
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments
from transformers.utils import logging

STEPS = 24


class Rows(torch.utils.data.Dataset):
    """Rows of random tokens."""

    def __init__(self, seed, number):
        self.ids = torch.randint(0, 64, (number, 16), generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


class Aside(Trainer):
    """A Trainer whose evaluations give back what they drew."""

    def evaluate(self, *args, **kwargs):
        with torch.random.fork_rng():
            return super().evaluate(*args, **kwargs)


def trained(dropout, eval_steps=None, kind=Trainer, masks=0):
    """Return the losses of all steps and the trained adapters as one vector.

    Args:
        dropout: Of LoRA.
        eval_steps: None: no evaluation.
        kind: The class of the Trainer.
        masks: How many numbers are drawn before the first step: other dropout, and the same start and order.
    """
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape))
    model = get_peft_model(base, LoraConfig(r=8, lora_dropout=dropout, target_modules=["q_proj", "v_proj"]))
    looks = {"eval_strategy": "steps", "eval_steps": eval_steps} if eval_steps else {}
    quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    settings = {"max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1, "seed": 1}
    arguments = TrainingArguments("out", **settings, **looks, **quiet)
    trainer = kind(model=model, args=arguments, train_dataset=Rows(1, 64), eval_dataset=Rows(2, 16))
    trainer.remove_callback(PrinterCallback)
    torch.manual_seed(1)
    torch.rand(masks)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def away(one, other):
    """Return the step of the first other loss, None for none, and how far the adapters are apart, relative to their norm."""
    first = next((step + 1 for step, (a, b) in enumerate(zip(one[0], other[0])) if a != b), None)
    return first, float((one[1] - other[1]).norm() / one[1].norm())


logging.set_verbosity_error()
print(*(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate", "peft")))
found = {}
for dropout in (0.0, 0.1):
    plain = trained(dropout)
    print(f"lora_dropout={dropout}, against a run without evaluations: first other loss, distance of the adapters")
    for name, how in {
        "evaluated every 8 steps": {"eval_steps": 8},
        "evaluated every 4 steps": {"eval_steps": 4},
        "every 4 steps, fork_rng": {"eval_steps": 4, "kind": Aside},
        "other masks throughout": {"masks": 1},
    }.items():
        found[dropout, name] = first, distance = away(plain, trained(dropout, **how))
        print(f"  {name:24} {f'step {first}' if first else 'none':8} {distance:.4f}")
for name in ("evaluated every 8 steps", "evaluated every 4 steps", "other masks throughout"):
    assert found[0.0, name] == (None, 0.0), "without dropout nothing depends on the generator"
assert found[0.1, "evaluated every 8 steps"][0] == 9 and found[0.1, "evaluated every 4 steps"][0] == 5
assert found[0.1, "evaluated every 4 steps"][1] > 0.3 * found[0.1, "other masks throughout"][1] > 0, "as far as other masks"
assert found[0.1, "every 4 steps, fork_rng"] == (None, 0.0), "evaluations that draw nothing change nothing"
print("as described: with dropout, evaluations change every mask that follows, and so the trained weights")
PY
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore show.py 2>errors || { cat errors >&2; exit 1; }
