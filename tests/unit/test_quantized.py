"""Base weights in nf4: what they are, what they take, what is refused of them, and that a look changes nothing."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from harness.catalogue.models import BaseModelSpec, ModelShape, load_models
from harness.engine.training import mean_loss
from harness.errors import HarnessError, Refused
from harness.method import METHODS, check_run
from harness.planning.predict import Question, predict
from harness.remarks import remarks_of
from harness.report.pages.document import Paragraph
from harness.report.pages.pairs import comparison_blocks
from harness.report.reading.summary import summarize
from harness.settings import Quantization, TrainSettings
from harness.store import Contents
from harness.tensors.loading import build_model, load_model
from harness.tensors.optimizer_state import storage_bytes
from harness.tensors.quantized import (
    constants,
    constants_bytes,
    layer_bytes,
    packed_bytes,
    quantize,
    quantized_layers,
    weight_tensors,
)
from tests.proofs import record_of, task_of
from tests.real_runs import spec_of

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))
bnb = pytest.importorskip("bitsandbytes")
CPU = torch.device("cpu")
DOUBLE, SINGLE = Quantization("nf4", double=True), Quantization("nf4", double=False)
HELD = {"quantization": "nf4", "double_quantization": True}
LAYER = "model.layers.1.mlp.down_proj"
IDS = torch.arange(1, 33).reshape(2, 16)


def nf4() -> np.ndarray[Any, Any]:
    """Return the 16 values by the paper's law (QLoRA, equation 4): quantiles of the normal distribution and 0."""
    from scipy.stats import norm

    edge = 0.9677083  # 1/2 (1/32 + 1/30) from both ends, as their create_normal_map has it
    above, below = norm.ppf(np.linspace(edge, 0.5, 9)[:-1]), -norm.ppf(np.linspace(edge, 0.5, 8)[:-1])
    values = np.sort(np.concatenate([above, [0.0], below]))
    return np.asarray(values / values.max(), dtype=np.float32)


def test_a_layer_multiplies_by_the_nearest_quantiles_of_the_normal_distribution() -> None:
    torch.manual_seed(0)
    code = nf4()
    assert np.allclose(bnb.functional.get_4bit_type("nf4", device="cpu").numpy(), code, atol=1e-6)
    model: Any = nn.Sequential(nn.Linear(192, 96, bias=False))
    weight = model[0].weight.detach().clone()
    holder = a_model(model)
    quantize(holder, SINGLE, "fp32")
    blocks = weight.numpy().reshape(-1, 64)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    nearest = code[np.abs(blocks[..., None] / largest[..., None] - code).argmin(axis=-1)] * largest
    found = holder.inner[0](torch.eye(192)).T
    assert torch.allclose(found, torch.from_numpy(nearest.reshape(96, 192)), atol=1e-6)
    assert 0.05 < float((found - weight).norm() / weight.norm()) < 0.12


def a_model(inner: nn.Module) -> Any:
    """Return layers as what the quantization takes: a transformers model that ties and skips nothing."""
    from transformers import PretrainedConfig, PreTrainedModel

    class Holder(PreTrainedModel):  # type: ignore[misc, no-any-unimported]
        config_class = PretrainedConfig

        def __init__(self) -> None:
            super().__init__(PretrainedConfig())
            self.inner, self.end = inner, nn.LayerNorm(1)
            self.post_init()

        def get_output_embeddings(self) -> None:
            return None

        def _init_weights(self, module: nn.Module) -> None:
            pass

    return Holder()


@pytest.mark.parametrize("how", [DOUBLE, SINGLE])
@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (128, 192), (100, 52), (33, 3), (512, 256)])
def test_bytes_by_the_formula_are_those_allocated(how: Quantization, rows: int, columns: int) -> None:
    holder = a_model(nn.Sequential(nn.Linear(columns, rows)))
    quantize(holder, how, "bf16")
    (layer,) = quantized_layers(holder).values()
    size = rows * columns
    assert storage_bytes([layer.weight]) == packed_bytes(size)
    assert storage_bytes([layer.weight, *constants(layer)]) == layer_bytes(size, double=how.double)
    assert storage_bytes(weight_tensors(holder)) == layer_bytes(size, double=how.double) + 4 * (rows + 2)


@pytest.mark.parametrize(("double", "bits"), [(True, 4.127), (False, 4.5)])
def test_a_large_matrix_takes_the_papers_bits(double: bool, bits: float) -> None:
    size = 4096 * 11008
    assert 8 * (packed_bytes(size) + constants_bytes(size, double=double)) / size == pytest.approx(bits, abs=5e-4)


@pytest.mark.parametrize("how", [DOUBLE, SINGLE])
def test_a_checkpoint_is_packed_as_it_is_read_and_as_it_would_be_in_place(how: Quantization, tiny_llama: Path) -> None:
    read, made = load_model(tiny_llama, "bf16", CPU, how), load_model(tiny_llama, "bf16", CPU)
    quantize(made, how, "bf16")
    layers, others = quantized_layers(read), quantized_layers(made)
    assert len(layers) == 7 * read.config.num_hidden_layers and list(layers) == list(others)  # type: ignore[union-attr, operator]
    for name, layer in layers.items():
        assert torch.equal(layer.weight.data, others[name].weight.data), name
        assert all(map(torch.equal, constants(layer), constants(others[name]))), name
        assert not layer.support_avx512bf16_for_cpu and not layer.weight.requires_grad
    assert read.lm_head.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert torch.equal(read(input_ids=IDS).logits, made(input_ids=IDS).logits)
    assert "quantization_config" not in read.config.to_dict()  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((48, 32), r"1 tensor is of another shape \(model.layers.1.mlp.down_proj.weight \(48, 32\) for \(32, 48\)\)"),
        ((32, 32), r"1 tensor is of another shape"),
        (None, r"1 tensor is missing \(model.layers.1.mlp.down_proj.weight\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    shape: tuple[int, int] | None, said: str, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "m"))
    tensors = load_file(folder / "model.safetensors")
    columns, rows = tensors[f"{LAYER}.weight"].shape
    said = said.replace("(48, 32)", f"({rows}, {columns})") if shape else said
    said = said.replace(r"\(48, 32\) for \(32, 48\)", rf"\({rows}, {columns}\) for \({columns}, {rows}\)")
    tensors.pop(f"{LAYER}.weight")
    if shape is not None:
        tensors[f"{LAYER}.weight"] = torch.zeros((rows, columns) if shape == (48, 32) else (columns, columns))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HarnessError, match=said):
        load_model(folder, "fp32", CPU, DOUBLE)


def a_loop(label: str = "qlora", dtype: str = "bf16", **settings: Any) -> Any:
    from harness.calibration.tiny import tiny_run

    return tiny_run(label, CPU, settings, HELD | {"dtype": dtype})


def test_a_look_at_the_held_out_loss_changes_no_later_loss() -> None:
    apart, looked = a_loop(), a_loop()
    before = looked.checksums()
    apart.take(4)
    looked.take(2)
    assert mean_loss(looked.loop.model, looked.batches[:2], looked.loop.context)[0] > 0
    assert looked.take(2) == apart.losses
    assert looked.checksums() == apart.checksums() != before


@pytest.mark.parametrize("packing", [False, True])
def test_an_evaluation_leaves_the_weights_in_the_format_they_are_trained_in(packing: bool) -> None:
    """With the packed format for such CPUs on, no gradient reaches a layer's input afterwards: it is kept off."""
    if packing and not bnb.functional.has_avx512bf16():
        pytest.skip("this CPU has no packed format")
    holder = a_model(nn.Sequential(nn.Linear(64, 64, bias=False)))
    quantize(holder, DOUBLE, "bf16")
    (layer,) = quantized_layers(holder).values()
    layer.support_avx512bf16_for_cpu |= packing
    before, x = layer.weight.data.clone(), torch.randn(4, 64, requires_grad=True)
    holder.eval()
    with torch.no_grad():
        layer(x.detach())
    assert torch.equal(before, layer.weight.data) is not packing
    (gradient,) = torch.autograd.grad(layer(x).sum(), x, allow_unused=True)
    assert (gradient is not None) is not packing


def test_losses_are_those_of_transformers_and_peft_alone(tiny_llama: Path) -> None:
    """The whole reference path beside ours: BitsAndBytesConfig, get_peft_model, torch's AdamW, from equal adapters."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    targets = ["q_proj", "v_proj", "down_proj"]
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16, quantization_config=how)
    reference = peft.get_peft_model(
        base, peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    )
    ours, optimizer = our_run(tiny_llama, {"rank": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": targets})
    wanted = dict(ours.named_parameters())
    for name, p in reference.named_parameters():
        if p.requires_grad:
            p.data = wanted[name].detach().clone()
    rival = torch.optim.AdamW([p for p in reference.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    reference.train()
    losses: list[list[float]] = [[], []]
    for step in range(4):
        ids = torch.randint(0, 60, (2, 12), generator=torch.Generator().manual_seed(step))
        for model, by, found in ((ours, optimizer, losses[0]), (reference, rival, losses[1])):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            found.append(float(loss.detach()))
            by.step()
            by.zero_grad()
    assert losses[0] == losses[1] and losses[0][3] != losses[0][0]


def our_run(folder: Path, settings: dict[str, Any]) -> tuple[Any, Any]:
    """Return our model and optimizer of label qlora on a folder, as the engine makes them."""
    from harness.engine.context import EngineContext
    from harness.tensors.decoder import find_decoder

    task = task_of("qlora", folder, folder, dtype="bf16", **HELD, **settings)
    method_class = METHODS.get("lora")
    method: Any = method_class(method_class.Config.model_validate(task.spec.config))
    train = task.spec.train
    assert train is not None
    model = load_model(folder, "bf16", CPU, train.quantized)
    context = EngineContext(seed=1, num_steps=4, train=train, decoder=find_decoder(model, task.model), block_scores={})
    wrapped = method.prepare(model, context)
    optimizer = method.build_optimizer(wrapped, context)
    optimizer.begin_step(0)
    return wrapped.train(), optimizer


def test_a_run_is_recorded_as_what_it_was(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"dtype": "bf16", "num_steps": 3, "checkpoint_folder": tmp_path / "c", "checkpoint_every": 2}
    record = record_of(task_of("qlora", tiny_llama, tmp_path, **HELD, **changes), monkeypatch)
    plain = record_of(task_of("qlora", tiny_llama, tmp_path, **changes | {"checkpoint_every": None}), monkeypatch)
    assert (record.status, plain.status) == ("ok", "ok"), (record.reason, record.log_tail)
    assert record.train is not None and plain.train is not None and record.run_id != plain.run_id
    assert record.train.total_params == plain.train.total_params
    held = record.train.quantized
    assert held is not None and plain.train.quantized is None
    assert (held.kind, held.double, held.version) == ("nf4", True, bnb.__version__)
    layers = quantized_layers(load_model(tiny_llama, "bf16", CPU, DOUBLE))
    sizes = [layer.in_features * layer.out_features for layer in layers.values()]
    assert (held.num_layers, held.num_params) == (len(sizes), sum(sizes))
    assert held.packed_bytes == sum(map(packed_bytes, sizes))
    assert held.packed_bytes + held.constants_bytes == sum(layer_bytes(size, double=True) for size in sizes)
    assert record.train.tracked_peak is not None and plain.train.tracked_peak is not None
    saved = plain.train.tracked_peak.at_peak.weights_bytes - record.train.tracked_peak.at_peak.weights_bytes
    assert saved == 2 * sum(sizes) - held.packed_bytes - held.constants_bytes
    assert record.train.curve.loss != plain.train.curve.loss
    said = {remark.kind: remark.sentence for remark in remarks_of(record)}
    assert (
        f"{len(sizes)} layers are held in nf4 with quantized constants, {sum(sizes):,} weights"
        in said["quantized base"]
    )
    assert "quantized base" not in {remark.kind for remark in remarks_of(plain)}


@pytest.mark.parametrize("label", ["full", "galore", "lisa", "owlore", "lora-fa", "dora", "pissa", "qlora"])
def test_only_adapters_go_beside_quantized_weights(label: str, tiny_llama: Path) -> None:
    task = task_of(label, tiny_llama, tiny_llama)
    assert task.spec.train is not None
    train = TrainSettings.model_validate(task.spec.train.model_dump() | HELD)
    method = METHODS.get(task.spec.method)
    config = method.Config.model_validate(task.spec.config)
    if label in ("lora-fa", "qlora"):
        check_run(method, config, train)
        return
    said = {"dora": "use_dora divides by the lengths", "pissa": "takes a part out of the base weights"}.get(
        label, "holds weights as packed integers, which no gradient"
    )
    with pytest.raises(Refused, match=said):
        check_run(method, config, train)


def test_constants_alone_cannot_be_quantized() -> None:
    with pytest.raises(ValueError, match="double_quantization = true needs quantization = 'nf4'"):
        TrainSettings.model_validate(a_loop("lora").loop.context.train.model_dump() | {"quantization": "none"})


def test_without_the_package_it_is_refused_in_a_sentence(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of("qlora", tiny_llama, tmp_path, dtype="bf16", **HELD)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    record = record_of(task, monkeypatch)
    assert record.status == "refused" and record.reason is not None and "\n" not in record.reason
    assert record.reason.startswith("quantized base weights need the package bitsandbytes, which cannot be imported (")
    assert record.reason.endswith("): pip install bitsandbytes, or in a checkout pip install '.[quantized]'")
    with pytest.raises(Refused, match="need the package bitsandbytes"):
        predict(task.spec, task.model, Question("cpu", num_steps=1), lambda request: None)


def test_transposed_layers_are_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(Refused, match=r"transformer\.h\.0\.attn\.c_attn is a transposed one"):
        load_model(tmp_path, "fp32", CPU, DOUBLE)


SMALL = BaseModelSpec(
    name="small",
    architecture="LlamaForCausalLM",
    hub_id="nobody/small",
    shape=ModelShape(
        hidden_size=64,
        intermediate_size=160,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=96,
        max_positions=64,
        rope_theta=10000.0,
        tied_head=False,
    ),
)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_planned_weights_are_those_that_a_model_allocates(double: bool, device: str) -> None:
    spec = spec_of("qlora", SMALL, {"double_quantization": double}, dtype="bf16")
    asked: Any = Question(device, num_steps=2)  # type: ignore[arg-type]
    told = predict(spec, SMALL, asked, lambda request: None)
    model = build_model(SMALL, "bf16", CPU)
    quantize(model, Quantization("nf4", double), "bf16")
    expected = storage_bytes(weight_tensors(model)) + 4 * told.trainable_params
    assert told.weights_bytes == expected
    assert any("14 layers are held in nf4" in sentence for sentence in told.assumptions)


@pytest.mark.slow
def test_static_memory_of_llama2_7b_is_the_arithmetic() -> None:
    """Packed layers 3.341 GB, other weights 0.524; adapters of 159,907,840 numbers in fp32, four times."""
    entry = load_models()["llama2-7b"]
    spec = spec_of("qlora", entry, {}, dtype="bf16", batch_size=1, sequence_length=16)
    told = predict(spec, entry, Question("cuda", "first"), lambda request: None)
    assert told.trainable_params == 159_907_840
    adapters = 4 * told.trainable_params
    assert (told.weights_bytes - adapters) / 1e9 == pytest.approx(3.866, rel=0.001)
    assert (adapters + told.gradients_bytes + told.optimizer_state_bytes) / 1e9 == pytest.approx(2.559, rel=0.001)
    assert told.static_bytes / 1e9 == pytest.approx(6.43, rel=0.005)


@pytest.mark.parametrize(
    ("full", "lora", "told"), [("none", "nf4", True), ("nf4", "nf4", False), ("none", "none", False)]
)
def test_pairs_on_unlike_weights_are_told(full: str, lora: str, told: bool) -> None:
    suite = make.make_suite(labels=("full", "lora"))
    trains = {
        label: TrainSettings.model_validate(make.TRAIN | {"quantization": quantization})
        for label, quantization in (("full", full), ("lora", lora))
    }
    records = [make.make_record(label, spec={"train": train}) for label, train in trains.items()]
    records = [record.model_copy(update={"items": record.uuid}) for record in records]
    files = {
        record.uuid: {
            (score.task, score.metric): {(score.task, i, ""): float(i < 40 * score.value) for i in range(40)}
            for score in record.scores
        }
        for record in records
    }
    blocks = comparison_blocks(summarize(suite, Contents(tuple(records))), files.get)
    texts = [block.text for block in blocks if isinstance(block, Paragraph)]
    assert any("lora is trained and scored on quantized base weights" in text for text in texts) is told
    assert blocks


def test_the_label_says_it_of_training(tmp_path: Path) -> None:
    train = spec_of("qlora", SMALL, {}, dtype="bf16").train
    assert train is not None and train.quantized == DOUBLE
    assert json.loads(train.model_dump_json())["quantization"] == "nf4"
