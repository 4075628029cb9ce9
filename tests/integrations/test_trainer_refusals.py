"""What cannot be right in a Trainer is refused, before the first step, in one sentence that says why."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset

from harness.errors import HarnessError, Refused
from harness.integrations.transformers import calibration_samples, prepare
from tests.trainer import UNTRAINED, examples, features, prepared, tiny_model, trainer_of, training_arguments, weights

IN_BACKWARD = {"update_in_backward": True}
REENTRANT = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}

BY_ARGUMENTS: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("full", {"fp16": True}, {}, "fp16 multiplies the loss by a scale"),
    ("full", {"optim": "adafactor"}, {}, "optim = .*would be ignored"),
    ("full", {"optim_args": "rank=4"}, {}, "optim_args = 'rank=4' would be ignored"),
    ("galore", {"optim_target_modules": ["q_proj"]}, {}, "optim_target_modules"),
    ("lora", {"adam_beta2": 0.95}, {}, "adam_beta2 = 0.95 would be ignored"),
    ("full", {"weight_decay": 0.1}, {}, r"weight_decay = 0.1 would be ignored.*settings=\{'weight_decay'"),
    ("galore-layerwise", {"max_grad_norm": 1.0}, {}, "max_grad_norm = 1.0 .* would clip nothing"),
    ("lisa", {"max_grad_norm": 1.0}, IN_BACKWARD, "would clip nothing: set max_grad_norm = 0"),
    ("lisa", {"max_grad_norm": 1.0}, {"two_pass_clipping": True}, "a Trainer makes one"),
    (
        "lisa",
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
        {},
        "use_",
    ),
    ("full", {"auto_find_batch_size": True}, {}, "auto_find_batch_size begins again"),
    ("full", {"restore_callback_states_from_checkpoint": True}, {}, "makes a new callback"),
    ("full", {"max_steps": -1}, {}, r"set max_steps in TrainingArguments, or give prepare\(..., num_steps=N\)"),
    ("full", {"learning_rate": 0.0}, {}, "learning_rate"),
    ("full", {}, {"learning_rate": 1e-3}, "give it in its TrainingArguments"),
    ("full", {}, {"ranks": 3}, "has no setting 'ranks'"),
    ("full", {}, {"master_weights": True}, "no effect on fp32 weights"),
    ("full", {}, {"quantization": "nf4"}, "takes? .*adapter"),
]


@pytest.mark.parametrize(("label", "changes", "settings", "said"), BY_ARGUMENTS, ids=lambda value: str(value)[:40])
def test_arguments_are_refused_as_a_label_is_prepared(
    label: str, changes: dict[str, Any], settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(HarnessError, match=said):
        prepare(label, tiny_model(), training_arguments(tmp_path, **changes), settings=settings)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("deepspeed", {"zero_optimization": {"stage": 2}}, "DeepSpeed and FSDP"),
        ("fsdp", True, "DeepSpeed and FSDP"),
        ("_n_gpu", 2, "spread over 2 devices"),
    ],
)
def test_several_devices_are_refused(name: str, value: Any, said: str, tmp_path: Path) -> None:
    args = training_arguments(tmp_path)
    assert args.n_gpu < 2
    setattr(args, name, value)
    with pytest.raises(Refused, match=said):
        prepared("lisa", args)


@pytest.mark.parametrize("label", UNTRAINED)
def test_a_label_that_trains_nothing_is_refused(label: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=f"label '{label}' trains nothing"):
        prepared(label, training_arguments(tmp_path))


def test_an_unknown_label_gets_a_near_miss(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="there is no label 'owlor'; did you mean 'owlore'"):
        prepare("owlor", tiny_model(), training_arguments(tmp_path))


@pytest.mark.parametrize("label", ["owlore", "ows-fullrank"])
def test_a_label_with_scores_of_text_needs_the_text(label: str, tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(Refused, match="give calibration = calibration_samples"):
        prepare(label, tiny_model(), training_arguments(tmp_path))
    with pytest.raises(HarnessError, match="fewer than the 400 that 4 samples of 100 need"):
        calibration_samples(["too little"], tokenizer, num_samples=4, sequence_length=100)
    samples = calibration_samples(["enough"] * 9, tokenizer, num_samples=2, sequence_length=20)
    assert [tuple(sample.shape) for sample in samples] == [(1, 20)] * 2 and samples[0].dtype == torch.int64
    wrong: list[Any] = [[samples[0][0]], [samples[0].tolist()], [samples[0].int()], torch.cat(samples), "abc"]
    for given in wrong:
        with pytest.raises(Refused, match=r"calibration takes tensors of token ids, each \(1, tokens\) int64"):
            prepare(label, tiny_model(), training_arguments(tmp_path), calibration=given)


@pytest.mark.parametrize(
    ("label", "given", "said"),
    [
        ("lisa", {"seed": "a"}, "prepare: 'a' is no seed"),
        ("lisa", {"seed": True}, "prepare: True is no seed"),
        ("lisa", {"seed": 2**32}, "prepare: 4294967296 is no seed"),
        ("lora", {"settings": ["rank"]}, "prepare: settings takes names with their values"),
        ("lisa", {"num_steps": "a"}, "the number of optimizer steps is a whole number, not 'a'"),
        (None, {}, "prepare: a label is a name, not None"),
    ],
)
def test_what_is_of_another_type_is_one_sentence(label: Any, given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=said):
        prepare(label, tiny_model(), training_arguments(tmp_path), **given)


def test_a_model_that_is_no_plain_one_is_refused(tmp_path: Path) -> None:
    args = training_arguments(tmp_path)
    with pytest.raises(Refused, match="weights are float16"):
        prepared("full", args, model=tiny_model(torch.float16))
    mixed = tiny_model()
    mixed.lm_head.to(torch.bfloat16)
    with pytest.raises(Refused, match="weights are bfloat16 and float32"):
        prepared("full", args, model=mixed)
    with pytest.raises(Refused, match="has an adapter already"):
        prepared("lora", args, model=prepared("lora", args).model)
    packed = tiny_model()
    packed.is_quantized = True
    with pytest.raises(Refused, match="quantized already"):
        prepared("qlora", args, model=packed)


def test_4_bit_weights_without_bitsandbytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(Refused, match="bitsandbytes"):
        prepared("qlora", training_arguments(tmp_path))


def test_a_trainer_with_another_optimizer_is_refused_as_it_is_made(tmp_path: Path) -> None:
    args = training_arguments(tmp_path)
    made = prepared("galore", args)
    with pytest.raises(Refused, match=r"an optimizer of its own.*optimizers=\(prepared.optimizer, None\)"):
        trainer_of(made, args, optimizers=(None, None))
    other = torch.optim.AdamW(made.model.parameters())
    with pytest.raises(Refused, match="steps a AdamW of its own"):
        trainer_of(made, args, optimizers=(other, None))


def test_a_callback_that_comes_late_refuses_before_the_first_step(tmp_path: Path) -> None:
    args = training_arguments(tmp_path)
    made = prepared("galore", args)
    before = weights(made.model)
    trainer = trainer_of(made, args, callbacks=[], optimizers=(None, None))
    trainer.add_callback(made.callback)
    with pytest.raises(Refused, match="would update nothing"):
        trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in made.model.named_parameters())


@pytest.mark.parametrize("label", ["galore", "lisa"])
def test_a_trainer_without_the_callback_updates_nothing(label: str, tmp_path: Path) -> None:
    args = training_arguments(tmp_path)
    made = prepared(label, args)
    before = weights(made.model)
    with pytest.raises(Refused, match=r"without its callback.*callbacks=\[prepared.callback\]"):
        trainer_of(made, args, callbacks=[]).train()
    assert all(torch.equal(p, before[name]) for name, p in made.model.named_parameters())


def test_another_model_or_a_changed_one_is_refused(tmp_path: Path) -> None:
    args = training_arguments(tmp_path)
    made = prepared("full", args)
    with pytest.raises(Refused, match="give it model=prepared"):
        trainer_of(made, args, model=tiny_model())
    made.model.resize_token_embeddings(80)
    with pytest.raises(Refused, match="were replaced after prepare"):
        trainer_of(made, args)
    cast = prepared("lora", args)
    for p in cast.model.parameters():
        p.data = p.data.to(torch.bfloat16) if p.requires_grad else p.data
    with pytest.raises(Refused, match="was cast from float32 to bfloat16 after prepare"):
        trainer_of(cast, args)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("learning_rate", 2e-2, "learning_rate = 0.02, and prepare was told 0.01"),
        ("max_steps", 7, "num_steps = 7, and prepare was told 5: give it the Trainer's num_steps"),
        ("gradient_accumulation_steps", 2, "gradient_accumulation_steps = 2"),
        ("max_grad_norm", 1.0, "max_grad_norm = 1.0, and prepare was told None"),
    ],
)
def test_other_arguments_than_those_of_prepare_are_refused(name: str, value: Any, said: str, tmp_path: Path) -> None:
    made = prepared("lora", training_arguments(tmp_path))
    with pytest.raises(Refused, match=said):
        trainer_of(made, training_arguments(tmp_path, **{name: value})).train()


def test_steps_by_epochs_are_given_beforehand(tmp_path: Path) -> None:
    args = training_arguments(tmp_path, max_steps=-1, num_train_epochs=1)
    made = prepared("lisa", args, num_steps=8)
    trainer = trainer_of(made, args)
    assert trainer.train().global_step == 8
    with pytest.raises(Refused, match="was trained already"):
        trainer.train()


class OneByOne(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        return iter(features(examples()))


@pytest.mark.parametrize("label", ["ist", "grass"])
def test_a_method_that_looks_at_rows_needs_a_data_set_with_a_length(label: str, tmp_path: Path) -> None:
    args = training_arguments(tmp_path)
    with pytest.raises(Refused, match="give the Trainer a data set with a length"):
        trainer_of(prepared(label, args), args, train_dataset=OneByOne()).train()


@pytest.mark.parametrize(
    ("label", "settings", "extra", "said"),
    [
        ("grass", {"probe_batches": 9}, (), "looks at 9 micro-batches .* hold 8"),
        ("grass", {"probe_consumes_rows": True}, (), "a Trainer begins with the first row"),
        ("grass", {}, ("position_ids",), "have position_ids"),
        ("ist", {"score_rows": 30}, (), "loss of 30 training rows at once, and the Trainer's data hold 16"),
    ],
)
def test_rows_that_a_method_cannot_look_at_are_refused(
    label: str, settings: dict[str, Any], extra: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    from transformers import default_data_collator

    args = training_arguments(tmp_path)
    rows = [row | {key: list(range(len(row["input_ids"]))) for key in extra} for row in features(examples())]
    made = prepared(label, args, settings=settings)
    with pytest.raises(Refused, match=said):
        trainer_of(made, args, train_dataset=rows, data_collator=default_data_collator).train()


def checkpoint_of(folder: Path, *, own: bool = True, label: str = "full", **changes: Any) -> str:
    """Return a checkpoint of the fourth step of a label, or where it is not our own of a Trainer by itself."""
    args = training_arguments(folder, save_strategy="steps", save_steps=4, **changes)
    made = prepared(label, args)
    trainer_of(made, args, **{} if own else {"callbacks": [], "optimizers": (None, None)}).train()
    return str(folder / "checkpoint-4")


@pytest.mark.parametrize(
    ("written", "read", "said"),
    [
        ({"own": False, "save_only_model": True}, {}, "holds nothing of a method"),
        ({"own": False}, {}, "is not that of label 'full' under these settings"),
        ({"label": "adamw-8bit"}, {}, "written under label = adamw-8bit, and prepare was given full"),
        ({"label": "galore"}, {}, "is not that of label 'full' under these settings"),
        ({"save_only_model": True}, {}, "holds no optimizer state"),
        ({}, {"seed": 9}, "was written under seed = 3, and prepare was given 9"),
        ({}, {"settings": {"eps": 1e-6}}, "was written under config"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    written: dict[str, Any], read: dict[str, Any], said: str, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(tmp_path / "first", **written)
    args = training_arguments(tmp_path / "second")
    with pytest.raises(Refused, match=said):
        trainer_of(prepared("full", args, **read), args).train(resume_from_checkpoint=checkpoint)
