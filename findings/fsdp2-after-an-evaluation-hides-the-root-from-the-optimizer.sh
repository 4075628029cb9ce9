#!/usr/bin/env bash
# An optimizer built after an FSDP2 model was evaluated never trains embedding, final norm and head; nothing is said.
#
# A good guess: model.parameters() of a fully_shard model are its sharded parameters at any time between two steps.
# What happens: the root group is not resharded after a forward pass, as the backward that usually follows needs it at once.
#   After a forward without a backward it stays so, and model.parameters() gives, for what the root holds, plain whole
#   tensors that are put aside in the next step. An optimizer built then steps on those: no gradient ever arrives, no error either.
#   With one group a block and the rest in the root, that is embedding, final norm and head.
# Why it matters: "loss before training", then the optimizer, then training is a usual order. The blocks train and the loss
#   falls, less than it should. Whatever else reads parameters by name at that moment (freezing, restoring, decay groups)
#   takes hold of the same wrong objects.
# What to do: model.reshard() after each forward without a backward, or fully_shard(model, reshard_after_forward=True) for the
#   root too; or build the optimizer first. Assert that every parameter of the optimizer is a DTensor.
# Where: torch 2.13.0, distributed/fsdp/_fully_shard: reshard_after_forward=None means False for the root
#   (_fsdp_state.py, _lazy_init).
#
# Needs Linux, Python 3.11 to 3.13 and the package index; CPU only, processes over gloo on the loopback interface.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cd "$place"
cat >show.py <<'PY'
import os
from datetime import timedelta
from importlib.metadata import version

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

RANKS, STEPS = 2, 10
SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CURED = ("evaluation, reshard", "evaluation, root reshards")
ROOT = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def trained(ids, tied, how):
    """Return the last loss and the greatest movement of each parameter."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied))
    for block in model.model.layers:
        fully_shard(block)
    fully_shard(model, reshard_after_forward=True if how == "evaluation, root reshards" else None)
    before = {name: whole(p) for name, p in model.named_parameters()}
    if how != "no evaluation":
        with torch.no_grad():
            model(input_ids=ids)
    if how == "evaluation, reshard":
        model.reshard()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach()), {name: float((whole(p) - before[name]).abs().max()) for name, p in model.named_parameters()}


def work(rank):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{os.getcwd()}/store", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    ids = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(rank))
    for tied in (False, True):
        seen = {how: trained(ids, tied, how) for how in ("no evaluation", "evaluation", *CURED)}
        for how, (loss, moved) in seen.items():
            root = {name: moved[name] for name in moved if name in ROOT}
            still = {name for name in moved if moved[name] == 0.0}
            assert still == (set(root) if how == "evaluation" else set()), (how, still)
            if rank == 0:
                print(f"head {'tied' if tied else 'untied':6} before the optimizer: {how:25} loss {loss:.3f}, movement of "
                      + ", ".join(f"{name.split('.')[-2]} {value:.3f}" for name, value in root.items())
                      + f"; {len(moved) - len(still)} of {len(moved)} tensors moved", flush=True)
        assert all(seen[how] == seen["no evaluation"] for how in CURED)
        assert seen["evaluation"][0] > 1.2 * seen["no evaluation"][0]
    dist.destroy_process_group()


if __name__ == "__main__":
    print(*(f"{name} {version(name)}" for name in ("torch", "transformers")))
    mp.spawn(work, nprocs=RANKS)
    print("\nas described: what the root holds is never trained by an optimizer that was built after an evaluation")
PY
OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error timeout 600 "$place/venv/bin/python" -W ignore show.py
