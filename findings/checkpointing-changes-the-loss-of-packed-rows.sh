#!/usr/bin/env bash
# Gradient checkpointing, and train() or eval(), decide whether the documents of a packed row see each other.
#
# A good guess: transformers reads the borders of a packed row from position_ids that begin again at 0 (5.x builds the
#   block-diagonal mask for sdpa and eager itself). use_cache keeps keys and values for later and changes no logits;
#   gradient checkpointing changes memory and time and no loss; without dropout train() and eval() are the same
#   function.
# What happens: borders are looked for only where there is no cache object, and a forward pass makes an empty one
#   whenever config.use_cache is true, which it is by default, in training too. So model(input_ids, position_ids) lets
#   each document read those before it, without a warning. Checkpointing in train() sets use_cache=False, and then the
#   borders count. The same weights and the same batch have two losses: one while training with checkpointing; another
#   without it, or in eval(), where checkpointing is off and the cache is back. (An attention_mask of ones hides the
#   borders in every case; that one is known upstream: huggingface/transformers pull request 46634.)
# Why it matters: a held-out loss of packed rows in a loop of one's own is not the loss that was trained; "out of
#   memory, so checkpointing on" trains on other numbers; two methods of which one needs checkpointing are not
#   compared alike. transformers' Trainer sets config.use_cache from its arguments (False), so it does not meet this;
#   plain loops do.
# Where: transformers 5.23.0, masking_utils.py, _preprocess_mask_arguments (past_key_values is None);
#   models/llama/modeling_llama.py, LlamaModel.forward (DynamicCache before create_causal_mask); utils/generic.py,
#   merge_with_config_defaults (use_cache under gradient checkpointing); trainer.py, Trainer.__init__
#   (config.use_cache).
#
# Needs Python 3.11 to 3.13 and the package index; CPU only.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cd "$place"
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 "$place/venv/bin/python" - <<'PY'
import warnings
from importlib.metadata import version

import torch
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, MistralConfig, Qwen2Config

warnings.simplefilter("ignore")
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # as large as trained weights make attention matter
    "pad_token_id": 0,
}
FIRST, SECOND = 20, 12
generator = torch.Generator().manual_seed(3)
document, other, last = (torch.randint(3, 64, (1, n), generator=generator) for n in (FIRST, FIRST, SECOND))
positions = torch.cat([torch.arange(FIRST), torch.arange(SECOND)])[None]


def loss(model, before, **settings):
    """Return the loss of the second document alone, packed behind ``before``."""
    row = torch.cat([before, last], 1)
    labels = row.clone()
    labels[:, : FIRST + 1] = -100  # the first token of a document has no prediction
    return model(input_ids=row, position_ids=positions, labels=labels, **settings).loss


def gradient(value, model):
    model.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers")))
print("loss of the second document of a packed row, nats, behind one first document and behind another")
ones = torch.ones(1, FIRST + SECOND, dtype=torch.long)
for config_class in (LlamaConfig, MistralConfig, Qwen2Config, GemmaConfig):
    for attention in ("sdpa", "eager"):
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config_class(**SHAPE), attn_implementation=attention)
        assert model.config.use_cache  # the default
        alone = model(input_ids=last, labels=last, use_cache=False).loss.item()
        print(f"\n{config_class.__name__}, {attention}: by itself {alone:.5f}")
        found, gradients = {}, {}
        for mode in ("train", "eval"):
            for checkpointing in (False, True):
                model.train(mode == "train")
                model.gradient_checkpointing_enable() if checkpointing else model.gradient_checkpointing_disable()
                for name, settings in (
                    ("as it comes", {}),
                    ("use_cache=False", {"use_cache": False}),
                    ("use_cache=False, a mask of ones", {"use_cache": False, "attention_mask": ones}),
                ):
                    values = [loss(model, before, **settings) for before in (document, other)]
                    seen = tuple(value.item() for value in values)
                    found[mode, checkpointing, name] = seen
                    gradients[mode, checkpointing, name] = gradient(values[0], model)
                    says = "the first document is read" if abs(seen[0] - seen[1]) > 1e-3 else "borders kept"
                    where = f"{mode}, checkpointing {'on' if checkpointing else 'off'}, {name}"
                    print(f"  {where:58} {seen[0]:.5f} {seen[1]:.5f}   {says}")
        for (mode, checkpointing, name), seen in found.items():
            kept = name == "use_cache=False" or (name == "as it comes" and mode == "train" and checkpointing)
            if kept:  # a good guess says so of the first two of each, whatever mode and checkpointing
                assert max(abs(value - alone) for value in seen) < 1e-4
            else:
                assert abs(seen[0] - seen[1]) > 1e-2 and abs(seen[0] - alone) > 1e-2
        off, on = gradients["train", False, "as it comes"], gradients["train", True, "as it comes"]
        apart = ((off - on).norm() / on.norm()).item()
        print(f"  gradients with checkpointing off and on differ by {apart:.0%} of their norm")
        assert apart > 0.1
        off, on = gradients["train", False, "use_cache=False"], gradients["train", True, "use_cache=False"]
        assert ((off - on).norm() / on.norm()).item() < 1e-5
print("\nas described: checkpointing and eval() change the loss of packed rows, unless use_cache=False is passed")
PY
