"""How the next token of one row is chosen, where that is more than the likeliest: penalties, bans and draws.

Each row has processors of its own, which see its own text and nothing else, and a random stream of its own, so that an
answer depends neither on what is answered beside it nor on the order of the requests. Processors, their defaults and
their order are those of transformers 5.23.0, generation/utils.py, ``_get_logits_processor``. Deliberate difference:
a token is drawn on the host from the request's stream, not from the global generator of the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import logits_process as processors

TokenChoice = Callable[[torch.Tensor, list[int]], int]
"""Returns the next token by its logits, (1, vocab) fp32, and all tokens before it."""

DRAW_FIELDS = ("temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""In the order in which they act."""
ROW_FIELDS = frozenset(
    {
        *DRAW_FIELDS,
        *("do_sample", "sequence_bias", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids"),
        *("min_new_tokens", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values"),
        *("exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "renormalize_logits"),
    }
)
"""Settings of ``generate`` that act on one row's next token alone."""


def needs_choice(fields: Mapping[str, Any]) -> bool:
    """Return whether these settings make the next token another than the likeliest."""
    return bool(fields.get("do_sample")) or bool(fields.keys() - {*DRAW_FIELDS, "do_sample"})


def token_choice(
    fields: Mapping[str, Any],
    *,
    prompt_tokens: int,
    limit: int,
    end_tokens: list[int],
    device: torch.device,
    generator: torch.Generator | None,
) -> TokenChoice:
    """Return how one row's tokens are chosen.

    Args:
        fields: Of ``ROW_FIELDS`` those that are set, in the call or by the model's own settings.
        prompt_tokens: Of the row.
        limit: Most tokens of its answer.
        end_tokens: Those that end a sequence for the model.
        device: Where logits are.
        generator: On the host; draws the row's tokens. None where none are drawn.

    Raises:
        ValueError: transformers does not take a setting.
    """
    defaults = GenerationConfig._get_default_generation_params() if fields.get("do_sample") else {}
    given = {name: value for name, value in {**defaults, **fields}.items() if name in ROW_FIELDS and value is not None}
    chain = processors.LogitsProcessorList(
        [
            *_rules(given, prompt_tokens, prompt_tokens + limit, end_tokens, device),
            *(_draws(given, device) if given.get("do_sample") else ()),
            *([processors.LogitNormalization()] if given.get("renormalize_logits") else ()),
        ]
    )

    def choose(logits: torch.Tensor, before: list[int]) -> int:
        scores = chain(torch.tensor([before], device=device), logits)
        if generator is None:
            return int(scores.argmax(-1))
        return int(torch.multinomial(scores.softmax(-1).cpu(), 1, generator=generator))

    return choose


def _rules(given: Mapping[str, Any], start: int, end: int, end_tokens: list[int], device: torch.device) -> list[Any]:
    """Return the processors that act whether or not tokens are drawn.

    Args:
        given: Settings that are set.
        start: Tokens of the prompt.
        end: Tokens of prompt and longest answer.
        end_tokens: Those that end a sequence.
        device: Where logits are.
    """
    ends = torch.tensor(end_tokens, device=device) if end_tokens else None
    made: dict[str, Callable[[Any], Any]] = {
        "sequence_bias": processors.SequenceBiasLogitsProcessor,
        "repetition_penalty": processors.RepetitionPenaltyLogitsProcessor,
        "no_repeat_ngram_size": processors.NoRepeatNGramLogitsProcessor,
        "bad_words_ids": lambda words: processors.NoBadWordsLogitsProcessor(words, ends),
        "min_new_tokens": lambda least: processors.MinNewTokensLengthLogitsProcessor(start, least, ends, device=device),
        "forced_bos_token_id": processors.ForcedBOSTokenLogitsProcessor,
        "forced_eos_token_id": lambda token: processors.ForcedEOSTokenLogitsProcessor(end, token, device=device),
        "remove_invalid_values": lambda _: processors.InfNanRemoveLogitsProcessor(),
        "exponential_decay_length_penalty": lambda decay: processors.ExponentialDecayLengthPenalty(decay, ends, start),
        "suppress_tokens": lambda tokens: processors.SuppressTokensLogitsProcessor(tokens, device=device),
        "begin_suppress_tokens": lambda tokens: processors.SuppressTokensAtBeginLogitsProcessor(
            tokens, start if start > 1 or given.get("forced_bos_token_id") is None else start + 1, device=device
        ),
    }
    idle = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0, "remove_invalid_values": False}
    if ends is None:
        idle["min_new_tokens"] = given.get("min_new_tokens", 0)
    return [make(given[name]) for name, make in made.items() if name in given and given[name] != idle.get(name)]


def _draws(given: Mapping[str, Any], device: torch.device) -> list[Any]:
    """Return the processors that shape what is drawn from, in the order of ``DRAW_FIELDS``."""
    made: dict[str, Callable[[Any], Any]] = {
        "temperature": processors.TemperatureLogitsWarper,
        "top_h": lambda share: processors.TopHLogitsWarper(top_h=share),
        "top_k": processors.TopKLogitsWarper,
        "top_p": processors.TopPLogitsWarper,
        "min_p": processors.MinPLogitsWarper,
        "typical_p": processors.TypicalLogitsWarper,
        "epsilon_cutoff": processors.EpsilonLogitsWarper,
        "eta_cutoff": lambda cutoff: processors.EtaLogitsWarper(cutoff, device=device),
    }
    idle: dict[str, tuple[float, ...]] = {"temperature": (1.0,), "top_k": (0,), "top_p": (1.0,), "typical_p": (1.0,)}
    idle |= {"epsilon_cutoff": (0.0, 1.0), "eta_cutoff": (0.0, 1.0)}
    return [made[name](given[name]) for name in DRAW_FIELDS if name in given and given[name] not in idle.get(name, ())]
