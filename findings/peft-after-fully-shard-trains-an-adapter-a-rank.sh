#!/usr/bin/env bash
# peft's get_peft_model on a model already under fully_shard trains one adapter a rank: gradients are never averaged.
#
# A good guess: adapters put into a sharded model are sharded with it, or an error says that they cannot be.
# What happens: fully_shard takes hold of the parameters that exist when it is called. Adapters added later are plain tensors,
#   their gradients stay on their rank, and each rank trains its own from its own rows. No error, and no warning that the
#   right order does not give as well.
# Why it matters: what rank 0 saves has seen 1/N of the data at 1/N of the batch, while every rank computes with other weights
#   than the others. The losses look well.
# What to do: first peft, then fully_shard on the blocks and the base model: to the bit what one process does, here. On a
#   model that was loaded in shards, fully_shard each module that peft added. Compare a checksum of the adapters over ranks.
# Where: torch 2.13.0, distributed/fsdp/_fully_shard (parameters are taken at the call); peft 0.21.2, mapping_func.py.
#
# Needs Linux, Python 3.11 to 3.13 and the package index; CPU only, processes over gloo on the loopback interface.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6
cd "$place"
cat >show.py <<'PY'
import os
import warnings
from datetime import timedelta
from importlib.metadata import version

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

RANKS, STEPS = 2, 10
SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def sharded(model):
    for block in model.model.layers:
        fully_shard(block)
    fully_shard(model)


def trained(data, rank, how):
    """Return the adapters as one vector, how many tensors of them are sharded, and the warnings."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.manual_seed(0)
        base = LlamaForCausalLM(LlamaConfig(**SHAPE))
        if how == "fully_shard, peft":
            sharded(base)
        torch.manual_seed(1)  # the same first values on every rank
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        if how == "peft, fully_shard":
            sharded(base)
        adapters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(adapters, lr=1e-2)
        for rows in data:
            for mine in rows if how == "one process" else rows[rank : rank + 1]:
                loss = model(input_ids=mine, labels=mine).loss
                (loss / RANKS if how == "one process" else loss).backward()
            optimizer.step()
            optimizer.zero_grad()
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in adapters]
    vector = torch.cat([p.detach().flatten() for p in whole])
    return vector, sum(isinstance(p, DTensor) for p in adapters), {str(one.message) for one in said}


def work(rank):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{os.getcwd()}/store", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    data = torch.randint(0, 64, (STEPS, RANKS, 2, 16), generator=torch.Generator().manual_seed(5))
    alone, _, _ = trained(data, rank, "one process")
    warned = {}
    for how in ("peft, fully_shard", "fully_shard, peft"):
        vector, num_sharded, warned[how] = trained(data, rank, how)
        both = [torch.empty_like(vector) for _ in range(RANKS)]
        dist.all_gather(both, vector)
        apart = float((both[0] - both[1]).norm() / both[0].norm())
        off = float((vector - alone).norm() / alone.norm())
        if rank == 0:
            print(f"{how:18} {num_sharded} of 8 adapter tensors sharded; rank 1 from rank 0: {apart:.3f}; rank 0 from one "
                  f"process with all rows: {off:.1e} (relative, after {STEPS} steps)", flush=True)
        if how == "peft, fully_shard":
            assert (num_sharded, apart) == (8, 0.0) and off < 1e-5, (num_sharded, apart, off)
        else:
            assert num_sharded == 0 and apart > 0.1 and off > 0.1, (num_sharded, apart, off)
    assert not warned["fully_shard, peft"] - warned["peft, fully_shard"], warned
    dist.destroy_process_group()


if __name__ == "__main__":
    print(*(f"{name} {version(name)}" for name in ("torch", "transformers", "peft")))
    mp.spawn(work, nprocs=RANKS)
    print("\nas described: adapters that come after fully_shard drift apart, rank by rank, and nothing is said")
PY
OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error timeout 600 "$place/venv/bin/python" -W ignore show.py
