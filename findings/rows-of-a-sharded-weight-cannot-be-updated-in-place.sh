#!/usr/bin/env bash
# W[0:2].add_(1) on a weight that FSDP2 shards by rows changes nothing, and raises nothing.
#
# A good guess: a slice of a DTensor is a view, as of any tensor, or it is refused.
# What happens: cutting along the sharded dimension gathers a copy, and the update is made to the copy. So do narrow, chunk,
#   split, W[0], copy_ into a slice and view(-1) cut up. Slices along the other dimension are views and work; with ONE rank
#   all of them work.
# Why it matters: optimizers that go through a large tensor in slices (to bound their temporary memory) leave every sliced
#   tensor where it is and train only what is small enough to be taken whole; so do edits of single rows (a new token's
#   embedding, a head that is zeroed). The loss still falls, by the rest. A test on one process sees nothing.
# What to do: update W.to_local() in slices, or the whole DTensor; compare what moved with what is trainable.
# Where: torch 2.13.0, distributed/tensor: slicing a sharded dimension redistributes to Replicate first.
#
# Needs Linux, Python 3.11 to 3.13 and the package index; CPU only, processes over gloo on the loopback interface.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
cd "$place"
cat >show.py <<'PY'
import os
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import init_device_mesh

ROWS, COLUMNS, STEPS = 8, 4, 10
WAYS = {  # how an update of numbers is written, and of how many
    "W.add_(1)": (lambda W: W.add_(1), 32),
    "W[:, 0:2].add_(1)": (lambda W: W[:, 0:2].add_(1), 16),
    "W[0:2].add_(1)": (lambda W: W[0:2].add_(1), 8),
    "W[0].add_(1)": (lambda W: W[0].add_(1), 4),
    "W.narrow(0, 0, 2).add_(1)": (lambda W: W.narrow(0, 0, 2).add_(1), 8),
    "for part in W.chunk(4): part.add_(1)": (lambda W: [part.add_(1) for part in W.chunk(4)], 32),
    "for part in W.split(2): part.add_(1)": (lambda W: [part.add_(1) for part in W.split(2)], 32),
    "for part in W.view(-1).split(8): part.add_(1)": (lambda W: [part.add_(1) for part in W.view(-1).split(8)], 32),
    "W[0:2].copy_(W[0:2] + 1)": (lambda W: W[0:2].copy_(W[0:2] + 1), 8),
}
WHOLE = ("W.add_(1)", "W[:, 0:2].add_(1)")


@torch.no_grad()
def stepped(parameters, in_slices, local):
    """Move each parameter against its gradient, ``in_slices`` of two rows where it is a matrix."""
    for p in parameters:
        w, g = (p.to_local(), p.grad.to_local()) if local else (p, p.grad)
        step = 2 if in_slices and p.ndim == 2 else len(w)
        for start in range(0, len(w), step):
            w[start : start + step].sub_(g[start : start + step], alpha=0.3) if step < len(w) else w.sub_(g, alpha=0.3)


def trained(mesh, rank, in_slices, local):
    """Return the last loss and which parameters moved."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(COLUMNS, 16), nn.Tanh(), nn.Linear(16, COLUMNS))
    fully_shard(model, mesh=mesh)
    before = {name: p.full_tensor().clone() for name, p in model.named_parameters()}
    x = torch.randn(64, COLUMNS, generator=torch.Generator().manual_seed(rank))
    for _ in range(STEPS):
        model.zero_grad()
        loss = (model(x) - x.flip(1)).square().mean()
        loss.backward()
        stepped(list(model.parameters()), in_slices, local)
    return float(loss.detach()), {name for name, p in model.named_parameters() if not torch.equal(p.full_tensor(), before[name])}


def work(rank, ranks):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{os.getcwd()}/store{ranks}", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    mesh = init_device_mesh("cpu", (ranks,))
    for name, (way, wanted) in WAYS.items():
        layer = nn.Linear(COLUMNS, ROWS, bias=False)
        nn.init.zeros_(layer.weight)
        fully_shard(layer, mesh=mesh)
        with torch.no_grad():
            way(layer.weight)
        changed = int((layer.weight.full_tensor() != 0).sum())
        if rank == 0:
            print(f"{ranks} rank{'s' * (ranks > 1):1} {name:47} changed {changed:2} of {wanted:2} numbers", flush=True)
        assert changed == (wanted if ranks == 1 or name in WHOLE else 0), (name, changed)
    for how, (in_slices, local) in {"whole": (False, False), "in row slices": (True, False), "local": (True, True)}.items():
        loss, moved = trained(mesh, rank, in_slices, local)
        if rank == 0:
            print(f"{ranks} rank{'s' * (ranks > 1):1} {STEPS} steps of SGD, {how:13}: {len(moved)} of 4 tensors moved, loss {loss:.3f}",
                  flush=True)
        stuck = ranks > 1 and how == "in row slices"
        assert moved == ({"0.bias", "2.bias"} if stuck else {"0.weight", "0.bias", "2.weight", "2.bias"}), (how, moved)
    dist.destroy_process_group()


if __name__ == "__main__":
    print("torch", torch.__version__)
    for ranks in (1, 2):
        mp.spawn(work, (ranks,), nprocs=ranks)
    print("\nas described: slices along the sharded rows are copies")
PY
OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error timeout 600 "$place/venv/bin/python" -W ignore show.py
