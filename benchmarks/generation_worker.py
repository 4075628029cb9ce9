"""Answers generation requests in an environment of its own, told and asked over a pipe: the other side of
``test_generation.py``. Needs nothing but an installed ``harness``, of whatever build.

Reads one JSON a line: ``{"model": folder, "batch_tokens": n}`` first, then ``{"requests": [[context, settings], …],
"lengths": {context: tokens} | null}``; writes ``{"texts": […], "cpu": seconds, "clock": seconds}`` for each.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def ends_at_length(tokenizer: Any, lengths: dict[str, int]) -> Any:
    """Return a stopping criterion that ends each row of a static batch at its prompt's own length, as an end token."""
    import torch
    from transformers import StoppingCriteria

    known = {tuple(tokenizer(context)["input_ids"]): length for context, length in lengths.items()}

    class EndsAtLength(StoppingCriteria):
        def __init__(self, prompt_tokens: int) -> None:
            self._prompt_tokens = prompt_tokens
            self._lengths: Any = None

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            if self._lengths is None:
                rows = input_ids[:, : self._prompt_tokens].tolist()
                self._lengths = torch.tensor([self._length_of(row) for row in rows])
            return input_ids.shape[1] - self._prompt_tokens >= self._lengths

        @staticmethod
        def _length_of(row: list[int]) -> int:
            (found,) = (known[tuple(row[cut:])] for cut in range(len(row)) if tuple(row[cut:]) in known)
            return found

    return EndsAtLength


def fix_lengths(module: Any, tokenizer: Any, lengths: dict[str, int]) -> Any:
    """Have ``stop_sequences_criteria`` of a module end rows at their lengths, too; return what undoes it."""
    own, criterion = module.stop_sequences_criteria, ends_at_length(tokenizer, lengths)

    def both(tokenizer: Any, stops: list[str], prompt_tokens: int, rows: int) -> Any:
        found = own(tokenizer, stops, prompt_tokens, rows)
        found.append(criterion(prompt_tokens))
        return found

    module.stop_sequences_criteria = both
    return lambda: setattr(module, "stop_sequences_criteria", own)


def never_ends(model: Any) -> Any:
    """Forbid the model its end token, so that an answer ends at its length alone; return what undoes it."""
    end = model.generation_config.eos_token_id

    def forbid(_module: Any, _inputs: Any, output: Any) -> None:
        output.logits[..., end] = float("-inf")

    return model.register_forward_hook(forbid).remove


def main() -> None:
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models import utils_hf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness.evaluation.language_model import HarnessLM

    asked = json.loads(sys.stdin.readline())
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    lm = HarnessLM(model, tokenizer, device="cpu", batch_tokens=asked["batch_tokens"])
    for line in sys.stdin:
        asked = json.loads(line)
        requests = [Instance("generate_until", {}, tuple(pair), n) for n, pair in enumerate(asked["requests"])]  # type: ignore[arg-type]
        undo = []
        if asked["lengths"] is not None:
            undo = [fix_lengths(utils_hf, tokenizer, asked["lengths"]), never_ends(model)]
        clock, cpu = time.perf_counter(), time.process_time()
        texts = lm.generate_until(requests)
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        for one in undo:
            one()
        print(json.dumps({"texts": texts, "cpu": cpu, "clock": clock}), flush=True)


if __name__ == "__main__":
    main()
