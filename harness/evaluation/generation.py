"""What steers generation: the protocol alone, or beside it the fields of the model's own generation_config.json.

``generate`` of transformers fills every field that a call leaves unset from ``model.generation_config`` (5.23.0,
generation/utils.py, ``_prepare_generation_config``): a penalty on repetition, beams, forced tokens or a limit of time
that came with a checkpoint then change what is written. MT-Bench's answers and a local judge are generated under
:func:`protocol_alone`. lm-eval's ``HFLM`` lets the model's fields through, and so do we for its tasks;
:func:`acting_fields` says which they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from pydantic import JsonValue
from transformers import GenerationConfig

from harness.errors import HarnessError

SAMPLING_FIELDS = frozenset(
    {"temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}
)
"""Without effect where the likeliest token is taken."""
IDLE_FIELDS = frozenset(
    {
        *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version"),
        *("max_length", "max_new_tokens", "do_sample", "num_return_sequences", "use_cache", "cache_implementation"),
        *("cache_config", "max_cache_len", "compile_config", "disable_compile", "prefill_chunk_size", "low_memory"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
        *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
        *("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind"),
        *("target_lookbehind", "assistant_ensemble_weight", "speculation_type", "use_mtp"),
        *("continuous_batching_config", "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping"),
    }
)
"""Fields that every call of ours sets, that name tokens, that change how fast the same text comes, or that act only
together with ``num_beams``."""


def own_generation_config(model: Any) -> GenerationConfig:
    """Return the generation settings that came with a model, peft-wrapped or not."""
    found = getattr(_base(model), "generation_config", None)
    return found if found is not None else GenerationConfig()


def acting_fields(model: Any, *, samples: bool = False) -> dict[str, JsonValue]:
    """Return the model's own generation settings that change what is written where a call leaves them unset.

    Args:
        model: A transformers causal language model, peft-wrapped or not.
        samples: Whether tokens are drawn; settings of the draw act only then.
    """
    own = own_generation_config(model)
    known, neutral = vars(GenerationConfig()).keys(), GenerationConfig._get_default_generation_params()
    idle = IDLE_FIELDS if samples else IDLE_FIELDS | SAMPLING_FIELDS
    acting = {name for name in known if not (name in idle or name.startswith("_"))}
    given = {name: value for name, value in sorted(own.to_dict().items()) if name in acting}
    return {name: value for name, value in given.items() if value is not None and value != neutral.get(name)}


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return the tokens that end a sequence: the tokenizer's and those of the model's generation config.

    Raises:
        HarnessError: there is none.
    """
    own = own_generation_config(model).eos_token_id
    listed = own if isinstance(own, list) else [own]
    ends = {int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None}
    if not ends:
        raise HarnessError("the tokenizer has no end-of-sequence token, at which an answer ends")
    return ends


def until_end(ids: list[int], ends: set[int]) -> tuple[list[int], bool]:
    """Return what was written before the first of some tokens, and whether one came."""
    for place, token in enumerate(ids):
        if token in ends:
            return ids[:place], True
    return ids, False


def num_together(lengths: Sequence[int], most: int, *, padded: bool) -> int:
    """Return how many of the first prompts are answered in one batch, at least one.

    Args:
        lengths: Tokens of each prompt, the longest first.
        most: Prompts for which there is memory.
        padded: False: prompts of one length alone share a batch.
    """
    alike = len(lengths) if padded else sum(1 for _ in takewhile(lambda length: length == lengths[0], lengths))
    return max(1, min(most, alike))


@contextmanager
def protocol_alone(model: Any) -> Iterator[None]:
    """Take the model's own generation settings from it meanwhile, so that a call's settings are all there are."""
    owners = [part for part in (model, _base(model)) if "generation_config" in vars(part)]
    own = [part.generation_config for part in owners]
    for part in owners:
        part.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for part, config in zip(owners, own, strict=True):
            part.generation_config = config


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
