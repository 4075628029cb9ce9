"""Training examples: which tokens carry loss, truncation, packing, order."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

import pytest
import torch

from harness.data.batches import IGNORED, RowCounts, TrainData, collate, general_batches, validation_batches
from harness.data.examples import Example, encode, pack
from harness.errors import HarnessError
from harness.settings import GeneralTextSettings
from tests.records import TRAIN

EOS = 257


@dataclass(frozen=True)
class Row:
    instruction: str
    output: str
    input: str = ""
    turns: tuple[()] = ()
    place: str = ""


def text_of(tokenizer: Any, ids: Any) -> str:
    return str(tokenizer.decode(ids))


def test_only_the_answer_and_its_end_carry_loss(tokenizer: Any) -> None:
    example = encode(Row("Say hi", "hi"), tokenizer, TRAIN)
    trained = [token for token, flag in zip(example.ids, example.trained, strict=True) if flag]
    assert text_of(tokenizer, example.ids) == "Say hi\nhi</s>"
    assert text_of(tokenizer, trained) == "hi</s>"


def test_loss_on_all_covers_the_prompt_too(tokenizer: Any) -> None:
    example = encode(Row("Say hi", "hi"), tokenizer, TRAIN.model_copy(update={"loss_on": "all"}))
    assert all(example.trained)


def test_alpaca_prompt_names_the_input_only_where_there_is_one(tokenizer: Any) -> None:
    settings = TRAIN.model_copy(update={"prompt": "alpaca", "sequence_length": 1000})
    plain = text_of(tokenizer, encode(Row("Say {hi}", "hi"), tokenizer, settings).ids)
    given = text_of(tokenizer, encode(Row("Say {hi}", "hi", "loudly"), tokenizer, settings).ids)
    assert "### Input" not in plain
    assert plain.endswith("### Instruction:\nSay {hi}\n\n### Response:\nhi</s>")
    assert "### Input:\nloudly\n\n### Response:\nhi</s>" in given


def test_chat_prompt_is_the_tokenizers_template(tokenizer: Any) -> None:
    settings = TRAIN.model_copy(update={"prompt": "chat"})
    example = encode(Row("Say hi", "hi"), tokenizer, settings)
    assert text_of(tokenizer, example.ids) == "<s>user: Say hi</s><s>assistant: hi</s>"


def test_a_long_prompt_loses_its_beginning_and_the_answer_stays(tokenizer: Any) -> None:
    settings = TRAIN.model_copy(update={"sequence_length": 8})
    example = encode(Row("0123456789", "abc"), tokenizer, settings)
    assert example.truncated
    assert text_of(tokenizer, example.ids) == "789\nabc</s>"
    only_answer = encode(Row("0123456789", "abcdefghijk"), tokenizer, settings)
    assert text_of(tokenizer, only_answer.ids) == "abcdefgh"


def test_packing_concatenates_and_cuts(tokenizer: Any) -> None:
    examples = [encode(Row("a", "bcd"), tokenizer, TRAIN), encode(Row("e", "fgh"), tokenizer, TRAIN)]
    packed = pack(examples, 5)
    assert [text_of(tokenizer, example.ids) for example in packed] == ["a\nbcd", "</s>e\nfg"]
    assert packed[0].trained == (False, False, True, True, True)


def test_what_packing_leaves_out_is_counted(tokenizer: Any) -> None:
    settings = TRAIN.model_copy(update={"packing": True, "sequence_length": 4, "prompt": "plain"})
    data = TrainData([Row("0123456789", "a"), Row("b", "cde")], tokenizer, settings, seed=1)  # 13 and 6 tokens
    assert len(data) == 2
    assert data.packing_counts == {"num_packed_tokens": 8, "num_unpacked_tokens": 3, "num_untrained_rows": 2}
    assert TrainData([Row("a", "b")], tokenizer, TRAIN, seed=1).packing_counts == {}


def test_padding_carries_no_loss_and_is_masked(tokenizer: Any) -> None:
    batch = collate([encode(Row("a", "bcd"), tokenizer, TRAIN), encode(Row("a", "b"), tokenizer, TRAIN)], pad_id=EOS)
    assert batch.input_ids.shape == (2, 6)
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1] * 6, [1] * 4 + [0] * 2]
    assert batch.labels[1].tolist()[:2] == [IGNORED, IGNORED]
    assert batch.labels[1].tolist()[4:] == [IGNORED, IGNORED]
    assert (batch.num_tokens, batch.num_trained_tokens) == (10, 6)


def test_rows_that_lost_tokens_are_counted(tokenizer: Any) -> None:
    settings = TRAIN.model_copy(update={"sequence_length": 8})
    texts = ("0123456789", "a", "9876543210")
    batch = collate([encode(Row(text, "b"), tokenizer, settings) for text in texts], pad_id=EOS)
    assert batch.num_truncated == 2
    assert batch.to(torch.device("cpu")).num_truncated == 2


def test_rows_of_one_length_need_no_mask(tokenizer: Any) -> None:
    row = encode(Row("a", "b"), tokenizer, TRAIN)
    assert collate([row, row], pad_id=EOS).attention_mask is None


def rows(count: int) -> list[Row]:
    return [Row(f"{index:03d}", "x" * (1 + index % 5)) for index in range(count)]


def seen(tokenizer: Any, seed: int, steps: int, first: int = 0) -> list[list[list[int]]]:
    data = TrainData(rows(7), tokenizer, TRAIN.model_copy(update={"gradient_accumulation_steps": 2}), seed)
    return [[batch.input_ids.tolist() for batch in step] for step in islice(data.step_batches(first), steps)]


def test_the_order_is_the_seeds_and_can_be_entered_at_any_step(tokenizer: Any) -> None:
    whole = seen(tokenizer, seed=1, steps=6)
    assert seen(tokenizer, seed=1, steps=6) == whole
    assert seen(tokenizer, seed=2, steps=6) != whole
    assert seen(tokenizer, seed=1, steps=3, first=3) == whole[3:]


def test_an_epoch_sees_every_row_once(tokenizer: Any) -> None:
    data = TrainData(rows(8), tokenizer, TRAIN, seed=3)
    firsts = [tuple(ids[:3]) for step in islice(data.step_batches(), 4) for b in step for ids in b.input_ids.tolist()]
    assert len(set(firsts)) == 8


def test_steps_follow_from_epochs_rows_and_accumulation(tokenizer: Any) -> None:
    settings = TRAIN.model_copy(update={"num_steps": None, "num_epochs": 1.5, "gradient_accumulation_steps": 2})
    data = TrainData(rows(10), tokenizer, settings, seed=1)
    assert data.num_steps(None) == 4  # 15 rows in steps of 4
    assert data.num_steps(2) == 2


def test_nothing_to_train_on_is_one_sentence(tokenizer: Any) -> None:
    with pytest.raises(HarnessError, match="no example with a token to train on"):
        TrainData([], tokenizer, TRAIN, seed=1)


def test_rows_of_special_tokens_alone_are_left_out_before_batching(tokenizer: Any) -> None:
    settings = TRAIN.model_copy(update={"prompt": "as_is", "loss_on": "all", "batch_size": 1})
    given = [Row("", text) for text in ("</s>", "a", "<s></s>\n", "b", "</s>", "c")]
    data = TrainData(given, tokenizer, settings, seed=1)
    assert (len(data), data.num_blank) == (3, 3)
    for (batch,) in islice(data.step_batches(), 9):
        assert batch.num_trained_tokens == 1
    with pytest.raises(HarnessError, match="no example with a token to train on"):
        TrainData(given[:1], tokenizer, settings, seed=1)
    held = validation_batches(given, tokenizer, settings.model_copy(update={"validation_rows": 2}))
    assert [batch.input_ids.tolist() for batch in held] == [[[97 - 33, EOS]], [[98 - 33, EOS]]]
    with pytest.raises(HarnessError, match="its held-out rows hold no token"):
        validation_batches(given[:1], tokenizer, settings.model_copy(update={"validation_rows": 1}))


def test_a_step_without_a_token_to_train_on_is_never_a_loss_of_nothing(tokenizer: Any) -> None:
    data = TrainData([Example((5, 6), (False, False))], tokenizer, TRAIN, seed=1)
    with pytest.raises(HarnessError, match="the 2 rows of a step hold no token to train on"):
        next(data.step_batches())


@pytest.mark.parametrize("packing", [False, True])
def test_a_sequence_of_one_token_is_refused(packing: bool, tokenizer: Any) -> None:
    settings = TRAIN.model_copy(update={"sequence_length": 1, "packing": packing})
    with pytest.raises(HarnessError, match="sequence_length = 1 leaves no token that another could predict"):
        TrainData(rows(3), tokenizer, settings, seed=1)
    general = GeneralTextSettings(data="d", num_samples=1, sequence_length=1)
    with pytest.raises(HarnessError, match=r"\[general\]: sequence_length = 1"):
        general_batches(["abc"], tokenizer, general, TRAIN)


@pytest.mark.parametrize("style", ["alpaca", "as_is", "chat", "plain"])
@pytest.mark.parametrize("length", [2, 3, 8])
@pytest.mark.parametrize("loss_on", ["all", "answer"])
def test_whatever_is_cut_every_row_keeps_a_token_to_train_on(
    style: str, length: int, loss_on: str, tokenizer: Any
) -> None:
    settings = TRAIN.model_copy(update={"prompt": style, "sequence_length": length, "loss_on": loss_on})
    given = [Row("do it", text) for text in ("a", "</s>a", "a</s>", "abcdefghij")] + [Row("", "a"), Row("", "a</s>")]
    for row in given:
        assert collate([encode(row, tokenizer, settings)], EOS).num_trained_tokens > 0


def test_what_was_cut_is_counted_in_tokens_and_answers(tokenizer: Any) -> None:
    settings = TRAIN.model_copy(update={"sequence_length": 8})
    batch = collate([encode(Row("0123456789", text), tokenizer, settings) for text in ("abc", "abcdefghijk")], EOS)
    # Of the first the prompt lost 7 of its 11 tokens, of the second all, and the answer 4 of 12.
    assert batch.told == RowCounts(cut_tokens=7 + 11 + 4, cut_answers=1)
    assert batch.told + RowCounts(begun=1, cut_tokens=1) == RowCounts(cut_tokens=23, cut_answers=1, begun=1)


def test_general_text_is_cut_to_samples_of_which_every_token_counts(tokenizer: Any) -> None:
    settings = GeneralTextSettings(data="d", num_samples=5, sequence_length=8)
    train = TRAIN.model_copy(update={"batch_size": 2, "sequence_length": 12})
    batches = general_batches(["abcdefgh" * 3, "ij" * 20], tokenizer, settings, train)
    assert [batch.input_ids.shape for batch in batches] == [(3, 8), (2, 8)]  # 24 tokens at once at most
    assert sum(batch.num_trained_tokens for batch in batches) == 5 * 7
    assert text_of(tokenizer, batches[1].input_ids[0]) == "\n\nijijij"
    with pytest.raises(HarnessError, match="general data 'd' holds 5 tokens, fewer than the 40"):
        general_batches(["abc"], tokenizer, settings, train)


def test_the_held_out_batch_is_the_first_rows_unpacked(tokenizer: Any) -> None:
    settings = TRAIN.model_copy(update={"validation_rows": 3, "packing": True})
    batches = validation_batches(rows(9), tokenizer, settings)
    assert [len(batch.input_ids) for batch in batches] == [2, 1]
    assert torch.equal(batches[1].input_ids, torch.tensor([[*encode(rows(3)[2], tokenizer, TRAIN).ids]]))
