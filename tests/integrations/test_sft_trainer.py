"""Labels inside TRL's SFTTrainer: the weights of the engine's own loop under TRL's loss, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.data.batches import MicroBatch
from harness.engine.training import TrainingLoop
from harness.errors import Refused
from tests.trainer import (
    OF_EACH_KIND,
    examples,
    largest_difference,
    own_loop,
    prepared,
    tiny_model,
    training_arguments,
    weights,
)

trl = pytest.importorskip("trl", reason="needs TRL: pip install trl")


def sft_arguments(folder: Path, **changes: Any) -> Any:
    """Return arguments of an SFTTrainer on rows that are tokens already; checkpointing is on, as TRL has it."""
    given = {"bf16": False, "max_length": None, "dataset_kwargs": {"skip_prepare_dataset": False}}
    return training_arguments(folder, trl.SFTConfig, **given | changes)


def sft_trainer(made: Any, args: Any, tokenizer: Any) -> Any:
    """Return an SFTTrainer of what was prepared."""
    from datasets import Dataset

    return trl.SFTTrainer(
        model=made.model,
        args=args,
        train_dataset=Dataset.from_dict({"input_ids": [list(row.ids) for row in examples()]}),
        processing_class=tokenizer,
        optimizers=(made.optimizer, None),
        callbacks=[made.callback],
    )


def with_the_loss_of_trl(loop: TrainingLoop) -> None:
    """Let a loop take the loss as SFTTrainer does: over tiles of tokens, the logits never whole."""
    from trl.trainer.utils import add_fused_lm_head

    model: Any = loop.model
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))

    def summed_loss(model: Any, batch: MicroBatch) -> torch.Tensor:
        given = {"input_ids": batch.input_ids, "labels": batch.labels, "attention_mask": batch.attention_mask}
        loss: torch.Tensor = (-model(**given, fused_lm_head=True).log_probs).sum()
        return loss

    loop.stepping._summed_loss = summed_loss


@pytest.mark.parametrize("label", OF_EACH_KIND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_label_ends_in_the_weights_of_its_own_loop(
    label: str, dtype: torch.dtype, tmp_path: Path, tokenizer: Any
) -> None:
    args = sft_arguments(tmp_path, gradient_accumulation_steps=2)
    assert args.activation_checkpointing
    settings = {"update_in_backward": True} if label in ("galore", "lisa") else {}
    made = prepared(label, args, dtype, settings=settings)
    sft_trainer(made, args, tokenizer).train()
    found = weights(made.model)
    loop = own_loop(label, made, dtype, before=with_the_loss_of_trl)
    assert largest_difference(found, weights(loop.model)) == 0.0
    assert largest_difference(found, weights(prepared(label, args, dtype, settings=settings).model)) > 1e-3


def test_the_loss_of_trl_differs_from_ours_in_rounding_alone(tmp_path: Path, tokenizer: Any) -> None:
    args = sft_arguments(tmp_path)
    made = prepared("full", args, settings={"moment_dtype": "fp32"})
    sft_trainer(made, args, tokenizer).train()
    loop = own_loop("full", made)
    assert largest_difference(weights(made.model), weights(loop.model)) < 1e-5


def test_adapters_on_4_bit_weights_are_prepared_in_the_dtype_that_trl_casts_them_to(
    tmp_path: Path, tokenizer: Any
) -> None:
    pytest.importorskip("bitsandbytes")
    args = sft_arguments(tmp_path)
    with pytest.raises(Refused, match=r"cast from float32 to bfloat16 .*settings=\{'adapter_dtype': 'bf16'\}"):
        sft_trainer(prepared("qlora", args), args, tokenizer)
    made = prepared("qlora", args, settings={"adapter_dtype": "bf16"})
    sft_trainer(made, args, tokenizer).train()
    loop = own_loop("qlora", made, before=with_the_loss_of_trl)
    assert largest_difference(weights(made.model), weights(loop.model)) == 0.0


def test_what_is_finished_computes_what_was_trained(tmp_path: Path, tokenizer: Any) -> None:
    args = sft_arguments(tmp_path, bf16=None)
    assert args.bf16  # as TRL has it where nothing is said: autocast
    made = prepared("lora", args)
    sft_trainer(made, args, tokenizer).train()
    ids = torch.tensor([row.ids for row in examples()[:4]])
    finished = made.finish().eval()
    fresh = tiny_model()
    fresh.load_state_dict(finished.state_dict())
    with torch.no_grad():
        assert torch.equal(finished(input_ids=ids).logits, fresh.eval()(input_ids=ids).logits)
