"""One rule for special tokens and for where an answer begins, on tokenizers of every kind that users bring."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from harness.conversation import find_template
from harness.data.examples import encode, text_samples
from harness.encoding import TextEncoder, text_encoder
from harness.errors import HarnessError
from harness.evaluation.language_model import HarnessLM
from harness.settings import GeneralTextSettings
from tests.conftest import byte_tokenizer
from tests.records import TRAIN
from tests.unit.test_data import Row
from tests.unit.test_evaluation import ask, tiny

STYLES = ("alpaca", "as_is", "chat", "conversation", "plain")
BEGIN, END = 256, 257


@dataclass(frozen=True)
class Kind:
    """A tokenizer and what it puts around a text."""

    tokenizer: Any
    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()


def adding(single: str, before: tuple[int, ...] = (), behind: tuple[int, ...] = ()) -> Kind:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<s>", BEGIN), ("</s>", END)]
    )
    return Kind(tokenizer, before, behind)


def metaspace() -> Kind:
    """Return a tokenizer of LLaMA-2's and Mistral's kind: a space before every text, and a beginning."""
    letters = sorted({*map(chr, range(33, 127)), "\n", "▁"})
    vocabulary = {token: place for place, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    wrapped.chat_template = byte_tokenizer().chat_template
    return Kind(wrapped, (1,))


def prefixed() -> Kind:
    """Return a byte-level tokenizer that sets a space before every text (``add_prefix_space``), as RoBERTa's."""
    kind = adding("<s> $A </s>", (BEGIN,), (END,))
    kind.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return kind


KINDS = {
    "nothing": Kind(byte_tokenizer()),
    "beginning": adding("<s> $A", (BEGIN,)),
    "end": adding("$A </s>", (), (END,)),
    "both": adding("<s> $A </s>", (BEGIN,), (END,)),
    "two ends": adding("<s> $A </s> </s>", (BEGIN,), (END, END)),
    "space before every text": metaspace(),
    "space and both": prefixed(),
}


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def trained_text(kind: Kind, row: Row, **changes: Any) -> tuple[str, str]:
    """Return an example's text, and the part of it that carries loss."""
    template = find_template("chatml") if changes.get("prompt") == "conversation" else None
    example = encode(row, kind.tokenizer, TRAIN.model_copy(update={"sequence_length": 1000, **changes}), template)
    begin = example.trained.index(True)
    assert all(example.trained[begin:])
    decode = kind.tokenizer.decode
    whole, prompt = decode(list(example.ids)), decode(list(example.ids[:begin]))
    assert whole.startswith(prompt)
    return whole, whole[len(prompt) :]


def test_what_a_tokenizer_adds_is_told(kind: Kind) -> None:
    text = text_encoder(kind.tokenizer)
    assert (text.beginning, text.left_out) == (kind.before, kind.behind)
    assert text_encoder(text) is text
    facts = text.facts()
    assert facts.beginning == ("<s>",) * len(kind.before) and facts.left_out == ("</s>",) * len(kind.behind)
    assert facts.end == "</s>"


def test_a_beginning_stands_once_and_an_added_end_never(kind: Kind) -> None:
    text, end = text_encoder(kind.tokenizer), kind.tokenizer.eos_token_id
    for words in ("Say hi", "<s>Say hi", "", "Say\n"):
        ids = text.ids(words)
        assert tuple(ids[: len(kind.before)]) == kind.before
        assert ids.count(kind.tokenizer.bos_token_id) == (1 if kind.before or words.startswith("<s>") else 0)
        assert end not in ids
    assert text.ids("Say hi</s>").count(end) == 1, "an end that the text itself holds stays"


@pytest.mark.parametrize("style", STYLES)
def test_prompt_and_answer_are_the_rendered_text_and_one_end(kind: Kind, style: str) -> None:
    whole, trained = trained_text(kind, Row("Say hi", "the answer"), prompt=style)
    closing = "<|im_end|>" if style == "conversation" else "</s>"
    between = " " if style == "as_is" else ""
    assert trained == f"{between}the answer{closing}"
    assert whole.count(closing) == (2 if style in ("chat", "conversation") else 1)
    assert "  " not in whole and "\n the" not in whole and ":  the" not in whole


@pytest.mark.parametrize("style", ["alpaca", "plain"])
def test_no_space_is_trained_that_the_text_has_not(style: str) -> None:
    """Encoded apart, LLaMA-2's tokenizer puts a space before the answer."""
    kind = KINDS["space before every text"]
    example = encode(Row("Say", "hi"), kind.tokenizer, TRAIN.model_copy(update={"prompt": style}))
    trained = [token for token, flag in zip(example.ids, example.trained, strict=True) if flag]
    assert kind.tokenizer.convert_ids_to_tokens(trained) == ["h", "i", "</s>"]


@pytest.mark.parametrize("tail", ["</s>", "</s>\n", " </s> \n"])
@pytest.mark.parametrize("style", ["as_is", "plain", "alpaca"])
def test_a_text_that_ends_with_the_end_gets_no_other(kind: Kind, style: str, tail: str) -> None:
    row = Row("" if style == "as_is" else "Say", f"hi{tail}")
    whole, _ = trained_text(kind, row, prompt=style)
    assert whole.count("</s>") == 1
    # A normalizer of LLaMA-2's kind writes a space behind each special token.
    assert whole.replace(" ", "").endswith(f"hi{tail}".replace(" ", ""))


def test_an_end_inside_an_answer_is_text_and_the_example_ends_all_the_same(kind: Kind) -> None:
    _, trained = trained_text(kind, Row("Say", "one</s>two"), prompt="plain")
    assert trained.replace(" ", "") == "one</s>two</s>"


def test_a_rendered_text_holds_beginning_and_end_once(kind: Kind) -> None:
    example = encode(Row("", "<s>user: 1+1</s>"), kind.tokenizer, TRAIN.model_copy(update={"prompt": "as_is"}))
    ids, tokenizer = list(example.ids), kind.tokenizer
    assert (ids.count(tokenizer.bos_token_id), ids.count(tokenizer.eos_token_id)) == (1, 1)
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert example.ended and example.begun == bool(kind.before)


def test_a_chat_template_writes_its_special_tokens_itself() -> None:
    """A tokenizer with a beginning and a template that writes it: once; one that does not: none is added."""
    kind = adding("<s> $A", (BEGIN,))
    example = encode(Row("Say", "hi"), kind.tokenizer, TRAIN.model_copy(update={"prompt": "chat"}))
    assert kind.tokenizer.decode(list(example.ids)) == "<s>user: Say</s><s>assistant: hi</s>"
    kind.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}" + (
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    example = encode(Row("Say", "hi"), kind.tokenizer, TRAIN.model_copy(update={"prompt": "chat"}))
    assert kind.tokenizer.decode(list(example.ids)) == "[user] Say\n[assistant] hi</s>"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            "[INST] {{ messages[0].content }} [/INST]{% if messages[1] %} {{ messages[1].content }}</s>{% endif %}",
            " hi",
        ),
        ("{{ messages[0].content }}{% if messages[1] %}|{{ messages[1].content|upper }}{% else %}|{% endif %}", "hi"),
        ("{{ messages[0].content }}{% if messages[1] %}|{{ messages[1].content }}{% else %}|<think>{% endif %}", "hi"),
    ],
    ids=["a space of the template's", "rewrites answers", "another prompt for generation"],
)
def test_an_answer_stands_in_a_chat_as_the_template_sets_it(template: str, text: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    _, trained = trained_text(Kind(tokenizer), Row("Say", "hi"), prompt="chat")
    assert trained == f"{text}</s>"


@pytest.mark.parametrize("answer", ["end", "e", "|", "im_end", "hi<|im_end|>"])
def test_an_answer_that_stands_in_the_closing_text_too_is_closed_once(answer: str) -> None:
    kind = KINDS["nothing"]
    _, trained = trained_text(kind, Row("Say", answer), prompt="conversation")
    assert trained == f"{answer.removesuffix('<|im_end|>')}<|im_end|>"


def test_a_token_that_straddles_prompt_and_answer_is_the_answers() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: place for place, character in enumerate([*alphabet, "Ċ-", "</s>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "-")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    example = encode(Row("Say", "- hi"), wrapped, TRAIN)
    assert wrapped.decode(list(example.ids)) == "Say\n- hi</s>"
    trained = [token for token, flag in zip(example.ids, example.trained, strict=True) if flag]
    assert wrapped.convert_ids_to_tokens(trained)[0] == "Ċ-"
    assert len(example.ids) - len(trained) == len("Say")


def test_samples_of_running_text_hold_no_special_token(kind: Kind) -> None:
    settings = GeneralTextSettings(data="d", num_samples=2, sequence_length=6)
    samples = text_samples(["abc", "def", "ghi"], kind.tokenizer, settings, "general")
    assert not {kind.tokenizer.bos_token_id, kind.tokenizer.eos_token_id} & {token for ids in samples for token in ids}


def test_scores_rolled_texts_and_prompts_hold_no_added_end(kind: Kind) -> None:
    torch.manual_seed(0)
    model = tiny(vocab_size=400)
    lm = HarnessLM(model, kind.tokenizer, device="cpu", batch_tokens=256)
    end = kind.tokenizer.eos_token_id
    for text in ("Is it so?", " yes", "<s>Is it so?"):
        assert end not in lm.tok_encode(text)
        assert lm.tok_encode(text, add_special_tokens=False) == kind.tokenizer.encode(text, add_special_tokens=False)
    pairs = lm.loglikelihood(ask("loglikelihood", ("Is it so?", " yes"), ("Is it so?", " no")))
    assert not math.isclose(pairs[0][0], pairs[1][0], abs_tol=1e-6)
    assert [count for _, count in lm.token_counts] == [4, 3]


def test_prompts_of_generation_are_those_of_training(kind: Kind) -> None:
    text, template = text_encoder(kind.tokenizer), find_template("chatml")
    prompt = text.ids(template.render(["Say hi"]))
    settings = TRAIN.model_copy(update={"prompt": "conversation", "sequence_length": 1000})
    example = encode(Row("Say hi", "hi"), kind.tokenizer, settings, template)
    assert list(example.ids[: len(prompt)]) == prompt
    assert not any(example.trained[: len(prompt)]) and all(example.trained[len(prompt) :])


def test_a_tokenizer_that_writes_inside_a_text_is_refused() -> None:
    class Odd:
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [5, 1, 6] if add_special_tokens else [5, 6]

    with pytest.raises(HarnessError, match="puts special tokens inside a text"):
        text_encoder(Odd())


@pytest.mark.parametrize(
    ("text", "blank"),
    [
        ("", True),
        (" \n\t", True),
        ("\u200b\ufeff", True),
        ("<s></s>", True),
        (" </s>\n", True),
        ("a", False),
        (".", False),
    ],
)
def test_a_text_is_blank_that_shows_nothing(text: str, blank: bool) -> None:
    assert text_encoder(KINDS["both"].tokenizer).is_blank(text) is blank
    assert isinstance(text_encoder(KINDS["both"].tokenizer), TextEncoder)
