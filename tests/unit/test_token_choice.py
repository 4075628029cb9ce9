"""How one row's next token is chosen: transformers' processors, in its order, and a stream of the row's own."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from harness.evaluation.token_choice import ROW_FIELDS, needs_choice, token_choice
from tests.unit.test_evaluation_sharing import VOCABULARY, tiny

FIELDS: dict[str, Any] = {
    "sequence_bias": [[[6], 3.0]],
    "repetition_penalty": 1.7,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[9], [10, 11]],
    "min_new_tokens": 4,
    "forced_bos_token_id": 12,
    "forced_eos_token_id": 13,
    "remove_invalid_values": True,
    "exponential_decay_length_penalty": [1, 1.5],
    "suppress_tokens": [14, 15],
    "begin_suppress_tokens": [16, 17],
    "renormalize_logits": True,
    "temperature": 0.6,
    "top_h": 0.5,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.01,
    "typical_p": 0.95,
    "epsilon_cutoff": 1e-4,
    "eta_cutoff": 1e-4,
}


def test_every_field_is_tried() -> None:
    assert FIELDS.keys() == ROW_FIELDS - {"do_sample"}


TOGETHER = [name for name in FIELDS if name not in ("forced_eos_token_id", "remove_invalid_values", "top_h")]
"""What leaves something to draw from when it acts together."""


@pytest.mark.parametrize("names", [*([name] for name in FIELDS), TOGETHER])
@pytest.mark.parametrize("samples", [True, False])
def test_scores_are_those_of_transformers(names: list[str], samples: bool) -> None:
    fields = {"do_sample": samples, **{name: FIELDS[name] for name in names}}
    prompt, limit, ends = [5, 6, 7, 8], 6, [2, 3]
    config = GenerationConfig(max_length=len(prompt) + limit, **{"top_k": 50} | fields if samples else fields)
    config._eos_token_tensor = torch.tensor(ends)
    theirs = tiny()._get_logits_processor(config, input_ids_seq_length=len(prompt), device="cpu")
    draw = torch.Generator().manual_seed(1)
    for written in ([], [20], [6, 7], [20, 21, 22, 23, 24]):
        logits = torch.randn(1, VOCABULARY, generator=draw) * 3
        scores = theirs(torch.tensor([[*prompt, *written]]), logits.clone())
        choose = token_choice(
            fields,
            prompt_tokens=len(prompt),
            limit=limit,
            end_tokens=ends,
            device=torch.device("cpu"),
            generator=torch.Generator().manual_seed(7) if samples else None,
        )
        found = choose(logits.clone(), [*prompt, *written])
        if samples:
            wanted = torch.multinomial(scores.softmax(-1), 1, generator=torch.Generator().manual_seed(7))
        else:
            wanted = scores.argmax(-1)
        assert found == int(wanted)


def test_draws_follow_the_probabilities() -> None:
    logits = torch.linspace(0, 4, 30)[None]
    choose = token_choice(
        {"do_sample": True, "temperature": 0.7, "top_k": 10},
        prompt_tokens=1,
        limit=9,
        end_tokens=[],
        device=torch.device("cpu"),
        generator=torch.Generator().manual_seed(3),
    )
    counts = Counter(choose(logits.clone(), [5]) for _ in range(4000))
    expected = (logits[0, 20:].double() / 0.7).softmax(0)
    chi = sum((counts[20 + n] - 4000 * float(p)) ** 2 / (4000 * float(p)) for n, p in enumerate(expected))
    assert min(counts) >= 20
    assert chi < 28, "9 degrees of freedom: 0.1% lies above 28"


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({}, False),
        ({"do_sample": False, "top_p": 0.9}, False),
        ({"do_sample": True}, True),
        ({"repetition_penalty": 1.1}, True),
    ],
)
def test_where_the_likeliest_is_taken_as_it_is(fields: dict[str, Any], needed: bool) -> None:
    assert needs_choice(fields) == needed
