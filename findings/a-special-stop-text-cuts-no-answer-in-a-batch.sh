#!/usr/bin/env bash
# In lm-eval's HFLM a stop text that is a special token, but not the end token, cuts answers of batch size 1 alone.
#
# A good guess: `until` cuts every answer at its stop text, as it does with words: what a row writes after it, while the
#   others of its batch go on, is thrown away. Greedy answers do not depend on the batch size.
# What happens: the answer is decoded without special tokens before it is cut at the stop text, which then is not there.
#   In a batch of one nothing came after it, so nothing is wrong. In a larger one whatever the row went on to write,
#   until the last row was done, becomes part of the answer: the next turn, a made-up question, another answer.
# Why it matters: "<|im_end|>" is among gsm8k's stop texts, "<|eot_id|>" and "<end_of_turn>" end the turns of chat
#   models whose end token is another (base checkpoints fine-tuned on a chat template; config and tokenizer of many
#   merges). Exact match on the last number takes the made-up question's, so a score falls with the batch size, and a
#   checkpoint that was scored at batch size 1 cannot be compared with one that was scored at "auto".
# Where: lm_eval 0.4.13, models/huggingface.py, generate_until: tok_decode(cont_toks) skips special tokens (default of
#   tok_decode), then postprocess_generated_text splits at the stop texts. transformers 5.23.0 ends a row by itself only
#   at an end token of the generation config.
# What to do: put the token among the end tokens (generation_config.eos_token_id = [end, turn end]), or score at batch
#   size 1.
#
# Needs Python 3.11 to 3.13 and the package index; CPU only.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 lm-eval==0.4.13 accelerate numpy==2.4.6
cd "$place"
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 "$place/venv/bin/python" - 2>/dev/null <<'PY'
import re
from importlib.metadata import version

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Two answers that a small model is taught to the letter: a short and a long one, both ended by a turn's end, after
# which a new turn would begin.
NEXT = ["user", "next", "question", "->", "9", "<turn>"] * 4
TAUGHT = {
    "ask-a ->": ["the", "answer", "is", "3", "<turn>", *NEXT],
    "ask-b ->": ["we", "add", "one", "and", "two", "and", "two", "the", "answer", "is", "5", "<turn>", *NEXT],
}
special = ["<pad>", "<end>", "<turn>"]
words = [*special, *sorted({w for p, a in TAUGHT.items() for w in (*p.split(), *a)} - set(special))]
raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=raw, pad_token="<pad>", eos_token="<end>", additional_special_tokens=["<turn>"]
)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=128, eos_token_id=1, pad_token_id=0, bos_token_id=None,
)  # fmt: skip
model = LlamaForCausalLM(config)
rows = [tokenizer(f"{prompt} {' '.join(answer)}")["input_ids"] for prompt, answer in TAUGHT.items()]
length = max(map(len, rows))
ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(200):
    model(input_ids=ids, labels=ids.masked_fill(ids == 0, -100)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.eval()
asked = {"until": ["<turn>"], "max_gen_toks": 32, "do_sample": False}


def answers(size):
    """Return the answers of both prompts at a batch size."""
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, max_length=128)
    return lm.generate_until([Instance("generate_until", {}, (p, dict(asked)), i) for i, p in enumerate(TAUGHT)], True)


def last_number(text):
    """Return what exact match on the last number compares."""
    return re.findall(r"\d+", text)[-1]


print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "lm_eval")))
print("greedy, stop text '<turn>', a special token beside the end token\n")
alone, together = answers(1), answers(2)
model.generation_config.eos_token_id = [1, 2]
mended = answers(2)
for title, found in (("batch size 1", alone), ("batch size 2", together), ("2, '<turn>' an end token too", mended)):
    print(title)
    for text in found:
        print(f"    {text!r}: the last number is {last_number(text)}")
assert [last_number(text) for text in alone] == ["3", "5"]
assert [last_number(text) for text in together] == ["9", "5"]
assert alone[0] == "the answer is 3" and together[0].startswith("the answer is 3 user next question -> 9")
assert together[1] == alone[1]  # the longest one's end is the batch's
assert mended == alone
print("\nas described: at batch size 2 the short answer goes on into turns that nobody asked for")
PY
