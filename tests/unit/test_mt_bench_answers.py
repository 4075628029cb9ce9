"""Answers to MT-Bench's questions: batches do not touch each other, and they end where FastChat cuts them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.assets.mt_bench import Question
from harness.conversation import find_template
from harness.errors import HarnessError
from harness.evaluation import mt_bench
from harness.evaluation.mt_bench import TOP_K, Answers, answer_questions, write_answers
from harness.tensors.loading import load_model, load_tokenizer
from harness.tensors.seeding import torch_generator

QUESTIONS = tuple(
    Question(81 + number, category, (f"{'long ' * number}{category}?", "And now?"))
    for number, category in enumerate(("writing", "math", "stem", "coding", "other"))
)


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    return load_model(tiny_llama, "fp32", torch.device("cpu"))


def answers(model: Any, tokenizer: Any, questions: tuple[Question, ...] = QUESTIONS, **changes: Any) -> Answers:
    settings: dict[str, Any] = {"max_new_tokens": 12, "batch_tokens": 100_000, "seed": 1, "template": "chatml"}
    settings |= changes
    seed, template = settings.pop("seed"), find_template(settings.pop("template"))
    return answer_questions(
        model,
        tokenizer,
        questions,
        template,
        model_id="tiny",
        generator=lambda stream: torch_generator(seed, stream),
        **settings,
    )


def turns(given: Answers) -> dict[int, list[str]]:
    return {row["question_id"]: row["choices"][0]["turns"] for row in given.rows}


def test_a_batch_gives_what_each_question_gives_alone(model: Any, tokenizer: Any) -> None:
    together = turns(answers(model, tokenizer))
    apart = turns(answers(model, tokenizer, batch_tokens=1))
    assert together == apart
    assert turns(answers(model, tokenizer, QUESTIONS[:1]))[81] == together[81]
    assert list(together) == [81, 82, 83, 84, 85]


def test_sampled_answers_follow_the_seed_and_greedy_ones_do_not(model: Any, tokenizer: Any) -> None:
    one, same, other = (turns(answers(model, tokenizer, seed=seed)) for seed in (1, 1, 2))
    assert one == same
    assert one[82] == other[82]
    assert one[84] == other[84]
    assert one[81] != other[81]
    assert one[85] != other[85], "a category that FastChat does not know is sampled at 0.7"


def test_greedy_is_transformers_own(model: Any, tokenizer: Any) -> None:
    prompt = find_template("chatml").render([QUESTIONS[1].turns[0]])
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
    expected = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert turns(answers(model, tokenizer))[82][0] == expected


def test_the_second_prompt_holds_the_first_answer(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[str] = []

    def spy(self: Any, batch: Any) -> list[tuple[str, bool]]:
        prompts.extend(tokenizer.decode(ask.ids) for ask in batch)
        return [(f"answer {ask.turn}", False) for ask in batch]

    monkeypatch.setattr(mt_bench._Generation, "answer", spy)
    given = answers(model, tokenizer, QUESTIONS[:1])
    assert turns(given)[81] == ["answer 0", "answer 1"]
    assert prompts[1] == find_template("chatml").render(["writing?", "answer 0", "And now?"])


def test_out_of_memory_halves_the_batch_and_changes_no_answer(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = turns(answers(model, tokenizer))
    answer, sizes = mt_bench._Generation.answer, []

    def scarce(self: Any, batch: Any) -> list[tuple[str, bool]]:
        sizes.append(len(batch))
        found = answer(self, batch)
        if len(batch) > 2:
            raise torch.OutOfMemoryError("no memory")  # after the draws were made
        return found

    monkeypatch.setattr(mt_bench._Generation, "answer", scarce)
    assert turns(answers(model, tokenizer, batch_tokens=1000)) == expected
    assert max(sizes) > 2


def test_out_of_memory_with_one_question_is_out_of_memory(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: Any, batch: Any) -> list[tuple[str, bool]]:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(mt_bench._Generation, "answer", none)
    with pytest.raises(torch.OutOfMemoryError):
        answers(model, tokenizer)


def test_the_draw_is_from_the_softmax_of_the_likeliest(tokenizer: Any) -> None:
    logits = torch.linspace(0, 6, 200).flip(0)[None]
    ask = mt_bench._Ask(QUESTIONS[0], 0, [], torch_generator(3, "x"), 0.7)
    draw = mt_bench._Sampling([ask])
    n = 4000
    counts = Counter(int(draw(torch.zeros(1, 1), logits).argmax()) for _ in range(n))
    expected = (logits[0, :TOP_K].double() / 0.7).softmax(0)
    assert max(counts) < TOP_K
    chi = sum((counts[token] - n * float(p)) ** 2 / (n * float(p)) for token, p in enumerate(expected))
    assert chi < 85, "49 degrees of freedom: 0.1% lies above 85"


def test_greedy_rows_of_a_batch_are_left_alone() -> None:
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
    asks = [mt_bench._Ask(QUESTIONS[0], 0, [], torch_generator(1, "a"), t) for t in (0.0, 0.7)]
    found = mt_bench._Sampling(asks)(torch.zeros(2, 1), logits)
    assert torch.equal(found[0], logits[0])
    assert not torch.equal(found[1], logits[1])


def generation(model: Any, tokenizer: Any, template: str) -> Any:
    return mt_bench._Generation(model, tokenizer, find_template(template), 8)


@pytest.mark.parametrize(
    ("text", "answer", "at_the_limit"),
    [
        ("fine</s>more", "fine", False),
        (" fine<|im_end|>\nmore", "fine", False),
        ("<|im_end|>so<|im_end|>", "<|im_end|>so<|im_end|>", True),  # FastChat's find() > 0: one at the start stays
        ("fine <s> and on", "fine  and on", True),
        ("fine", "fine", True),
    ],
)
def test_an_answer_is_cut_as_fastchat_cuts_it(
    model: Any, tokenizer: Any, text: str, answer: str, at_the_limit: bool
) -> None:
    ids = tokenizer(text)["input_ids"]
    assert generation(model, tokenizer, "chatml")._cut(ids) == (answer, at_the_limit)


def test_a_stop_string_ends_a_row_as_soon_as_it_stands_there(tokenizer: Any) -> None:
    stop = mt_bench._StopStrings(tokenizer, ["###"], prompt_length=3)
    rows = [[0, 0, 0, *tokenizer(text)["input_ids"]] for text in ("good ###", "### good", "nothing ", "a" * 5 + "###")]
    assert stop(torch.tensor([row[:11] for row in rows]), None).tolist() == [True, False, False, True]


def test_a_special_token_of_the_template_ends_an_answer(model: Any, tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    made = generation(model, tokenizer, "chatml")
    assert made._stop_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert made._stop_strings == ()
    assert made._cut(tokenizer("so<|im_end|>on")["input_ids"]) == ("so", False)


def test_the_limit_of_tokens_is_counted_and_the_model_left_as_it_was(model: Any, tokenizer: Any) -> None:
    model.train()
    given = answers(model, tokenizer, max_new_tokens=3)
    assert model.training
    model.eval()
    assert given.num_cut == 10
    assert all(len(tokenizer(text)["input_ids"]) <= 3 * 3 for both in turns(given).values() for text in both)


def test_a_prompt_without_room_for_an_answer_is_refused(model: Any, tokenizer: Any) -> None:
    question = Question(81, "math", ("x" * 1100, "y"))
    with pytest.raises(HarnessError, match="question 81: its prompt has"):
        answers(model, tokenizer, (question,))


def test_the_file_is_fastchats(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    write_answers(file, answers(model, tokenizer, max_new_tokens=2))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [sorted(row) for row in rows] == [["answer_id", "choices", "model_id", "question_id", "tstamp"]] * 5
    assert len({row["answer_id"] for row in rows}) == 5
    assert rows[0]["model_id"] == "tiny"
