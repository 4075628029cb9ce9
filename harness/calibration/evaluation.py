"""How fast evaluation is on the device: our LM and lm-eval's HFLM on the same items, and generation.

The model has the shape of a 7B one with random weights and the embedded tokenizer's vocabulary; the items are packaged
rows. Tokens a second count the tokens of every request as if it were encoded alone, so that both rates are of the same
work; the token ratio is what HFLM sends through the model over what ours does, padding among them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.assets.cache import is_complete
from harness.calibration.bench import Bench, Found, Skip
from harness.calibration.tiny import SHAPE
from harness.calibration_log import Reading
from harness.catalogue.models import BaseModelSpec, find_model, load_models
from harness.data.packaged import rows_place
from harness.errors import HarnessError
from harness.evaluation.language_model import HarnessLM
from harness.preparing.assets import converted_model_place
from harness.settings import EvaluationSettings
from harness.tensors.loading import build_model, load_tokenizer
from harness.tensors.out_of_memory import is_out_of_memory
from harness.tensors.seeding import fenced

SHAPED_LIKE, TOKENIZER_OF = "llama2-7b", "smollm2-135m"
TASKS = {"full": ("piqa", "arc_challenge", "hellaswag"), "smoke": ("arc_easy",)}
BATCH_SIZES = {"full": (16, 64), "smoke": (4,)}
"""HFLM's, of which the quickest counts."""
SHARE_OF_TOKEN_RATIO = 0.85
"""What is asked of the time ratio, of the ratio of tokens."""
SAME = 1e-3
"""Largest difference of two log-likelihoods in fp32, nats; bf16 rounds away more than a mistake would show."""


@dataclass(frozen=True)
class _Lap:
    seconds: float
    tokens: int
    """That went through the model, padding among them."""
    answers: list[Any]


class _Asked:
    """A model, its tokenizer and the requests of some items."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        spec = find_model(TOKENIZER_OF, load_models())
        folder = converted_model_place(spec)
        if not (is_complete(folder) and is_complete(rows_place())):
            raise Skip("needs the embedded tokenizer and the packaged rows: harness prepare --suite quickstart")
        self.tokenizer = load_tokenizer(folder)
        shape = find_model(SHAPED_LIKE, load_models()).shape if bench.sizes == "full" else SHAPE
        assert shape is not None
        positions = {"vocab_size": len(self.tokenizer), "max_positions": 4096}
        model = BaseModelSpec(
            name="shape", architecture="LlamaForCausalLM", shape=shape.model_copy(update=positions), weights="random"
        )
        if bench.cuda:
            needed = 2 * sum(parameter.numel() for parameter in build_model(model, "bf16", "meta").parameters())
            if needed > (free := torch.cuda.mem_get_info(bench.device)[0]):
                raise Skip(f"the weights alone need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
        with fenced(1):
            self.model: Any = build_model(model, "bf16" if bench.cuda else "fp32", bench.device)
        self._tokens = 0
        self.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def requests(self, tasks: tuple[str, ...], items: int, shots: int) -> list[Any]:
        """Return the requests of the first items of tasks."""
        from harness.evaluation.tasks import load_tasks

        settings = EvaluationSettings(tasks=tasks, rows="packaged", num_fewshot=shots, limit=items)
        with tempfile.TemporaryDirectory() as folder:
            found = load_tasks(settings, rows_folder=rows_place(), datasets_cache=Path(folder), offline=True)
            for task in found.values():
                task.build_all_requests(limit=items)
        return [request for task in found.values() for request in task.instances]

    def lap(self, call: Callable[[], list[Any]]) -> _Lap:
        """Return what a call answers, how long it takes and what goes through the model."""
        self._tokens = 0
        self.bench.synchronize()
        begin = time.perf_counter()
        answers = call()
        self.bench.synchronize()
        return _Lap(time.perf_counter() - begin, self._tokens, answers)

    def _count(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._tokens += (args[0] if args else kwargs["input_ids"]).numel()


def log_likelihoods(bench: Bench, _: str | None) -> Found:
    """Return the rates of log-likelihoods by our LM and by HFLM at its best batch size.

    Raises:
        Skip: tokenizer and rows are not prepared.
        HarnessError: in fp32 the two answer differently.
    """
    from lm_eval.models.huggingface import HFLM

    asked = _Asked(bench)
    requests = asked.requests(TASKS[bench.sizes], bench.pick(12, 2), bench.pick(5, 0))
    ours = HarnessLM(asked.model, asked.tokenizer, device=bench.device, batch_tokens=bench.pick(16384, 512))
    ours.loglikelihood(requests[:4])  # the first call loads kernels
    mine = asked.lap(lambda: ours.loglikelihood(requests))
    asked_tokens = sum(context + continuation for context, continuation in ours.token_counts)
    theirs: dict[int, _Lap] = {}
    for size in BATCH_SIZES[bench.sizes]:
        lm = HFLM(pretrained=asked.model, tokenizer=asked.tokenizer, batch_size=size)
        lm.loglikelihood(requests[:4], True)
        try:
            theirs[size] = asked.lap(lambda lm=lm: lm.loglikelihood(requests, True))  # type: ignore[misc]
        except (MemoryError, RuntimeError) as error:
            if not theirs or not is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()  # a smaller batch went through, and counts
    size, best = min(theirs.items(), key=lambda pair: pair[1].seconds)
    pairs = zip(mine.answers, best.answers, strict=True)
    apart = max(abs(one[0] - other[0]) / max(1.0, abs(other[0])) for one, other in pairs)
    if not bench.cuda and apart > SAME:
        raise HarnessError(f"log-likelihoods of our LM and of HFLM are up to {apart:.2g} apart, more than {SAME:g}")
    time_ratio, token_ratio = best.seconds / mine.seconds, best.tokens / mine.tokens
    share = None if bench.sizes == "smoke" else SHARE_OF_TOKEN_RATIO
    return Found(
        (
            Reading(name="log-likelihoods, our LM", value=asked_tokens / mine.seconds, unit="tokens/s"),
            Reading(name="log-likelihoods, HFLM", value=asked_tokens / best.seconds, unit="tokens/s"),
            Reading(name="HFLM's time over ours", value=time_ratio, unit="ratio"),
            Reading(name="HFLM's tokens over ours", value=token_ratio, unit="ratio"),
            Reading(name="time ratio over token ratio", value=time_ratio / token_ratio, unit="ratio", at_least=share),
            Reading(name="log-likelihoods apart", value=apart, unit="relative"),
        ),
        f"{len(requests)} requests; HFLM at batch size {size}",
    )


def generation(bench: Bench, _: str | None) -> Found:
    """Return the rate of greedy generation by our LM and by HFLM, in new tokens a second.

    Raises:
        Skip: tokenizer and rows are not prepared.
    """
    from lm_eval.models.huggingface import HFLM

    asked = _Asked(bench)
    new_tokens, number = bench.pick(64, 4), bench.pick(32, 2)
    requests = asked.requests(("gsm8k",), number, bench.pick(5, 0))
    for request in requests:  # random weights meet no stop text but by chance: each answer has its full length
        request.arguments = (request.args[0], {"until": [], "max_gen_toks": new_tokens, "min_new_tokens": new_tokens})
    ours = HarnessLM(asked.model, asked.tokenizer, device=bench.device, batch_tokens=bench.pick(65536, 2048))
    theirs = HFLM(pretrained=asked.model, tokenizer=asked.tokenizer, batch_size=bench.pick(32, 2))
    ours.generate_until(requests[:1])
    theirs.generate_until(requests[:1], True)
    mine = asked.lap(lambda: ours.generate_until(requests))
    best = asked.lap(lambda: theirs.generate_until(requests, True))
    return Found(
        tuple(
            Reading(name=f"generation, {who}", value=number * new_tokens / lap.seconds, unit="tokens/s")
            for who, lap in (("our LM", mine), ("HFLM", best))
        ),
        f"{number} prompts, {new_tokens} new tokens each",
    )
