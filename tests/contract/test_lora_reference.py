"""LoRA, rsLoRA, DoRA and LoRA-FA against peft, which is their reference, on the same batches."""

from __future__ import annotations

import math

import peft
import pytest
import torch
from peft.optimizers import create_lorafa_optimizer
from peft.optimizers import lorafa as peft_lorafa

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


def peft_model(tiny, run, **use):
    """Return a model wrapped by peft itself, with the weights of ``run``."""
    config = peft.LoraConfig(
        r=4, lora_alpha=64, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM", bias="none", **use
    )
    model = peft.get_peft_model(tiny.model("llama"), config)
    model.load_state_dict(run.model.state_dict())
    return model


def reference(tiny, run, label, make_optimizer, num_steps, **changes):
    """Return peft's adapter weights after training on the batches of ``run``, from the same initial values."""
    model = peft_model(tiny, run, **({"use_rslora": False, "use_dora": label == "dora"} | changes))
    optimizer = make_optimizer(model)
    for step in range(num_steps):
        ids = run.batch(step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach() for name, p in model.named_parameters() if "lora_" in name}


def torch_adamw(model):
    return torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad), lr=0.01, weight_decay=0.0, foreach=False
    )


def adapters(run):
    return {name: p.detach() for name, p in run.model.named_parameters() if "lora_" in name}


def worst(a, b):
    assert a.keys() == b.keys() and a
    return max(float((a[name] - b[name]).abs().max() / b[name].abs().max()) for name in a)


@pytest.mark.parametrize(("variant", "changes"), [("lora", {}), ("lora", {"use_rslora": True}), ("dora", {})])
def test_adapters_are_pefts_bit_by_bit(tiny, variant, changes):
    run = tiny.start(variant, lora_dropout=0.0, **changes)
    theirs = reference(tiny, run, variant, torch_adamw, 20, **changes)
    assert worst(adapters(run.steps(0, 20)), theirs) == 0.0


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-5), (True, 0.05)])
@pytest.mark.parametrize("rslora", [False, True])
def test_lora_fa_is_pefts(tiny, monkeypatch, bf16, tolerance, rslora):
    """Fed the same gradients. peft multiplies in bf16 where it can; without that the two agree closely."""
    monkeypatch.setattr(peft_lorafa, "is_bf16_available", lambda: bf16)
    monkeypatch.setattr(peft_lorafa, "autocast", lambda device_type, dtype: torch.autocast("cpu", dtype=dtype))
    run = tiny.start("lora-fa", lora_dropout=0.0, use_rslora=rslora)
    model = peft_model(tiny, run, use_rslora=rslora, use_dora=False)
    optimizer = create_lorafa_optimizer(model, 4, 64, 0.01)
    frozen = {name: p.clone() for name, p in adapters(run).items() if "lora_A" in name}
    theirs = dict(model.named_parameters())
    for step in range(20):
        ids = run.batch(step)
        run.method.on_step_begin(step, run.optimizer)
        run.model(input_ids=ids, labels=ids).loss.backward()
        for name, p in run.model.named_parameters():
            theirs[name].grad = None if p.grad is None else p.grad.clone()
        run.optimizer.step()
        run.optimizer.zero_grad()
        optimizer.step()
    for name, p in adapters(run).items():
        assert (p - theirs[name]).norm() <= tolerance * p.norm(), name
        assert torch.equal(p, frozen[name]) if name in frozen else p.norm() > 0


def test_lora_fa_holds_state_for_b_only_and_counts_its_correction(tiny):
    run = tiny.start("lora-fa").steps(0, 1)
    names = run.optimizer.param_groups[0]["param_names"]
    assert names and all(name.endswith("lora_B.weight") for name in names)
    num_b = sum(p.numel() for p in run.optimizer.param_groups[0]["params"])
    assert run.optimizer.state_bytes()["device"] == 2 * 4 * num_b + len(names) * 4 * 4 * 4


def test_without_the_correction_lora_fa_would_differ(tiny):
    run, plain = tiny.start("lora-fa", lora_dropout=0.0), tiny.start("lora-fa", lora_dropout=0.0)
    plain.optimizer.gradient = lambda p: p.grad
    assert worst(adapters(run.steps(0, 5)), adapters(plain.steps(0, 5))) > 1e-2


@pytest.mark.parametrize("variant", ["lora", "dora", "lora-fa"])
@pytest.mark.parametrize("weights", ["fp32", "bf16"])
@pytest.mark.parametrize("adapter_dtype", ["fp32", "bf16"])
def test_adapters_have_the_dtype_that_was_asked(tiny, variant, weights, adapter_dtype):
    run = tiny.start(variant, dtype=weights, adapter_dtype=adapter_dtype).steps(0, 2)
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}
    assert {p.dtype for name, p in run.model.named_parameters() if "lora_" in name} == {wanted[adapter_dtype]}
    assert {p.dtype for name, p in run.model.named_parameters() if "lora_" not in name} == {wanted[weights]}
    assert all(math.isfinite(loss) for loss in run.losses)


def test_dropout_draws_from_the_run_and_not_from_the_global_generator(tiny):
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        results.append(adapters(tiny.start("lora", lora_dropout=0.3).steps(0, 4)))
        without = adapters(tiny.start("lora", lora_dropout=0.0).steps(0, 4))
    assert worst(*results) == 0.0 and worst(results[0], without) > 0.0


def test_the_adapter_can_be_saved_and_loaded_by_peft(tiny, tmp_path):
    run = tiny.start("lora").steps(0, 3)
    run.method.finalize(run.model)
    run.method.adapter(run.model).save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny.model("llama"), tmp_path).eval()
    ids = run.batch(50)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, run.model.eval()(input_ids=ids).logits)
