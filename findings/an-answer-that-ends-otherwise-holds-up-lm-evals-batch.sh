#!/usr/bin/env bash
# In lm-eval's HFLM a batch of answers ends early only when every row has written one and the same stop text.
#
# A good guess: a row is done once it has written any of its stop texts or the end token, and the batch once all rows
#   are; so a batch costs its longest answer.
# What happens: there is one criterion a stop text, and each ends the batch only when every row has written that text.
#   A row that ended by the end token, or by another stop text of the list, has not; so two answers of a few words that
#   end differently are written on to the limit (gsm8k: two stop texts beside the end token, 256 tokens). The rows that
#   are done write text that is thrown away. Texts are right; time is not.
# Why it matters: tokens a second and seconds a task hang on how a model ends its answers: a fine-tuned model that has
#   learnt the end token half of the time takes several times as long as one that always or never writes it, in the same
#   harness, at the same lengths. A batch size that is best for one checkpoint is the worst for the next one, and a
#   comparison of methods by evaluation time or a budget by tokens a second compares habits of ending.
# Where: lm_eval 0.4.13, models/utils_hf.py, MultiTokenEOSCriteria.__call__ returns one truth value for the batch
#   ("False not in self.done_tracker"), which transformers 5.23.0, generation/stopping_criteria.py,
#   StoppingCriteriaList.__call__, gives to all rows alike; the criterion of the end token alone is one by row.
# What to do: measure evaluation by what was asked, not by time; batch size 1 where answers are of unlike lengths; or a
#   backend that lets rows leave (vLLM).
#
# Needs Python 3.11 to 3.13 and the package index; CPU only.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 lm-eval==0.4.13 accelerate numpy==2.4.6
cd "$place"
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 "$place/venv/bin/python" - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Four answers of three words, which a small model is taught to the letter: two end by the text "Question:", one by
# "Q:", one by the end token. What would come after a stop text goes on without an end.
LIMIT, UNTIL = 120, ["Question:", "Q:"]
ON = ["more"] * 130
TAUGHT = {
    "ask-a ->": ["one", "two", "three", "Question:", *ON],
    "ask-b ->": ["two", "three", "one", "Question:", *ON],
    "ask-c ->": ["three", "one", "two", "Q:", *ON],
    "ask-d ->": ["two", "one", "three", "<end>"],
}
words = ["<pad>", "<end>", *sorted({w for p, a in TAUGHT.items() for w in (*p.split(), *a)} - {"<end>"})]
raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>")
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=256, eos_token_id=1, pad_token_id=0, bos_token_id=None,
)  # fmt: skip
model = LlamaForCausalLM(config)
rows = [tokenizer(f"{prompt} {' '.join(answer)}")["input_ids"] for prompt, answer in TAUGHT.items()]
length = max(map(len, rows))
ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(150):
    model(input_ids=ids, labels=ids.masked_fill(ids == 0, -100)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.eval()

passes = 0


def count(*_):
    global passes
    passes += 1


model.register_forward_hook(count)
asked = {"until": UNTIL, "max_gen_toks": LIMIT, "do_sample": False}


def answers(prompts, size):
    """Return what the prompts are answered with, and the forward passes that it took."""
    global passes
    passes = 0
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, max_length=256)
    texts = lm.generate_until([Instance("generate_until", {}, (p, dict(asked)), i) for i, p in enumerate(prompts)], True)
    return texts, passes


print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "lm_eval")))
print(f"every answer has three words; limit {LIMIT} tokens; stop texts {UNTIL} and the end token\n")
taken = {}
for title, prompts in {
    "both end by 'Question:'": ["ask-a ->", "ask-b ->"],
    "one by 'Question:', one by 'Q:'": ["ask-a ->", "ask-c ->"],
    "one by 'Question:', one by the end token": ["ask-a ->", "ask-d ->"],
}.items():
    alone, together = answers(prompts, 1), answers(prompts, 2)
    taken[title] = alone[1], together[1]
    print(f"{title:42} {alone[1]:4} passes one by one, {together[1]:4} in one batch; answers {together[0]}")
    assert alone[0] == together[0]
    assert all(len(text.split()) == 3 for text in together[0])
same, *others = taken.values()
assert same[1] < same[0] <= 10
assert all(one <= 10 and batch == LIMIT for one, batch in others), taken
print("\nas described: answers of three words cost the limit as soon as they end in two ways")
PY
