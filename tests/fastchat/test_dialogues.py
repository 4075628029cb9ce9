"""Conversations of several answers in every template of FastChat's: what carries loss, and which are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from harness.conversation import find_template
from harness.data.examples import encode
from harness.data.files import TrainingRow
from harness.data.showing import marked, pieces
from harness.errors import HarnessError
from harness.turns import Turn
from tests.records import TRAIN

try:
    from fastchat.conversation import conv_templates
except ModuleNotFoundError:  # collected wherever tests are, run by tox -e fastchat alone
    conv_templates: dict[str, Any] = {}

pytestmark = pytest.mark.fastchat

SETTINGS = TRAIN.model_copy(update={"prompt": "conversation", "sequence_length": 1 << 14})
SAID = ("What is it?", "That thing.", "And why?", "So it is.")
WITHOUT_TEXT = {"bard", "chatgpt", "gemini", "pplxai", "steerlm"}
REWRITE = {"yuan2"}
WITHOUT_SYSTEM = {"deepseek-coder", "yuan", *REWRITE}


def test_there_are_templates() -> None:
    assert len(conv_templates) > 80


def row(system: str | None) -> TrainingRow:
    turns = [Turn("user" if i % 2 == 0 else "assistant", said) for i, said in enumerate(SAID)]
    before = [] if system is None else [Turn("system", system)]
    return TrainingRow("q", "", "a", "t", (*before, *turns), place="row 7")


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("name", sorted(conv_templates))
def test_answers_and_what_closes_them_carry_loss_or_the_template_is_refused(
    name: str, system: str | None, tokenizer: Any
) -> None:
    if name in WITHOUT_TEXT | (REWRITE if system is None else WITHOUT_SYSTEM):
        said = "writes no text" if name in WITHOUT_TEXT else "rewrites turns"
        with pytest.raises(HarnessError, match=f"row 7: .*template '{name}'.* {said}"):
            encode(row(system), tokenizer, SETTINGS, find_template(name))
        return
    template = find_template(name)
    example = encode(row(system), tokenizer, SETTINGS, template)
    text = marked(pieces(example, tokenizer), example)
    answers = re.findall("⟦(.*?)⟧", text, re.DOTALL)
    assert len(answers) == 2
    for answer, said in zip(answers, SAID[1::2], strict=True):
        before, _, behind = answer.partition(said)
        assert not before.strip()
        assert "user" not in behind.lower() and "human" not in behind.lower()
    # What generation reads before an answer is what is read before it here.
    assert text.partition("⟦")[0].rstrip() == template.render(SAID[:1], system).rstrip()


def test_several_answers_end_as_fastchats_own_training_has_it(tokenizer: Any) -> None:
    # Source: lm-sys/FastChat, fastchat/train/train.py, preprocess: of a round what stands behind "ASSISTANT:", to sep2.
    example = encode(row(None), tokenizer, SETTINGS, find_template("vicuna_v1.1"))
    text = marked(pieces(example, tokenizer), example)
    assert text.endswith("USER: What is it? ASSISTANT:⟦ That thing.</s>⟧USER: And why? ASSISTANT:⟦ So it is.</s>⟧")
