#!/usr/bin/env bash
# Under FSDP2 label_smoothing_factor makes transformers' Trainer teach a causal model the token it reads, not the next one.
#
# A good guess: label smoothing changes the loss by its epsilon, and sharding changes it not at all.
# What happens: with label_smoothing_factor > 0 the Trainer computes the loss itself, and shifts the labels by one only where
#   the class of the model is in its list of causal language models, by name. fully_shard gives the model a class of another
#   name, FSDPLlamaForCausalLM, which is not in the list: labels are not shifted, and each position is trained to repeat its
#   own token. Without smoothing the model computes its loss, and all is well. save_pretrained takes the prefix off again.
# Why it matters: the loss falls all the same, as copying is easily learnt, and the model is ruined: only scores or generated
#   text show it. One setting, harmless on one GPU and under DistributedDataParallel, decides.
# What to do: leave label_smoothing_factor at 0 under FSDP2, or smooth in a compute_loss_func that shifts the labels itself.
# Where: transformers 5.23.0, trainer.py, Trainer.compute_loss: _get_name() against MODEL_FOR_CAUSAL_LM_MAPPING_NAMES; models
#   loaded with distributed_config=DistributedConfig(fsdp_size=N). accelerate's FSDP2 calls the same fully_shard; not run
#   here, as it shards nothing on a CPU.
#
# Needs Linux, Python 3.11 to 3.13 and the package index; CPU only, processes over gloo on the loopback interface.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
cd "$place"
cat >show.py <<'PY'
import os
from datetime import timedelta
from importlib.metadata import version

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.distributed import DistributedConfig
from transformers.utils import logging

RANKS, VOCABULARY, LENGTH = 2, 32, 12
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


class Counting(torch.utils.data.Dataset):
    """Rows that count upwards: the next token is the last one and one."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        ids = (torch.arange(LENGTH) + index) % VOCABULARY
        return {"input_ids": ids, "labels": ids.clone()}


def trained(rank, sharded, smoothing):
    """Return the name of the model's class, the mean loss, and the shares of answers that are the next and the same token."""
    how = {"distributed_config": DistributedConfig(fsdp_size=RANKS)} if sharded else {}
    model = AutoModelForCausalLM.from_pretrained("checkpoint", dtype=torch.float32, **how)
    settings = {"max_steps": 30, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    quiet = {"report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    arguments = TrainingArguments(f"out{rank}", use_cpu=True, label_smoothing_factor=smoothing, **settings, **quiet)
    loss = Trainer(model=model, args=arguments, train_dataset=Counting()).train().training_loss
    ids = torch.stack([Counting()[index]["input_ids"] for index in range(8)])
    with torch.no_grad():
        answers = model.eval()(input_ids=ids).logits.argmax(-1)
    following, same = answers[:, :-1] == ids[:, 1:], answers == ids
    return type(model).__name__, loss, float(following.float().mean()), float(same.float().mean())


def work(rank):
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group(
        "gloo", init_method=f"file://{os.getcwd()}/store", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    if rank == 0:
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained("checkpoint")
    dist.barrier()
    for smoothing in (0.0, 0.1):
        for sharded in (False, True):
            name, loss, following, same = trained(rank, sharded, smoothing)
            if rank == 0:
                print(f"smoothing {smoothing}, {name:20} mean loss {loss:.3f}; answers: next token {following:4.0%}, the token "
                      f"itself {same:4.0%}", flush=True)
            copies = sharded and smoothing > 0
            assert (following < 0.1 and same > 0.9) if copies else (following > 0.9 and same < 0.1), (name, following, same)
    dist.destroy_process_group()


if __name__ == "__main__":
    print(*(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate")))
    mp.spawn(work, nprocs=RANKS)
    print("\nas described: label smoothing under FSDP2 trains on labels that are not shifted")
PY
OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error timeout 600 "$place/venv/bin/python" -W ignore show.py
