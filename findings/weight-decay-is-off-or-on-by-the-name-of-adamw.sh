#!/usr/bin/env bash
# A checkpoint in bf16 under transformers' Trainer: weight_decay=1.0 changes no bit with optim="adamw_torch", and all with
# "adamw_torch_fused".
#
# A good guess: from_pretrained without a dtype trains in fp32, as it long did; and adamw_torch and adamw_torch_fused are
#   one optimizer, so that weight_decay means the same under both.
# What happens: since transformers 5 the default is dtype="auto", so a bf16 checkpoint becomes a bf16 model with bf16
#   optimizer state, and no fp32 master is kept (bf16=True adds autocast and keeps none either). The plain and foreach
#   AdamW of torch decay by param.mul_(1 - lr * weight_decay): a bf16 number of 8 significant bits times 1 - d is rounded
#   back to itself whenever d <= 2^-9, about 0.002. At a learning rate of 2e-4 that is every weight_decay up to 9.7, at the
#   Trainer's default of 5e-5 up to 39: runs with 0, 0.1 and 1.0 end with the same weights, bit for bit. The fused kernel
#   computes decay and update in fp32 and rounds once, so that decay acts, through which way the sum is rounded.
# Why it matters: a sweep over weight decay compares nothing with one optimizer name and something with the other, which
#   is the default; "we used weight decay 0.1" is true of neither the weights nor the comparison. LoRA keeps its adapters
#   in fp32 (peft), so that there the same setting decays: a difference between LoRA and full fine-tuning that no method made.
# What to do: pass dtype=torch.float32 to from_pretrained (or keep fp32 masters) where decay is to mean something, and look
#   at what from_pretrained returned: model.dtype.
# Where: transformers 5.23.0, modeling_utils.py, from_pretrained (dtype "auto" where none is given); training_args.py,
#   default_optim. torch 2.13.0, torch/optim/adam.py, _single_tensor_adam and _multi_tensor_adam;
#   aten/src/ATen/native/cpu/FusedAdamKernel.cpp, adam_math (CUDA was not run here). That decay is lost in bf16 is known
#   of other trainers (Nerogar/OneTrainer issue 996).
#
# Needs Python 3.11 to 3.13 and the package index; CPU only.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
cd "$place"
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_VERBOSITY=error "$place/venv/bin/python" - <<'PY'
from importlib.metadata import version

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PrinterCallback, Trainer, TrainingArguments

STEPS, RATE = 100, 2e-4
torch.manual_seed(0)
AutoModelForCausalLM.from_config(
    LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
    )
).to(torch.bfloat16).save_pretrained("checkpoint")
source = torch.Generator().manual_seed(1)
rows = []
for _ in range(64):
    ids = torch.randint(0, 256, (32,), generator=source)
    rows.append({"input_ids": ids, "labels": ids})


def trained(optim, decay, **how):
    """Return the precision of the model and its matrices after training, as one vector."""
    model = AutoModelForCausalLM.from_pretrained("checkpoint", **how)
    arguments = TrainingArguments(
        output_dir="out",
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=decay,
        optim=optim,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    weights = [parameter.detach().float().flatten() for parameter in model.parameters() if parameter.ndim == 2]
    return model.dtype, torch.cat(weights)


names = ("torch", "transformers", "accelerate")
print(", ".join(f"{name} {version(name)}" for name in names))
print(f"a bf16 checkpoint, {STEPS} steps at {RATE:g}; norm of all matrices after training\n")
print("from_pretrained(dtype)  model     optim               decay 0   decay 0.1   decay 1.0   0 and 1.0 equal to the bit")
for how in ({}, {"dtype": torch.float32}):
    for optim in ("adamw_torch", "adamw_torch_fused"):
        dtype, none = trained(optim, 0.0, **how)
        _, some = trained(optim, 0.1, **how)
        _, much = trained(optim, 1.0, **how)
        equal = torch.equal(none, much)
        said = str(how.get("dtype", "not given")).removeprefix("torch.")
        norms = "   ".join(f"{one.norm().item():9.5f}" for one in (none, some, much))
        print(f"{said:22}  {str(dtype).removeprefix('torch.'):8}  {optim:17}  {norms}   {'yes' if equal else 'no'}")
        assert dtype == (torch.float32 if how else torch.bfloat16)
        if not how and optim == "adamw_torch":
            assert equal and torch.equal(none, some)
        else:  # a decay of 1.0 takes 2 % off what is only decayed
            assert not torch.equal(none, some)
            assert 0.005 < 1 - (much.norm() / none.norm()).item() < 0.03
print("\nas described: under adamw_torch a bf16 model is not decayed at all")
PY
