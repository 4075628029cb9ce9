#!/usr/bin/env bash
# accelerate's FSDP2 plugin on a CPU gives plain DistributedDataParallel: nothing is sharded, and no warning says so.
#
# A good guess: Accelerator(cpu=True, fsdp_plugin=...) shards over gloo processes, as torch's fully_shard does there, or says
#   that it cannot.
# What happens: the distributed type becomes MULTI_CPU, the plugin is left aside, and prepare() wraps the model in
#   DistributedDataParallel: no DTensor, no FSDPModule, every rank holds all. The same with ACCELERATE_USE_FSDP=true and
#   FSDP_VERSION=2 in the environment, as accelerate launch sets them.
# Why it matters: who tests a sharded recipe without a GPU, in CI for instance, tests something else, and it passes. Here a
#   recipe that on shards leaves three tensors untrained (an optimizer built after an evaluation) trains them all.
# What to do: assert isinstance(model, FSDPModule) after prepare(), or apply fully_shard yourself where CPUs are to test it.
# Where: accelerate 1.15.0, state.py: FSDP is set up for GPUs and other devices, not in the branch of MULTI_CPU.
#
# Needs Linux, Python 3.11 to 3.13 and the package index; CPU only, processes over gloo on the loopback interface.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
cd "$place"
cat >show.py <<'PY'
import logging
import os
import warnings
from datetime import timedelta
from importlib.metadata import version

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

RANKS, STEPS = 2, 3
SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


class Said(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def prepared(how):
    """Return a model made parallel, and what accelerate calls it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    if how == "fully_shard":
        for block in model.model.layers:
            fully_shard(block)
        fully_shard(model)
        return model, "-"
    if how == "accelerate, environment":
        os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", ACCELERATE_USE_CPU="true")
        accelerator = Accelerator()
    else:
        wrap = {"auto_wrap_policy": "transformer_based_wrap", "transformer_cls_names_to_wrap": ["LlamaDecoderLayer"]}
        accelerator = Accelerator(cpu=True, fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2, **wrap))
    return accelerator.prepare(model), accelerator.distributed_type.value


def work(rank, how):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    said = Said()
    logging.getLogger().addHandler(said)
    dist.init_process_group(
        "gloo", init_method=f"file://{os.getcwd()}/{how}", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        model, kind = prepared(how)
    lines = [*said.lines, *(str(one.message) for one in warned)]
    about = [line for line in lines if "fsdp" in line.lower() or "shard" in line.lower()]
    parameters = dict(model.named_parameters())
    held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters.values())
    num_dtensors = sum(isinstance(p, DTensor) for p in parameters.values())
    num_fsdp = sum(isinstance(module, FSDPModule) for module in model.modules())
    before = {name: whole(p) for name, p in parameters.items()}
    ids = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(rank))
    with torch.no_grad():
        model(input_ids=ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    moved = sum(not torch.equal(whole(p), before[name]) for name, p in model.named_parameters())
    if rank == 0:
        print(f"{how:23} type {kind:9} {type(model).__name__:23} {num_fsdp} FSDP modules, {num_dtensors:2} of {len(before)} "
              f"DTensors, {held} numbers held; {len(about)} warnings of sharding; the recipe trains {moved}", flush=True)
    if how == "fully_shard":
        assert (num_fsdp, num_dtensors, moved) == (3, 21, 18), (num_fsdp, num_dtensors, moved)
        assert held == sum(p.numel() for p in before.values()) // RANKS
    else:
        assert isinstance(model, torch.nn.parallel.DistributedDataParallel) and kind == "MULTI_CPU", (type(model), kind)
        assert (num_fsdp, num_dtensors, moved, about) == (0, 0, 21, []), (num_fsdp, num_dtensors, moved, about)
        assert held == sum(p.numel() for p in before.values())
    dist.destroy_process_group()


if __name__ == "__main__":
    print(*(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate")))
    for how in ("fully_shard", "accelerate, plugin", "accelerate, environment"):
        mp.spawn(work, (how,), nprocs=RANKS)
    print("\nas described: on a CPU the plugin shards nothing and says nothing")
PY
OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error timeout 600 "$place/venv/bin/python" -W ignore show.py
