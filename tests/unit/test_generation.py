"""What steers generation: settings that come with a checkpoint change nothing that the protocol decides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from harness.assets.mt_bench import Question
from harness.conversation import find_template
from harness.errors import HarnessError
from harness.evaluation import mt_bench, text_generation
from harness.evaluation.generation import acting_fields, end_tokens, protocol_alone
from harness.evaluation.language_model import HarnessLM
from harness.evaluation.local_judge import LocalJudge
from harness.evaluation.mt_bench import answer_questions
from harness.tensors.loading import load_model, load_tokenizer
from harness.tensors.seeding import torch_generator

NEW_TOKENS = 12
MESSAGES = [{"role": "user", "content": "Grade this."}]
OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 5.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "num_beams": {"num_beams": 3},
    "forced_eos_token_id": {"forced_eos_token_id": 65},
    "suppress_tokens": {"suppress_tokens": list(range(0, 250, 2))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(0, 250, 2))},
    "min_new_tokens": {"min_new_tokens": 3},
    "max_time": {"max_time": 1e-9},
    "stop_strings": {"stop_strings": [chr(number) for number in range(32, 127)]},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [1, 3.0]},
    "sequence_bias": {"sequence_bias": [[[66], 50.0]]},
    "bad_words_ids": {"bad_words_ids": [[number] for number in range(0, 250, 3)]},
    "drawn": {"do_sample": True, "temperature": 9.0, "top_k": 3, "top_p": 0.9},
}


def with_own(folder: Path, source: Path, **settings: Any) -> Path:
    """Return a copy of a model whose generation_config.json holds these settings."""
    shutil.copytree(source, folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": 257, "pad_token_id": 257, **settings}))
    return folder


def loaded(folder: Path) -> tuple[Any, Any]:
    return load_model(folder, "fp32", torch.device("cpu")), load_tokenizer(folder)


@torch.no_grad()
def greedy(model: Any, ids: list[int], ends: set[int], new_tokens: int = NEW_TOKENS) -> list[int]:
    """Return the likeliest tokens one after the other, by hand."""
    written: list[int] = []
    for _ in range(new_tokens):
        token = int(model(torch.tensor([[*ids, *written]])).logits[0, -1].argmax())
        if token in ends:
            break
        written.append(token)
    return written


def answer(model: Any, tokenizer: Any) -> list[list[str]]:
    given = answer_questions(
        model,
        tokenizer,
        (Question(111, "math", ("two and two?", "and two?")),),
        find_template("chatml"),
        model_id="tiny",
        max_new_tokens=NEW_TOKENS,
        batch_tokens=4096,
        generator=lambda stream: torch_generator(1, stream),
    )
    assert given.overruled == acting_fields(model)
    return [row["choices"][0]["turns"] for row in given.rows]


def prompt_of(tokenizer: Any) -> list[int]:
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", OWN_SETTINGS)
def test_settings_of_a_checkpoint_change_no_answer_and_no_judgment(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded(with_own(tmp_path / "m", tiny_llama, **OWN_SETTINGS[name]))
    own = model.generation_config
    ids = tokenizer(find_template("chatml").render(["two and two?"]))["input_ids"]
    expected = tokenizer.decode(greedy(model, ids, {257})).replace("<s>", "").strip()
    assert expected
    assert answer(model, tokenizer)[0][0] == expected
    judgment = tokenizer.decode(greedy(model, prompt_of(tokenizer), {257}), skip_special_tokens=True)
    assert LocalJudge(model, tokenizer, version="w", max_tokens=NEW_TOKENS).ask(MESSAGES).text == judgment
    assert model.generation_config is own, "and the model keeps what came with it"


def test_an_adapters_base_is_as_free_of_its_settings(tiny_llama: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model, tokenizer = loaded(with_own(tmp_path / "m", tiny_llama, repetition_penalty=5.0, no_repeat_ngram_size=1))
    own = model.generation_config
    ids = tokenizer(find_template("chatml").render(["two and two?"]))["input_ids"]
    expected = tokenizer.decode(greedy(model, ids, {257})).replace("<s>", "").strip()
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    for _ in range(2):  # peft hands the settings down at each call
        assert answer(wrapped, tokenizer)[0][0] == expected
    assert wrapped.get_base_model().generation_config is own
    assert acting_fields(wrapped) == {"no_repeat_ngram_size": 1, "repetition_penalty": 5.0}


def test_any_of_several_end_tokens_ends_an_answer_and_a_judgment(tiny_llama: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded(tiny_llama)
    ids = tokenizer(find_template("chatml").render(["two and two?"]))["input_ids"]
    spoken, judged = greedy(model, ids, {257}), greedy(model, prompt_of(tokenizer), {257})
    ends = [257, spoken[3], judged[4]]
    model, tokenizer = loaded(with_own(tmp_path / "m", tiny_llama, eos_token_id=ends))
    assert end_tokens(model, tokenizer) == set(ends)
    cut = tokenizer.decode(greedy(model, ids, set(ends))).replace("<s>", "").strip()
    assert answer(model, tokenizer)[0][0] == cut
    expected = tokenizer.decode(greedy(model, prompt_of(tokenizer), set(ends)), skip_special_tokens=True)
    assert LocalJudge(model, tokenizer, version="w", max_tokens=NEW_TOKENS).ask(MESSAGES).text == expected
    assert len(greedy(model, prompt_of(tokenizer), set(ends))) < len(judged)


@pytest.mark.parametrize("in_slots", [True, False])
def test_padding_is_no_text_that_must_not_be_repeated(
    in_slots: bool, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is padded with a token that the model would say, and may not where padding counts as text."""
    if not in_slots:
        monkeypatch.setattr(text_generation, "takes_slots", lambda *_: False)
    model, tokenizer = loaded(with_own(tmp_path / "m", tiny_llama, no_repeat_ngram_size=1))
    contexts = ["Question: a longer one, by far?", "Question: b?"]
    settings = {"until": ["never"], "max_gen_toks": 1, "do_sample": False}

    def written(*texts: str) -> list[str]:
        requests = [Instance("generate_until", {}, (text, dict(settings)), n) for n, text in enumerate(texts)]  # type: ignore[arg-type]
        return HarnessLM(model, tokenizer, device="cpu", batch_tokens=4096).generate_until(requests)

    (alone,) = written(contexts[1])
    (token,) = tokenizer(alone)["input_ids"]
    assert token not in tokenizer(contexts[1])["input_ids"]
    tokenizer.pad_token_id = token
    assert written(*contexts)[1] == alone


def test_turns_to_which_nothing_is_said_are_counted(tiny_llama: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded(tiny_llama)
    ids = tokenizer(find_template("chatml").render(["two and two?"]))["input_ids"]
    first = greedy(model, ids, {257})[0]
    model, tokenizer = loaded(with_own(tmp_path / "m", tiny_llama, eos_token_id=[257, first]))
    question = Question(111, "math", ("two and two?", "and two?"))
    settings: dict[str, Any] = {"model_id": "tiny", "max_new_tokens": NEW_TOKENS, "batch_tokens": 4096}
    generator = lambda stream: torch_generator(1, stream)  # noqa: E731
    given = answer_questions(model, tokenizer, (question,), find_template("chatml"), generator=generator, **settings)
    both = given.rows[0]["choices"][0]["turns"]
    assert both[0] == ""
    assert given.num_empty == both.count("")


def test_own_stop_strings_end_a_tasks_text(tiny_llama: Path, tmp_path: Path) -> None:
    """lm-eval's own model hands no tokenizer to generate, which then ends with an error."""
    model, tokenizer = loaded(tiny_llama)
    plain = tokenizer.decode(greedy(model, tokenizer("Question:")["input_ids"], {257}))
    stop = next(letter for letter in plain[3:] if letter.isprintable() and letter.isascii())
    model, tokenizer = loaded(with_own(tmp_path / "m", tiny_llama, stop_strings=[stop]))
    settings = {"until": ["never"], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    lm = HarnessLM(model, tokenizer, device="cpu", batch_tokens=4096)
    (text,) = lm.generate_until([Instance("generate_until", {}, ("Question:", settings), 0)])  # type: ignore[arg-type]
    assert text == plain[: plain.index(stop) + 1]
    assert lm.own_generation_fields == {"stop_strings": [stop]}


def test_own_settings_that_transformers_does_not_take_are_one_sentence(tiny_llama: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded(with_own(tmp_path / "m", tiny_llama, penalty_alpha=0.6, top_k=4))
    settings = {"until": ["never"], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    lm = HarnessLM(model, tokenizer, device="cpu", batch_tokens=4096)
    with pytest.raises(HarnessError, match=r"own generation settings \(penalty_alpha\) cannot be used"):
        lm.generate_until([Instance("generate_until", {}, ("Question:", settings), 0)])  # type: ignore[arg-type]
    assert answer(model, tokenizer)[0][0], "and the protocol alone needs none of them"


def test_the_model_has_its_settings_back_after_an_error(tiny_llama: Path) -> None:
    model, _ = loaded(tiny_llama)
    own = model.generation_config
    with pytest.raises(RuntimeError), protocol_alone(model):
        assert model.generation_config.eos_token_id is None
        raise RuntimeError
    assert model.generation_config is own


@pytest.mark.parametrize(
    ("own", "samples", "found"),
    [
        ({}, False, {}),
        ({"temperature": 0.6, "top_p": 0.9, "do_sample": True, "top_k": 20}, False, {}),
        ({"temperature": 0.6, "top_p": 0.9, "do_sample": True}, True, {"temperature": 0.6, "top_p": 0.9}),
        ({"repetition_penalty": 1.0, "num_beams": 1, "no_repeat_ngram_size": 0, "no_such_field": 3}, False, {}),
        ({"repetition_penalty": 1.05}, False, {"repetition_penalty": 1.05}),
        ({"num_beams": 2, "max_length": 40, "max_new_tokens": 3}, False, {"num_beams": 2}),
        ({"forced_eos_token_id": 2, "max_time": 3.0}, False, {"forced_eos_token_id": 2, "max_time": 3.0}),
    ],
)
def test_which_settings_of_a_checkpoint_act(
    own: dict[str, Any], samples: bool, found: dict[str, Any], tiny_llama: Path, tmp_path: Path
) -> None:
    model, _ = loaded(with_own(tmp_path / "m", tiny_llama, **own))
    assert acting_fields(model, samples=samples) == found


@pytest.mark.parametrize("name", sorted(OWN_SETTINGS.keys() - {"max_time", "stop_strings"}))
def test_tasks_are_generated_as_by_hflm_with_the_settings_of_the_checkpoint(
    name: str, tiny_llama: Path, tmp_path: Path
) -> None:
    model, tokenizer = loaded(with_own(tmp_path / "m", tiny_llama, **OWN_SETTINGS[name]))
    shots = "Question: what? Answer: that. " * 20  # long enough to be kept as a stem
    contexts = [f"{shots}Question: {'so ' * number}{word}? Answer:" for number, word in enumerate(("a", "bc", "d"))]
    settings = {"until": ["zz"], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    requests = [Instance("generate_until", {}, (text, dict(settings)), n) for n, text in enumerate(contexts)]  # type: ignore[arg-type]
    ours = HarnessLM(model, tokenizer, device="cpu", batch_tokens=4096)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    assert ours.generate_until(requests) == theirs.generate_until(requests, disable_tqdm=True)
    assert ours.own_generation_fields == acting_fields(model)


@pytest.mark.parametrize(
    ("length", "together"), [(1024, 3), (83, 1), (92, 3)], ids=["room for all", "too little for one", "just enough"]
)
def test_a_turn_has_the_room_of_its_own_prompt_whatever_shares_its_batch(
    length: int, together: int, tiny_llama: Path
) -> None:
    model, tokenizer = loaded(tiny_llama)
    model.config.max_position_embeddings = length
    template = find_template("chatml")
    made = mt_bench._Generation(model, tokenizer, template, NEW_TOKENS)
    asks = []
    for number, text in enumerate(("t" * 30, "two?", "so?")):
        ids = tokenizer(template.render([text]))["input_ids"]
        asks.append(mt_bench._Ask(Question(number, "math", (text, "")), 0, ids, torch_generator(1, "x"), 0.0))
    assert len(asks[0].ids) == 80
    assert made.num_together(asks, 4096) == together
    assert made.room(asks[0]) == length - 80
    (text, cut), *_ = made.answer(asks[:1])
    expected = greedy(model, asks[0].ids, {257}, min(NEW_TOKENS, length - 80))
    assert text == tokenizer.decode(expected).replace("<s>", "").strip()
    assert cut == (257 not in expected)
