"""Slots that are kept full: answers are those of each prompt alone, and no row waits for another."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from harness.evaluation import slots
from harness.evaluation.language_model import HarnessLM
from harness.evaluation.slots import Ask, Slots, most_slots, takes_slots
from harness.evaluation.text_generation import StopTexts
from harness.tensors.loading import load_model, load_tokenizer
from tests.unit.test_evaluation_sharing import ERRORS, VOCABULARY, Letters, tiny

PROMPTS = [tuple(random.Random(number).choices(range(3, VOCABULARY), k=5 + 7 * number)) for number in range(8)]
LENGTHS = (3, 17, 1, 9, 30, 2, 12, 5)


@torch.no_grad()
def by_hand(model: Any, prompt: tuple[int, ...], length: int) -> list[int]:
    """Return the likeliest tokens one after the other."""
    written: list[int] = []
    for _ in range(length):
        written.append(int(model(torch.tensor([[*prompt, *written]])).logits[0, -1].argmax()))
    return written


class Answered:
    """Answers of slots, with the sizes of all forward passes."""

    def __init__(self, model: Any, budget: int, *, lengths: tuple[int, ...] = LENGTHS, **settings: Any) -> None:
        self.model, self.budget, self.sizes = model, budget, []  # type: ignore[var-annotated]
        self.texts: dict[int, list[int]] = {}
        self.read = 0
        handle = model.register_forward_pre_hook(self._see, with_kwargs=True)
        asks = [
            Ask(n, prompt, 40, functools.partial(lambda length, written: len(written) == length, length))
            for n, (prompt, length) in enumerate(zip(PROMPTS, lengths, strict=True))
        ]
        made = Slots(
            model,
            torch.device("cpu"),
            batch_tokens=lambda: self.budget,
            back_off=self._back_off,
            on_end=lambda ask, written: self.texts.__setitem__(ask.index, written),
            on_read=self._count,
            **settings,
        )
        try:
            made.answer(asks)
        finally:
            handle.remove()

    def _see(self, _module: Any, _inputs: Any, given: dict[str, Any]) -> None:
        self.sizes.append(tuple(given["input_ids"].shape))

    def _count(self, tokens: int) -> None:
        self.read += tokens

    def _back_off(self) -> None:
        self.budget //= 2


@pytest.mark.parametrize(
    "changes", [{"num_key_value_heads": heads} for heads in (1, 2, 4)] + [{"tie_word_embeddings": True}], ids=str
)
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_an_answer_is_that_of_its_prompt_alone(kind: str, changes: dict[str, Any]) -> None:
    model = tiny(kind, **changes)
    found = Answered(model, budget=80)
    assert found.texts == {n: by_hand(model, *pair) for n, pair in enumerate(zip(PROMPTS, LENGTHS, strict=True))}
    assert model.config._attn_implementation == "sdpa"


def test_rows_that_end_leave_and_waiting_prompts_enter() -> None:
    found = Answered(tiny(), budget=80)  # 320 tokens of keys: three rows of 94
    decoded = [rows for rows, tokens in found.sizes if tokens == 1]  # of fewer than the slow numbers of rows
    assert sum(decoded) == sum(LENGTHS) - len(LENGTHS), "each answer's first token comes of its prompt"
    assert max(decoded) == 3
    assert len(decoded) < 30 + 12, "while the longest answer is written the others come and go"


def test_rows_that_fill_a_step_up_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    plain = Answered(model, budget=400)
    monkeypatch.setattr(slots, "SLOW_ROWS", range(2, 6))
    filled = Answered(model, budget=400)
    assert filled.texts == plain.texts
    assert {rows for rows, tokens in plain.sizes if tokens == 1} >= {2, 3, 4, 5}
    assert {rows for rows, tokens in filled.sizes if tokens == 1} <= {1, 6, 7, 8}


def test_slots_grow_with_what_is_written() -> None:
    capacities = []
    own = slots.SlotCache.reserve

    def spy(self: Any, tokens: int) -> None:
        own(self, tokens)
        capacities.append(self.capacity)

    model = tiny()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots.SlotCache, "reserve", spy)
        found = Answered(model, budget=400, lengths=(40,) * 8)
    assert len(set(capacities)) > 1
    assert found.texts == {n: by_hand(model, prompt, 40) for n, prompt in enumerate(PROMPTS)}


def test_a_prompt_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    whole = Answered(model, budget=200)
    monkeypatch.setattr(slots, "PIECE_TOKENS", 8)
    pieces = Answered(model, budget=200)
    assert pieces.texts == whole.texts
    assert max(rows * tokens for rows, tokens in pieces.sizes if tokens > 1) == 8
    assert pieces.read == whole.read == sum(map(len, PROMPTS))


def test_what_another_slot_begins_with_is_not_read_again(tokenizer: Any) -> None:
    draw = random.Random(3)
    shots = "".join(chr(draw.randrange(33, 90)) for _ in range(100))
    contexts = [shots + "".join(chr(draw.randrange(33, 90)) for _ in range(300)) for _ in range(3)]
    requests = asked(contexts, max_gen_toks=8)
    apart = HarnessLM(tiny(), Letters(), device="cpu", batch_tokens=2048, share_prefixes=False)
    together = HarnessLM(tiny(), Letters(), device="cpu", batch_tokens=2048)
    assert together.generate_until(requests) == apart.generate_until(requests)
    assert apart.num_processed_tokens - together.num_processed_tokens == 2 * 100


@pytest.mark.parametrize("error", ERRORS)
def test_rows_in_flight_outlive_memory_that_runs_out(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    forward, refused = model.forward, []

    @functools.wraps(forward)
    def cramped(*args: Any, **given: Any) -> Any:
        rows, tokens = given["input_ids"].shape
        if tokens == 1 and rows > 2 and len(refused) < 2:
            refused.append(rows)
            raise ERRORS[error]()
        return forward(*args, **given)

    monkeypatch.setattr(model, "forward", cramped)
    found = Answered(model, budget=400)
    assert len(refused) == 2
    assert found.budget == 100
    assert found.texts == {n: by_hand(tiny(), *pair) for n, pair in enumerate(zip(PROMPTS, LENGTHS, strict=True))}


def test_memory_that_does_not_do_for_one_row_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()

    @functools.wraps(model.forward)
    def none(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("none")

    monkeypatch.setattr(model, "forward", none)
    with pytest.raises(torch.OutOfMemoryError):
        Answered(model, budget=400)
    assert model.config._attn_implementation == "sdpa"


def asked(contexts: list[str], **settings: Any) -> list[Instance]:
    given = {"until": ["zz"], "do_sample": False, **settings}
    return [Instance("generate_until", {}, (context, dict(given)), n) for n, context in enumerate(contexts)]  # type: ignore[arg-type]


def sampled(contexts: list[str], *, budget: int = 4096, seed: int = 1, **settings: Any) -> list[str]:
    lm = HarnessLM(tiny(), Letters(), device="cpu", batch_tokens=budget, seed=seed)
    return lm.generate_until(asked(contexts, do_sample=True, temperature=1.5, max_gen_toks=12, **settings))


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.8, "repetition_penalty": 1.3}, {"max_time": 1e9}], ids=str)
def test_what_is_drawn_depends_on_the_request_alone(settings: dict[str, Any]) -> None:
    """A limit of time is none of one row's next token: such requests go to ``generate`` one by one."""
    contexts = [f"{'so ' * number}it is" for number in range(6)]
    together = sampled(contexts, **settings)
    assert sampled(contexts[::-1], **settings)[::-1] == together
    assert [sampled([context], budget=64, **settings)[0] for context in contexts] == together
    assert sampled(contexts, seed=2, **settings) != together
    twice = sampled([contexts[0]] * 2, **settings)
    assert twice[0] == together[0], "a request that is repeated draws anew"
    assert twice[1] != twice[0]


def test_the_global_generators_are_left_alone() -> None:
    lm = HarnessLM(tiny(), Letters(), device="cpu", batch_tokens=4096)
    before = torch.get_rng_state()
    lm.generate_until(asked(["a", "b"], do_sample=True, temperature=1.5, max_gen_toks=12))
    lm.generate_until(asked(["a", "b"], do_sample=True, temperature=1.5, max_gen_toks=12, max_time=1e9))
    assert torch.equal(torch.get_rng_state(), before)


def test_each_answer_is_reported_as_it_ends() -> None:
    lm = HarnessLM(tiny(), Letters(), device="cpu", batch_tokens=4096)
    seen: list[list[int]] = []
    lm.on_progress = lambda indices: seen.append(list(indices))
    lm.generate_until(asked(["abc", "d" * 30, "efg"], max_gen_toks=5))
    assert sorted(seen) == [[0], [1], [2]]


@pytest.mark.parametrize("stop", ["\n\n", "e a", "水", "ab"])
def test_a_stop_text_is_found_across_tokens_and_where_hflm_finds_it(stop: str, tiny_llama: Path) -> None:
    """The tokenizer has a token a byte, so that every stop text comes in several of them."""
    model, tokenizer = load_model(tiny_llama, "fp32", torch.device("cpu")), load_tokenizer(tiny_llama)
    ends = StopTexts(tokenizer, [stop, "never"], [257])
    ids = tokenizer(f"well{stop}on", add_special_tokens=False)["input_ids"]
    length = next(n for n in range(1, len(ids) + 1) if ends(ids[:n]))
    assert tokenizer.decode(ids[:length]) == f"well{stop}"
    plain = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    contexts = ["the mill", "a", "water and"]
    (text,) = plain.generate_until(asked(contexts[:1], until=["never"], max_gen_toks=24), disable_tqdm=True)
    requests = asked(contexts, until=[stop, text[5:7]], max_gen_toks=24)
    found = HarnessLM(model, tokenizer, device="cpu", batch_tokens=4096).generate_until(requests)
    assert found == plain.generate_until(requests, disable_tqdm=True)
    assert found[0] == text[: text.index(text[5:7])]


def test_an_end_token_ends_an_answer_and_is_no_text(tiny_llama: Path) -> None:
    ends = StopTexts(load_tokenizer(tiny_llama), ["never"], [257, 65])
    assert [ends([1, token]) for token in (257, 65, 66)] == [True, True, False]


@pytest.mark.parametrize(("window", "slotted"), [(16, False), (4096, True)])
def test_a_window_shorter_than_the_text_keeps_static_batches(window: int, slotted: bool) -> None:
    model = tiny("mistral", sliding_window=window)
    assert takes_slots(model, 60) == slotted
    contexts = ["".join(random.Random(n).choices("abcdefgh", k=20 + n)) for n in range(4)]
    requests = asked(contexts, max_gen_toks=20)
    wanted = []
    for context in contexts:
        tokens = tuple(Letters().encode(context))
        wanted.append(Letters().decode(by_hand(model, tokens, 20)))
    found = HarnessLM(model, Letters(), device="cpu", batch_tokens=4096).generate_until(requests)
    assert [text[:20] for text in found] == [text.split(chr(2))[0] for text in wanted]


def test_which_models_slots_take(monkeypatch: pytest.MonkeyPatch) -> None:
    assert takes_slots(tiny(), 2048)
    eager = tiny()
    eager.config._attn_implementation = "eager"
    assert not takes_slots(eager, 10)
    shared = tiny()
    monkeypatch.setattr(slots, "is_sharded", lambda _: True)
    assert not takes_slots(shared, 10), "processes that share a model out must make the same passes"


def test_an_adapter_acts_in_slots() -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    wrapped = get_peft_model(tiny(), settings).eval()
    found = Answered(wrapped, budget=200)
    plain = Answered(tiny(), budget=200)
    merged = Answered(wrapped.merge_and_unload(), budget=200)
    assert found.texts == merged.texts
    assert found.texts != plain.texts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stem_that_all_share_reads_as_one_of_each_row(dtype: torch.dtype) -> None:
    model = tiny(dtype=dtype, initializer_range=0.1)
    stem = torch.randint(3, VOCABULARY, (1, 80), generator=torch.Generator().manual_seed(2))
    kept = [(layer.keys, layer.values) for layer in model(stem, use_cache=True).past_key_values.layers]
    rows = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    seen: list[torch.Tensor] = []

    def choose(logits: torch.Tensor, before: list[int]) -> int:
        alone = model(torch.tensor([before])).logits[0, -1].float()
        seen.append((logits[0] - alone).abs().max() / alone.abs().max())
        return 20 + len(before) % 5

    asks = [Ask(n, (*stem[0].tolist(), *row), 6, lambda written: False, choose) for n, row in enumerate(rows)]
    made = Slots(
        model,
        torch.device("cpu"),
        batch_tokens=lambda: 4096,
        back_off=lambda: None,
        on_end=lambda *_: None,
    )
    made.answer(asks, lambda: kept)
    assert len(seen) == 3 * 6
    assert max(seen) < (1e-5 if dtype == torch.float32 else 0.05)


def test_how_many_rows_a_budget_holds() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert most_slots(1000, 100, cuda) == 10
    assert most_slots(1000, 100, cpu) == 40
    assert most_slots(1000, 100, cuda, stem_tokens=500) == 5
    assert most_slots(10, 100, cpu) == 1
    assert most_slots(4, 1, cpu) == 4, "each row brings a token to a pass"


Choice = Callable[[torch.Tensor, list[int]], int]


def test_a_choice_sees_its_own_row() -> None:
    seen: dict[int, list[list[int]]] = {0: [], 1: []}

    def choice(row: int) -> Choice:
        def choose(logits: torch.Tensor, before: list[int]) -> int:
            assert logits.shape == (1, VOCABULARY)
            seen[row].append(before)
            return 40 + row

        return choose

    asks = [Ask(n, PROMPTS[n], 3, lambda written: False, choice(n)) for n in (0, 1)]
    texts: dict[int, list[int]] = {}
    made = Slots(
        tiny(),
        torch.device("cpu"),
        batch_tokens=lambda: 400,
        back_off=lambda: None,
        on_end=lambda ask, written: texts.__setitem__(ask.index, written),
    )
    made.answer(asks)
    assert texts == {0: [40] * 3, 1: [41] * 3}
    assert seen == {n: [[*PROMPTS[n], *[40 + n] * length] for length in range(3)] for n in (0, 1)}
