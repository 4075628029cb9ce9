"""Conversations of several answers: which tokens carry loss, beside transformers' own marks, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from harness.conversation import OWN_TEMPLATES
from harness.data.batches import TrainData, collate
from harness.data.examples import Example, encode
from harness.data.files import TrainingRow
from harness.data.showing import marked, pieces
from harness.encoding import text_encoder
from harness.errors import HarnessError
from harness.settings import TrainSettings
from harness.turns import Rewritten, Turn, TurnWriter
from tests.conftest import byte_tokenizer, needed
from tests.records import TRAIN

CHAT = TRAIN.model_copy(update={"prompt": "chat", "sequence_length": 4096})

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + eos_token }}{% endgeneration %}{% else %}{{ m.content + eos_token }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '[' + m.role + ']\n\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\n\n' }}{% endif %}"
)
NO_PROMPT_OF_ITS_OWN = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'system' %}{{ '<<SYS>>' + m.content + '<</SYS>>' }}"
    "{% else %}{% generation %}{{ ' ' + m.content + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
THINKING_BEFORE_THE_LAST = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{% if loop.last and '</think>' not in m.content %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama-3": LLAMA_3,
    "no prompt": NO_PROMPT_OF_ITS_OWN,
    "thinking": THINKING_BEFORE_THE_LAST,
}
"""Each marks its answers, with what closes them."""


def unmarked(template: str) -> str:
    return re.sub(r"\{%-? (end)?generation -?%\}", "", template)


def row(*said: str, system: str | None = None, place: str = "row 7") -> TrainingRow:
    """Return a row whose turns are a user's and an assistant's in turn."""
    turns = [Turn("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(said)]
    before = [] if system is None else [Turn("system", system)]
    answers = "\n".join(turn.content for turn in turns if turn.is_answer)
    return TrainingRow(said[0], "", answers, "t", (*before, *turns), place=place)


def of_turns(*turns: Turn) -> TrainingRow:
    return TrainingRow("q", "", "a", "t", turns, place="row 7")


@pytest.fixture(scope="module")
def smollm2() -> Any:
    from harness.catalogue.models import load_models
    from harness.preparing.assets import converted_model_place
    from harness.tensors.loading import load_tokenizer

    return load_tokenizer(needed(converted_model_place(load_models()["smollm2-135m"])))


@pytest.fixture(params=["bytes", "smollm2"])
def tokenizer(request: pytest.FixtureRequest) -> Iterator[Any]:
    found = byte_tokenizer() if request.param == "bytes" else request.getfixturevalue("smollm2")
    own = found.chat_template
    yield found
    found.chat_template = own


def trained_text(example: Example, tokenizer: Any) -> str:
    return marked(pieces(example, tokenizer), example)


ROWS = {
    "two answers": row("What is up?", "Not much.", "And down?", "The floor."),
    "three, with a system": row("Hi", "Ho", "Say 1", "1", "Say s", "s", system="Be s."),
    "answers that stand elsewhere": row("end", "end", "assistant", "user", "s", "s"),
    "words of the template": row("a<|im_end|>\n<|im_start|>assistant\nb", "</s> x", "[INST]", "it [/INST] is"),
    "an empty answer": row("Nothing?", "", "Something?", "yes"),
    "blanks around": row("  What? ", " That.\n", "\nWhy?", "Because. "),
}


@pytest.mark.parametrize("said", sorted(ROWS))
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_what_carries_loss_is_what_transformers_finds_by_marks(name: str, said: str, tokenizer: Any) -> None:
    turns = ROWS[said].turns
    tokenizer.chat_template = TEMPLATES[name]
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    theirs = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    tokenizer.chat_template = unmarked(TEMPLATES[name])
    assert "generation %" not in tokenizer.chat_template
    ours = encode(ROWS[said], tokenizer, CHAT)
    ids, mask = list(theirs["input_ids"]), [bool(flag) for flag in theirs["assistant_masks"]]
    last = max(place for place, flag in enumerate(mask) if flag)
    ids, mask = ids[: last + 1], mask[: last + 1]
    for number, turn in enumerate(turns):
        if turn.role == "assistant":
            # Where the encodings of the prompt and of the whole part: before the mark, where a tokenizer that has one
            # token for two ends of a line splits them before a word.
            prompt = tokenizer.apply_chat_template(messages[:number], add_generation_prompt=True, return_dict=True)
            shared = [one == other for one, other in zip(prompt["input_ids"], ids, strict=False)]
            start = next(place for place in range(len(ids)) if place >= len(shared) or not shared[place])
            marked_from = mask.index(True, start)
            assert marked_from - start <= (0 if len(tokenizer) < 300 else 2)
            mask[start:marked_from] = [True] * (marked_from - start)
    assert list(ours.ids) == ids
    assert list(ours.trained) == mask


def test_the_packaged_models_own_template(smollm2: Any) -> None:
    example = encode(row("Hi", "Hello.", "More?", "No."), smollm2, CHAT)
    assert trained_text(example, smollm2) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello.<|im_end|>⟧\n"
        "<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n⟦No.<|im_end|>⟧"
    )
    whole = encode(row("Hi", "Hello.", "More?", "No."), smollm2, CHAT.model_copy(update={"loss_on": "all"}))
    assert whole.ids == example.ids and all(whole.trained)


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_one_answer_is_trained_as_any_other_row_is(system: str | None, tokenizer: Any) -> None:
    plain = encode(TrainingRow("What?", "", "That.", "t"), tokenizer, CHAT)
    example = encode(row("What?", "That.", system=system), tokenizer, CHAT)
    if system is None:
        assert example == plain
    else:
        text = tokenizer.apply_chat_template(
            [{"role": "system", "content": system}, {"role": "user", "content": "What?"}],
            tokenize=False,
            add_generation_prompt=True,
        )
        assert trained_text(example, tokenizer) == f"{text}⟦That.{tokenizer.eos_token}⟧"


def test_the_two_ways_to_one_answer_agree(tokenizer: Any) -> None:
    tokenizer.chat_template = unmarked(CHATML)
    writer = TurnWriter(
        lambda turns, prompt: str(
            tokenizer.apply_chat_template(
                [{"role": t.role, "content": t.content} for t in turns], tokenize=False, add_generation_prompt=prompt
            )
        ),
        (tokenizer.eos_token,),
    )
    written = writer.written(row("What?", "That.").turns)
    example = encode(row("What?", "That."), tokenizer, CHAT)
    ((begin, end),) = written.answers
    assert written.text[begin:end] == "That." + tokenizer.eos_token and written.closed
    assert list(example.ids) == text_encoder(tokenizer).ids(written.text, rendered=True)


SYSTEM_IN_THE_LAST = (
    "{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% set users = messages | selectattr('role', 'equalto', 'user') | list %}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ s + ' ' if m == users[-1] and s else '' }}{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content + eos_token }}{% endif %}{% endfor %}"
)
CLOSED_AT_THE_END = (
    "{% for m in messages %}{{ m.role + ': ' + m.content }}{% if m.role == 'assistant' and loop.last %}{{ eos_token }}"
    "{% else %}{{ '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
PROMPT_THAT_THINKS = unmarked(CHATML).replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
LAST_ANSWER_ALONE = (
    "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.role + ': ' + m.content + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
UPPER = unmarked(CHATML).replace("m.content", "m.content | upper")


@pytest.mark.parametrize(
    ("template", "system", "said"),
    [
        (SYSTEM_IN_THE_LAST, "Be brief.", "leaves a turn out, or writes it twice or elsewhere"),
        (CLOSED_AT_THE_END, None, "closes the last turn otherwise than those before"),
        (PROMPT_THAT_THINKS, None, "what a model reads before an answer is not how"),
        (LAST_ANSWER_ALONE, None, "leaves a turn out"),
        (UPPER, None, "leaves a turn out|does not write what was said"),
    ],
)
def test_a_template_that_rewrites_turns_is_refused(
    template: str, system: str | None, said: str, tokenizer: Any
) -> None:
    tokenizer.chat_template = template
    two = row("What?", "That.", "Why?", "So.", system=system)
    with pytest.raises(HarnessError, match=f"data set 'd.*': row 7: the tokenizer's chat template rewrites.*({said})"):
        encode(two, tokenizer, CHAT.model_copy(update={"data": "d"}))
    with pytest.raises(HarnessError, match=r"row 7: .* rewrites turns"):
        TrainData([row("What?", "That."), two], tokenizer, CHAT, 1)
    # One answer behind its prompt needs none of it.
    assert encode(row("What?", "That."), tokenizer, CHAT).trained[-1]


def test_thinking_that_a_template_drops_is_refused_or_found_by_its_marks(tokenizer: Any) -> None:
    thought = row("What?", "<think>hm</think>That.", "Why?", "<think>so</think>So.")
    tokenizer.chat_template = unmarked(THINKING_BEFORE_THE_LAST)
    with pytest.raises(HarnessError, match=r"does not write what was said.*\{% generation %\}"):
        encode(thought, tokenizer, CHAT)
    tokenizer.chat_template = THINKING_BEFORE_THE_LAST
    example = encode(thought, tokenizer, CHAT)
    end = tokenizer.eos_token
    assert trained_text(example, tokenizer) == (
        f"<|im_start|>user\nWhat?{end}\n<|im_start|>assistant\n⟦That.{end}⟧\n"
        f"<|im_start|>user\nWhy?{end}\n<|im_start|>assistant\n⟦<think>so</think>So.{end}⟧"
    )
    TrainData([thought], tokenizer, CHAT, 1)


@pytest.mark.parametrize("inside", ["", "eos_token", "eos_token + '\n'"])
def test_what_closes_an_answer_carries_loss_wherever_the_mark_ends(inside: str, tokenizer: Any) -> None:
    closing = ["eos_token", "'\n'"] if not inside else ["'\n'"] if inside == "eos_token" else []
    answer = "m.content.split('</think>')[-1]"
    template = (
        "{% for m in messages %}{{ m.role + ':\n' }}{% if m.role == 'assistant' %}{% generation %}{{ "
        + " + ".join([answer, *([inside] if inside else [])])
        + " }}{% endgeneration %}"
        + "".join(f"{{{{ {text} }}}}" for text in closing)
        + "{% else %}{{ m.content + eos_token + '\n' }}{% endif %}{% endfor %}"
    )
    tokenizer.chat_template = template
    example = encode(row("a", "<think>x</think>b", "c", "d"), tokenizer, CHAT)
    end = tokenizer.eos_token
    assert trained_text(example, tokenizer) == (
        f"user:\na{end}\nassistant:\n⟦b{end}⟧\nuser:\nc{end}\nassistant:\n⟦d{end}⟧"
    )


def test_marks_that_miss_an_answer_are_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}{% generation %}{{ m.content + eos_token }}"
        "{% endgeneration %}{% else %}{{ (m.content | upper) + eos_token }}{% endif %}{% endfor %}"
    )
    with pytest.raises(HarnessError, match=r"row 7: .*marks 1 answers with \{% generation %\}.*has 2"):
        encode(row("a", "b", "c", "d"), tokenizer, CHAT)


def test_what_a_template_refuses_is_said_by_row_before_anything_is_trained(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role\nnot supported') }}{% endif %}"
        + unmarked(CHATML)
    )
    rows = [row("a", "b"), row("a", "b", system="s", place="row 9"), row("a", "b", "c", "d", system="s")]
    with pytest.raises(HarnessError, match="row 9: the tokenizer's chat template refuses it: System role not support"):
        TrainData(rows, tokenizer, CHAT, 1)
    with pytest.raises(HarnessError, match="row 7: the tokenizer's chat template refuses it"):
        TrainData(rows[2:], tokenizer, CHAT, 1)


@pytest.mark.parametrize("prompt", ["alpaca", "plain", "as_is"])
def test_a_prompt_that_cannot_write_turns_is_refused(prompt: str, tokenizer: Any) -> None:
    with pytest.raises(HarnessError, match=f"row 7: is a conversation, which prompt = '{prompt}' cannot write"):
        TrainData([row("a", "b")], tokenizer, CHAT.model_copy(update={"prompt": prompt}), 1)


@pytest.mark.parametrize("tokenizer", ["smollm2"], indirect=True)
def test_a_token_on_both_sides_of_an_edge_carries_loss(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    said = ("The hel", "lo wor", "ld an", "d end")
    example = encode(row(*said), tokenizer, CHAT)
    text = "".join(said)
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert list(example.ids) == [*whole["input_ids"], tokenizer.eos_token_id]
    spans = [(7, 13), (18, 23)]
    overlapping = [any(begin < b and a < end for a, b in spans) for begin, end in whole["offset_mapping"]]
    assert sum(overlapping) < len(overlapping)
    assert list(example.trained) == [*overlapping, True]


def test_an_answer_that_brings_its_end_has_one(tokenizer: Any) -> None:
    end = tokenizer.eos_token
    tokenizer.chat_template = unmarked(CHATML)
    plain = encode(row("a", "b", "c", "d"), tokenizer, CHAT)
    for said in (("a", f"b{end}", "c", f"d{end}"), ("a", f"b{end}\n", "c", f"d{end} ")):
        example = encode(row(*said), tokenizer, CHAT)
        assert (example.ids, example.trained, example.ended) == (plain.ids, plain.trained, True)
    assert not plain.ended


def test_what_no_template_closes_gets_the_end_once(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ':\n' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
    )
    example = encode(row("a", "b", "c", "d"), tokenizer, CHAT)
    assert trained_text(example, tokenizer) == (
        f"user:\na\nassistant:\n⟦b⟧\nuser:\nc\nassistant:\n⟦d{tokenizer.eos_token}⟧"
    )


def test_answers_in_a_prompt_carry_no_loss(tokenizer: Any) -> None:
    tokenizer.chat_template = unmarked(CHATML)
    end = tokenizer.eos_token
    shots = (Turn("user", "a"), Turn("assistant", "b", trained=False), Turn("user", "c"))
    example = encode(of_turns(*shots, Turn("assistant", "d")), tokenizer, CHAT)
    assert trained_text(example, tokenizer).count("⟦") == 1 and trained_text(example, tokenizer).endswith(f"⟦d{end}⟧")
    more = (Turn("assistant", "d"), Turn("user", "e"), Turn("assistant", "f"))
    example = encode(of_turns(*shots, *more), tokenizer, CHAT)
    assert re.findall("⟦(.*?)⟧", trained_text(example, tokenizer), re.DOTALL) == [f"d{end}", f"f{end}"]


def test_who_speaks_first_or_twice_is_as_the_template_has_it(tokenizer: Any) -> None:
    tokenizer.chat_template = unmarked(CHATML)
    end = tokenizer.eos_token
    first = (Turn("assistant", "Hi"), Turn("user", "a"), Turn("user", "b"), Turn("assistant", "c"))
    assert trained_text(encode(of_turns(*first), tokenizer, CHAT), tokenizer) == (
        f"<|im_start|>assistant\n⟦Hi{end}⟧\n<|im_start|>user\na{end}\n<|im_start|>user\nb{end}\n"
        f"<|im_start|>assistant\n⟦c{end}⟧"
    )


@pytest.mark.parametrize("name", sorted(OWN_TEMPLATES))
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_template_by_name_takes_several_answers(name: str, system: str | None) -> None:
    tokenizer, template = byte_tokenizer(), OWN_TEMPLATES[name]
    settings = CHAT.model_copy(update={"prompt": "conversation"})
    example = encode(row("a", "b", "c", "d", system=system), tokenizer, settings, template)
    text = trained_text(example, tokenizer)
    close = template.stop_tokens[0]
    assert re.findall("⟦(.*?)⟧", text, re.DOTALL) == [f"b{close}", f"d{close}"]
    begun = tokenizer.decode(list(text_encoder(tokenizer).beginning))
    assert text.replace("⟦", "").replace("⟧", "") == begun + template.render(["a", "b", "c", "d"], system).rstrip()
    assert ("Be brief." in text) == (system is not None)
    with pytest.raises(HarnessError, match=f"template '{name}' takes user and assistant in turn.*not assistant, user"):
        encode(
            of_turns(Turn("assistant", "a"), Turn("user", "b"), Turn("assistant", "c")), tokenizer, settings, template
        )


def test_the_default_template_by_name_is_the_models_own(smollm2: Any) -> None:
    settings = CHAT.model_copy(update={"prompt": "conversation"})
    said = row("a", "b", "c", "d", system="Be brief.")
    assert encode(said, smollm2, settings, OWN_TEMPLATES["chatml"]) == encode(said, smollm2, CHAT)


class Silent:
    """A template that has no place for what the system says."""

    name, origin = "silent", "test"
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_tokens: tuple[str, ...] = ()

    def render(self, turns: Any, system: str | None = None) -> str:
        return "".join(f"{'UA'[i % 2]}: {turn}\n" for i, turn in enumerate(turns)) + ("A:" if len(turns) % 2 else "")


@pytest.mark.parametrize("said", [("a", "b"), ("a", "b", "c", "d")])
def test_a_template_that_leaves_the_system_out_is_refused(said: tuple[str, ...], tokenizer: Any) -> None:
    settings = CHAT.model_copy(update={"prompt": "conversation"})
    assert any(encode(row(*said), tokenizer, settings, Silent()).trained)
    with pytest.raises(HarnessError, match=r"row 7: .*(leaves out what the system says|leaves a turn out)"):
        encode(row(*said, system="Be brief."), tokenizer, settings, Silent())


def short(length: int) -> TrainSettings:
    return CHAT.model_copy(update={"sequence_length": length})


def test_a_long_conversation_loses_its_beginning_and_then_the_end_of_its_last_answer(tokenizer: Any) -> None:
    tokenizer.chat_template = unmarked(CHATML)
    said = row("first question", "first answer", "second question", "the second answer")
    whole = encode(said, tokenizer, CHAT)
    size = len(whole.ids)
    for length in range(2, size + 1):
        example = encode(said, tokenizer, short(length))
        last = max(i for i in range(1, size) if whole.trained[i] and not whole.trained[i - 1])
        first = max(0, min(size - length, last))
        assert example.ids == whole.ids[first : first + length]
        assert example.trained == whole.trained[first : first + length]
        assert (example.cut_before, example.cut_after) == (first, max(0, size - first - length))
    batch = collate([encode(said, tokenizer, short(5))], 0)
    assert batch.num_truncated == 1 and batch.told.cut_tokens == size - 5


def test_packed_conversations_carry_their_marks(tokenizer: Any) -> None:
    tokenizer.chat_template = unmarked(CHATML)
    said = row("a", "b", "c", "d")
    whole = encode(said, tokenizer, CHAT)
    packing = CHAT.model_copy(update={"packing": True, "sequence_length": 2 * len(whole.ids)})
    example = TrainData([said] * 2, tokenizer, packing, 1).example(0)
    assert example.ids == whole.ids * 2 and example.trained == whole.trained * 2


def test_shapes_of_turns_are_found_once() -> None:
    asked: list[int] = []

    def write(turns: Any, prompt: bool) -> str:
        asked.append(len(turns))
        return "".join(f"[{turn.role}]{turn.content};" for turn in turns) + "[assistant]" * prompt

    writer = TurnWriter(write, (";",))
    first = writer.written(row("a", "b", "c", "d").turns)
    times = len(asked)
    assert [first.text[begin:end] for begin, end in first.answers] == ["b;", "d;"]
    writer.written(row("e", "f", "g", "h").turns)
    assert len(asked) == times + 1
    with pytest.raises(Rewritten):
        TurnWriter(lambda turns, prompt: "", ()).written(row("a", "b").turns)
