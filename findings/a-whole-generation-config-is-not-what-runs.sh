#!/usr/bin/env bash
# generate(generation_config=...) runs with the checkpoint's own suppressed, forced and banned tokens all the same.
#
# A good guess: a GenerationConfig of one's own, handed over whole, is what runs: the decoding of a protocol, equal for
#   every model. What it leaves at None is off, as None is off when it is passed as a keyword.
# What happens: every field of it that is None is filled from model.generation_config, which from_pretrained read from
#   the checkpoint's generation_config.json. Fields whose "off" is None (suppress_tokens, begin_suppress_tokens,
#   bad_words_ids, sequence_bias, forced_eos_token_id, exponential_decay_length_penalty, max_time, stop_strings) thus
#   cannot be switched off in a config at all: a None that was written there is the same as none. As a keyword of the
#   same call it does switch them off, but keywords beside a config are announced as deprecated. Fields with a number
#   for "off" (num_beams=1, repetition_penalty=1.0) hold in both ways when they are written, and are the checkpoint's
#   when they are not.
# Why it matters: greedy answers of two models under "the same" config are decoded by two rules, and so are a base and
#   a fine-tuned model when one of the two folders lost its generation_config.json (a merged adapter, a converted or
#   hand-saved checkpoint). MT-Bench, GSM8K and judge scores move without a word.
# What to do: set model.generation_config = GenerationConfig() first, then hand over yours; or pass every field as a
#   keyword and no config.
# Where: transformers 5.23.0, generation/utils.py, _prepare_generation_config: update(**self.generation_config.to_dict(),
#   defaults_only=True) after the given config was copied, keywords last.
#
# Needs Python 3.11 to 3.13 and the package index; CPU only.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
cd "$place"
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_VERBOSITY=error "$place/venv/bin/python" - <<'PY'
from importlib.metadata import version

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

NEW_TOKENS, END = 6, 3
torch.manual_seed(0)
first = AutoModelForCausalLM.from_config(
    LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
)
PROMPT = torch.tensor([[5, 6, 7, 8]])


@torch.no_grad()
def by_hand():
    """Return the greedy continuation, one forward pass a token."""
    ids = PROMPT
    for _ in range(NEW_TOKENS):
        ids = torch.cat([ids, first(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=-1)
    return ids[0, PROMPT.shape[1] :].tolist()


GREEDY = by_hand()
FIELDS = {  # what a checkpoint may bring, and what switches it off
    "suppress_tokens": ([GREEDY[0]], None),
    "begin_suppress_tokens": ([GREEDY[0]], None),
    "bad_words_ids": ([[GREEDY[0]]], None),
    "sequence_bias": ([[[GREEDY[0]], -50.0]], None),
    "forced_eos_token_id": (11, None),
    "exponential_decay_length_penalty": ([1, 50.0], None),
    "max_time": (1e-9, None),
    "num_beams": (4, 1),
    "repetition_penalty": (50.0, 1.0),
    "no_repeat_ngram_size": (1, 0),
}
PROMPT_OF = {"repetition_penalty": [GREEDY[0]], "no_repeat_ngram_size": [GREEDY[0]]}


def answer(model, prompt, **how):
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), **how)
    return out[0, prompt.shape[1] :].tolist()


COMMON = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": END, "pad_token_id": 0}
print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers")))
print(f"greedy by hand: {GREEDY}; does the checkpoint's field still act?\n")
print("field in generation_config.json     in a config: unset, off; as a keyword: off; after a reset: unset   what ran unset")
for field, (brought, off) in FIELDS.items():
    first.save_pretrained("checkpoint")
    GenerationConfig(eos_token_id=END, **{field: brought}).save_pretrained("checkpoint")
    model = AutoModelForCausalLM.from_pretrained("checkpoint").eval()
    prompt = torch.cat([torch.tensor([PROMPT_OF.get(field, [])], dtype=torch.long), PROMPT], dim=-1)
    plain = AutoModelForCausalLM.from_pretrained("checkpoint").eval()
    plain.generation_config = GenerationConfig()
    wanted = answer(plain, prompt, generation_config=GenerationConfig(**COMMON))
    if field not in PROMPT_OF:
        assert wanted == GREEDY
    unset = answer(model, prompt, generation_config=GenerationConfig(**COMMON))
    config = answer(model, prompt, generation_config=GenerationConfig(**COMMON, **{field: off}))
    keyword = answer(model, prompt, **COMMON, **{field: off})
    model.generation_config = GenerationConfig()
    reset = answer(model, prompt, generation_config=GenerationConfig(**COMMON))
    acts = [found != wanted for found in (unset, config, keyword, reset)]
    print(f"{field:34}  {'   '.join('acts' if one else 'no  ' for one in acts)}   {unset}")
    assert acts == [True, off is None, False, False], (field, acts)
print("\nas described: what is None in a config of one's own is the checkpoint's")
PY
