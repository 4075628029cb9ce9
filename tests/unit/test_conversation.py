"""Conversation templates: exact texts, and one text for training and generation."""

from __future__ import annotations

from typing import Any

import pytest

from harness import conversation
from harness.conversation import find_template, training_turn
from harness.data.batches import TrainData, validation_batches
from harness.data.examples import encode
from harness.errors import HarnessError
from tests.records import TRAIN
from tests.unit.test_data import Row

SETTINGS = TRAIN.model_copy(update={"prompt": "conversation", "sequence_length": 512})
EOS = 257


def test_ours_for_llama_3_is_metas_chat_format() -> None:
    text = find_template("llama-3").render(["Hi", "Hello", "More?"])
    assert text == (
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nMore?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_ours_for_chatml() -> None:
    text = find_template("chatml").render(["Hi {x}", "Hello", "More?"])
    assert text == (
        "<|im_start|>user\nHi {x}<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_is_never_guessed() -> None:
    pytest.importorskip("fastchat")
    for name in ("llama-3-8b", "Meta-Llama-3-8B-Instruct", "vicuna"):
        with pytest.raises(HarnessError, match=f"no conversation template '{name}'"):
            find_template(name)


def test_without_fschat_its_templates_are_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "find_spec", lambda name: None)
    assert find_template("llama-3").origin == "harness"
    with pytest.raises(HarnessError, match=r"'llama-2' .* pip install fschat, .* '\.\[mt-bench\]'"):
        find_template("llama-2")


@pytest.mark.parametrize(
    ("name", "whole", "closed"),
    [
        ("llama-2", "[INST] Q? [/INST] A. </s>", True),
        ("mistral", "[INST] Q? [/INST] A.</s>", True),
        ("vicuna_v1.1", "USER: Q? ASSISTANT: A.</s>", True),
        ("one_shot", "### Human: Q?\n### Assistant: A.\n###", True),
        ("llama-3", "assistant<|end_header_id|>\n\nA.<|eot_id|>", True),
        ("zero_shot", "### Human: Q?\n### Assistant: A.\n###", True),
        ("raw", "Q?A.", False),
    ],
)
def test_a_training_turn_ends_where_generation_stops(name: str, whole: str, closed: bool) -> None:
    if name not in conversation.OWN_TEMPLATES:
        pytest.importorskip("fastchat")
    turn = training_turn(find_template(name), "Q?", "A.", "</s>")
    assert turn.whole.endswith(whole)
    assert turn.closed == closed
    assert turn.prompt == find_template(name).render(["Q?"])


def test_training_prompt_and_generation_prompt_are_the_same_tokens(tokenizer: Any) -> None:
    template = find_template("chatml")
    example = encode(Row("Say hi", "hi"), tokenizer, SETTINGS, template)
    prompt = tokenizer(template.render(["Say hi"]))["input_ids"]
    assert list(example.ids[: len(prompt)]) == prompt
    assert example.trained == (*(False for _ in prompt), *(True for _ in example.ids[len(prompt) :]))
    # These bytes are no special token of this tokenizer: the closing text is trained as it stands.
    assert tokenizer.decode(example.ids[len(prompt) :]) == "hi<|im_end|>"


def test_an_input_stands_below_the_instruction_and_an_open_answer_gets_its_end(tokenizer: Any) -> None:
    pytest.importorskip("fastchat")
    example = encode(Row("Say {hi}", "hi", "loudly"), tokenizer, SETTINGS, find_template("raw"))
    assert tokenizer.decode(example.ids) == "Say {hi}\n\nloudlyhi</s>"
    assert example.ids[-1] == EOS
    assert encode(Row("Say", ""), tokenizer, SETTINGS, find_template("raw")).ids[-1] == EOS


def test_the_end_of_sequence_stands_once(tokenizer: Any) -> None:
    pytest.importorskip("fastchat")
    example = encode(Row("Q", "A"), tokenizer, SETTINGS, find_template("vicuna_v1.1"))
    assert example.ids[-1] == EOS
    assert example.ids.count(EOS) == 1
    assert tokenizer.decode(example.ids).endswith("USER: Q ASSISTANT: A</s>")


def test_packing_and_validation_take_the_template_too(tokenizer: Any) -> None:
    template = find_template("chatml")
    rows = [Row("Say hi", "hi")] * 4
    whole = encode(rows[0], tokenizer, SETTINGS, template).ids
    packed = SETTINGS.model_copy(update={"packing": True, "sequence_length": 2 * len(whole)})
    assert TrainData(rows, tokenizer, packed, 1, template).example(0).ids == whole * 2
    held = SETTINGS.model_copy(update={"validation_rows": 1})
    (batch,) = validation_batches(rows, tokenizer, held, template)
    assert batch.input_ids[0].tolist() == list(whole)


def test_too_long_a_prompt_loses_its_beginning_and_keeps_the_answer(tokenizer: Any) -> None:
    short = SETTINGS.model_copy(update={"sequence_length": 20})
    example = encode(Row("Say hi", "hi"), tokenizer, short, find_template("chatml"))
    assert tokenizer.decode(example.ids) == "sistant\nhi<|im_end|>"
    assert example.truncated
