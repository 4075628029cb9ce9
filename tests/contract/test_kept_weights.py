"""What is kept is what was scored: weights read back give the run's own logits, to the bit, in either precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.catalogue.models import BaseModelSpec
from harness.engine.keeping import keep_merged, keep_trained
from harness.errors import HarnessError
from harness.method import Method
from harness.settings import Quantization
from harness.tensors.adapters import WEIGHTS, load_adapter
from harness.tensors.loading import load_model
from tests.conftest import byte_tokenizer

SPEC = BaseModelSpec(name="tiny", architecture="LlamaForCausalLM", folder=Path("/somewhere"))
CPU = torch.device("cpu")
IDS = torch.arange(1, 17).reshape(2, 8)


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def after_two_steps(tiny: Any, label: str, dtype: str, **changes: Any) -> tuple[Any, Any]:
    """Return a run after two steps, and the model that is scored."""
    run = tiny.start(label, dtype=dtype, **changes)
    rotary = run.base.model.rotary_emb  # which from_pretrained keeps in fp32 whatever the weights' precision
    rotary.inv_freq = tiny.model("llama").model.rotary_emb.inv_freq
    run.steps(0, 2)
    return run, run.method.finalize(run.model)


def read_back(folder: Path, base: Path, dtype: str, quantized: Quantization | None = None) -> Any:
    """Return the model that ``harness evaluate`` scores."""
    adapter = folder / "adapter"
    if not adapter.is_dir():
        return load_model(folder, dtype, CPU)
    return load_adapter(load_model(base, dtype, CPU, quantized), adapter)


def base_of(tiny: Any, folder: Path, dtype: str) -> Path:
    tiny.model("llama", dtype=torch.bfloat16 if dtype == "bf16" else torch.float32).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("adapters", ["fp32", "bf16"])
def test_kept_weights_score_as_the_run_did(tiny: Any, trained: str, dtype: str, adapters: str, tmp_path: Path) -> None:
    fields = tiny.settings_of(trained)[0].Config.model_fields
    if adapters == "bf16" and "adapter_dtype" not in fields:
        return
    changes = {"adapter_dtype": adapters} if "adapter_dtype" in fields else {}
    run, scored = after_two_steps(tiny, trained, dtype, **changes)
    keep_trained(run.method, scored, byte_tokenizer(), tmp_path / "kept", SPEC)
    wanted = logits(scored)
    base, quantized = base_of(tiny, tmp_path / "base", dtype), run.context.train.quantized
    before = read_back(tmp_path / "kept", base, dtype, quantized)
    assert torch.equal(logits(before), wanted)
    keep_merged(run.method, scored, tmp_path / "kept")
    kept = read_back(tmp_path / "kept", base, dtype, quantized)
    assert torch.equal(logits(kept), wanted)
    merged = load_model(tmp_path / "kept", dtype, CPU)
    assert type(merged).__name__ == "LlamaForCausalLM"
    assert torch.allclose(logits(merged), wanted, atol=1e-5 if dtype == "fp32" == adapters else 0.1)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("adapters", ["fp32", "bf16"])
def test_an_adapter_keeps_its_own_precision(tiny: Any, dtype: str, adapters: str, tmp_path: Path) -> None:
    run, scored = after_two_steps(tiny, "lora", dtype, adapter_dtype=adapters)
    keep_trained(run.method, scored, byte_tokenizer(), tmp_path / "kept", SPEC)
    saved = load_file(tmp_path / "kept" / "adapter" / WEIGHTS)
    wanted = torch.float32 if adapters == "fp32" else torch.bfloat16
    assert {tensor.dtype for tensor in saved.values()} == {wanted}
    loaded = read_back(tmp_path / "kept", base_of(tiny, tmp_path / "base", dtype), dtype)
    found = {p.dtype for name, p in loaded.named_parameters() if ".lora_" in name}
    assert found == {wanted}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: dict(list(tensors.items())[1:]), "lacks .*lora_A.weight, one of 1 tensors"),
        (lambda tensors: tensors | {"other": torch.zeros(1)}, "holds unknown other"),
        (lambda tensors: {name.replace("model.", "model.module.", 1): t for name, t in tensors.items()}, "lacks"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(tiny: Any, change: Any, said: str, tmp_path: Path) -> None:
    run, scored = after_two_steps(tiny, "lora", "fp32")
    keep_trained(run.method, scored, byte_tokenizer(), tmp_path / "kept", SPEC)
    file = tmp_path / "kept" / "adapter" / WEIGHTS
    save_file(change(load_file(file)), file)
    with pytest.raises(HarnessError, match=said):
        read_back(tmp_path / "kept", base_of(tiny, tmp_path / "base", "fp32"), "fp32")


def test_a_model_that_export_changes_is_kept_after_it_was_scored(tiny: Any, tmp_path: Path) -> None:
    _, scored = after_two_steps(tiny, "full", "fp32")

    class Changes(Method):
        export = lambda self, model: model.half()  # noqa: E731
        prepare = build_optimizer = None  # type: ignore[assignment]

    method: Any = Changes.__new__(Changes)
    assert keep_trained(method, scored, byte_tokenizer(), tmp_path / "kept", SPEC) is False
    assert next(scored.parameters()).dtype == torch.float32
    keep_merged(method, scored, tmp_path / "kept")
    assert (tmp_path / "kept" / "model.safetensors").is_file()
