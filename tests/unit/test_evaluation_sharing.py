"""What requests share is encoded once, and no score, no text and no index changes by it."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from harness.evaluation import packing
from harness.evaluation.language_model import HarnessLM
from harness.evaluation.packing import Scored, batches, plan_families

VOCABULARY = 97
CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}
Request = tuple[None, list[int], list[int]]


class Letters:
    """A tokenizer of single letters, whose ids are their code points."""

    bos_token_id, eos_token_id, pad_token_id, unk_token_id = 1, 2, 0, None

    def encode(self, string: str, **_: Any) -> list[int]:
        return [3 + ord(letter) % (VOCABULARY - 3) for letter in string]

    def decode(self, tokens: Any, **_: Any) -> str:
        tokens = [tokens] if isinstance(tokens, int) else list(tokens)
        return "".join(chr(int(token)) for token in tokens)

    def batch_decode(self, rows: Any, **_: Any) -> list[str]:
        return [self.decode(row.tolist()) for row in rows]


def tiny(kind: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    torch.manual_seed(0)
    config, model = CLASSES[kind]
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.4,
        **({"sliding_window": None} if kind == "mistral" else {}),
        **changes,
    }
    return model(config(**shape)).to(dtype).eval()


def lm(model: Any, *, batch_tokens: int = 512, shares: bool = True) -> HarnessLM:
    return HarnessLM(model, Letters(), device="cpu", batch_tokens=batch_tokens, share_prefixes=shares)


def drawn(draw: random.Random, low: int, high: int) -> list[int]:
    return [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(low, high))]


def subjects(draw: random.Random, num_subjects: int, num_items: int) -> list[Request]:
    """Items behind their subject's shots: some of one token (MMLU), some of longer choices, in a random order."""
    requests: list[Request] = []
    opening = drawn(draw, 0, 12)
    for _ in range(num_subjects):
        shots = opening + drawn(draw, 70, 140)
        common = drawn(draw, 0, 6)
        one_token = draw.random() < 0.5
        for _ in range(num_items):
            context = shots + (common if draw.random() < 0.6 else []) + drawn(draw, 5, 60)
            choices = [drawn(draw, 1, 1 if one_token else 7) for _ in range(4)]
            requests += [(None, context, choice) for choice in choices]
    requests += [(None, drawn(draw, 1, 90), drawn(draw, 1, 4)) for _ in range(3)]
    requests.append((None, requests[0][1][:80], [*requests[0][1][80:], 5]))  # its targets reach into the shots
    draw.shuffle(requests)
    return requests


def assert_equal(found: list[tuple[float, bool]], wanted: list[tuple[float, bool]]) -> None:
    for (value, greedy), (right, right_greedy) in zip(found, wanted, strict=True):
        assert math.isclose(value, right, rel_tol=1e-4, abs_tol=1e-3)
        assert greedy == right_greedy


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("seed", range(4))
def test_sharing_changes_no_score(seed: int, kind: str) -> None:
    draw = random.Random(seed)
    model = tiny(kind)
    requests = subjects(draw, num_subjects=draw.randint(1, 3), num_items=draw.randint(14, 20))
    apart = lm(model, shares=False)
    together = lm(model, batch_tokens=draw.choice([1, 200, 1000]))
    assert_equal(together._loglikelihood_tokens(requests), apart._loglikelihood_tokens(requests))
    sequences = [together._sequence(index, *request) for index, request in enumerate(requests)]
    assert any(family.stem for family in plan_families(sequences))
    assert together.num_processed_tokens * 2 < apart.num_processed_tokens


def test_each_subject_reads_its_shots_once() -> None:
    draw = random.Random(7)
    shots = [drawn(draw, 100, 100) for _ in range(2)]
    questions = [drawn(draw, 30, 30) for _ in range(40)]
    requests = [(None, shots[number % 2] + question, [9]) for number, question in enumerate(questions)]
    found = lm(tiny(), batch_tokens=256)
    found._loglikelihood_tokens(requests)
    assert found.num_processed_tokens == 2 * 100 + 40 * 30


def test_bf16_scores_differ_by_rounding_alone() -> None:
    requests = subjects(random.Random(3), num_subjects=2, num_items=12)
    model = tiny(dtype=torch.bfloat16, initializer_range=0.1)
    apart = lm(model, shares=False)._loglikelihood_tokens(requests)
    for (value, _), (right, _) in zip(lm(model)._loglikelihood_tokens(requests), apart, strict=True):
        assert math.isclose(value, right, rel_tol=0.02, abs_tol=0.1)


def test_an_adapter_is_read_behind_a_stem_too() -> None:
    from peft import LoraConfig, get_peft_model

    requests = subjects(random.Random(5), num_subjects=1, num_items=12)
    plain = lm(tiny())._loglikelihood_tokens(requests)
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    wrapped = get_peft_model(tiny(), settings).eval()
    found = lm(wrapped)._loglikelihood_tokens(requests)
    assert_equal(found, lm(wrapped.merge_and_unload(), shares=False)._loglikelihood_tokens(requests))
    assert not all(math.isclose(left[0], right[0], abs_tol=1e-2) for left, right in zip(found, plain, strict=True))


@pytest.mark.parametrize("window", [16, 4096])
def test_a_window_shorter_than_the_text_keeps_requests_apart(window: int) -> None:
    requests = subjects(random.Random(2), num_subjects=1, num_items=10)
    model = tiny("mistral", sliding_window=window)
    apart, together = lm(model, shares=False), lm(model)
    assert_equal(together._loglikelihood_tokens(requests), apart._loglikelihood_tokens(requests))
    assert (together.num_processed_tokens < apart.num_processed_tokens // 2) == (window == 4096)


def generations(draw: random.Random) -> list[Instance]:
    shots = "".join(chr(draw.randrange(33, 90)) for _ in range(100))
    contexts = [shots + "".join(chr(draw.randrange(33, 90)) for _ in range(draw.randint(5, 60))) for _ in range(20)]
    settings = {"until": ["!"], "max_gen_toks": 6, "do_sample": False}
    return [Instance("generate_until", {}, (context, settings), n) for n, context in enumerate(contexts)]


@pytest.mark.parametrize("kind", CLASSES)
def test_sharing_changes_no_generated_text(kind: str) -> None:
    requests = generations(random.Random(4))
    model = tiny(kind)
    apart, together = lm(model, batch_tokens=700, shares=False), lm(model, batch_tokens=700)
    wanted = apart.generate_until(requests)
    assert together.generate_until(requests) == wanted
    assert len(set(wanted)) > 5
    assert together.num_processed_tokens == apart.num_processed_tokens - 19 * 100


def test_families_hold_every_sequence_and_stems_end_before_what_is_scored() -> None:
    for seed in range(30):
        draw = random.Random(seed)
        requests = subjects(draw, num_subjects=draw.randint(1, 4), num_items=draw.randint(1, 15))
        model_reads = [(tuple([*context, *answer][:-1]), tuple(answer)) for _, context, answer in requests]
        sequences = [Scored(index, *pair) for index, pair in enumerate(model_reads)]
        families = plan_families(sequences)
        assert sorted(one.index for family in families for one in family.sequences) == list(range(len(requests)))
        for number, family in enumerate(families):
            stem = len(family.stem)
            assert (stem == 0 and number == 0) or stem >= packing.MIN_STEM_TOKENS
            assert all(one.inputs[:stem] == family.stem and stem <= one.num_free for one in family.sequences)
            for row in family.rows(row_tokens=100, tokens_per_key=1e9):
                for index, places, targets in row.scored:
                    path = [place for place, seen in enumerate(row.visible()[places[-1]]) if seen]
                    assert (*family.stem, *(row.tokens[place] for place in path)) == sequences[index].inputs
                    assert [row.positions[place] for place in path] == list(range(stem, len(sequences[index].inputs)))
                    assert targets == sequences[index].targets


def test_sequences_that_nest_deeply_are_planned_without_recursion() -> None:
    sequences = [Scored(length, tuple(range(1, length + 1)), (0,)) for length in range(1, 2500)]
    assert sum(len(family.sequences) for family in plan_families(sequences)) == 2499


def test_a_stem_counts_in_the_budget() -> None:
    sequences = [Scored(index, (*range(200), *range(500 + index, 560 + index)), (0,)) for index in range(12)]
    (family,) = plan_families(sequences)
    rows = family.rows(row_tokens=0, tokens_per_key=0.0)
    assert len(family.stem) == 200
    assert [len(batch) for batch in batches(rows, 330, len(family.stem))] == [3, 3, 3, 3]  # 60 + 200 / 4 a row
    assert [len(batch) for batch in batches(rows, 330)] == [5, 5, 2]


ERRORS: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory."),
    "cpu": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    "host": MemoryError,
}


def cramp(found: HarnessLM, most_tokens: int, error: Callable[[], Exception], monkeypatch: Any) -> list[int]:
    """Let forward passes over more tokens fail, and return the sizes of all."""
    forward, sizes = found.model.forward, []

    @functools.wraps(forward)  # transformers reads the signature
    def cramped(*args: Any, **kwargs: Any) -> Any:
        sizes.append(kwargs["input_ids"].numel())
        if sizes[-1] > most_tokens:
            raise error()
        return forward(*args, **kwargs)

    monkeypatch.setattr(found.model, "forward", cramped)
    return sizes


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("most_tokens", [150, 260])
def test_memory_that_runs_out_lowers_the_budget_and_changes_no_score(
    most_tokens: int, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = subjects(random.Random(11), num_subjects=2, num_items=12)
    wanted = lm(tiny(), shares=False)._loglikelihood_tokens(requests)
    found = lm(tiny(), batch_tokens=2048)
    seen: list[int] = []
    found.on_progress = seen.extend
    sizes = cramp(found, max(most_tokens, *(len(c) + len(a) for _, c, a in requests)), ERRORS[error], monkeypatch)
    assert_equal(found._loglikelihood_tokens(requests), wanted)
    assert sorted(seen) == list(range(len(requests)))
    assert found.num_out_of_memory > 0
    assert found.batch_tokens == max(1, 2048 >> found.num_out_of_memory)
    assert sum(size > most_tokens for size in sizes) >= found.num_out_of_memory


@pytest.mark.parametrize("error", ERRORS)
def test_memory_that_runs_out_in_generation_splits_the_batch(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = generations(random.Random(4))
    wanted = lm(tiny(), batch_tokens=700, shares=False).generate_until(requests)
    found = lm(tiny(), batch_tokens=4096)
    cramp(found, 200, ERRORS[error], monkeypatch)
    assert found.generate_until(requests) == wanted
    assert found.num_out_of_memory > 0


def test_another_error_is_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    found = lm(tiny(), batch_tokens=2048)
    cramp(found, 0, lambda: RuntimeError("shapes do not match"), monkeypatch)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        found._loglikelihood_tokens(subjects(random.Random(1), num_subjects=1, num_items=3))
    assert found.num_out_of_memory == 0


def test_the_head_is_applied_at_scored_positions_alone() -> None:
    model = tiny()
    found, seen = lm(model), []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-2]))
    draw = random.Random(6)
    shots = drawn(draw, 100, 100)
    found._loglikelihood_tokens([(None, shots + drawn(draw, 30, 30), [letter]) for letter in (5,) * 30])
    assert sum(seen) == 1 + 30  # one at the end of the stem, whose logits nobody asks for
