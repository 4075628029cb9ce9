"""LoRA+, PiSSA and OLoRA against peft, their reference: groups, initial values, steps, and the adapter that is kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, get_scheduler

from harness.catalogue.models import BaseModelSpec
from harness.declaration import Declaration, DeclaredPart
from harness.engine.keeping import keep_trained
from harness.errors import Refused
from harness.method import METHODS
from harness.methods._optimizers import AdamW
from harness.proof import judge_record
from harness.proof_checks import LEAST_NUMBER, _least_rate
from harness.remarks import remarks_of
from harness.tensors.adapters import WEIGHTS, load_adapter
from tests.conftest import byte_tokenizer
from tests.contract.conftest import FakeContext, decoder_of, tiny_model
from tests.proofs import record_of, task_of

TARGETS = ["q_proj", "v_proj", "down_proj"]
IDS = torch.arange(1, 17).reshape(2, 8)
SPEC = BaseModelSpec(name="tiny", architecture="LlamaForCausalLM", folder=Path("/somewhere"))
FROM_WEIGHTS: list[tuple[str, dict[str, Any]]] = [
    ("pissa", {"pissa_iterations": None}),
    ("pissa", {"pissa_iterations": 2}),
    ("pissa", {"use_rslora": True, "rank": 3}),
    ("olora", {"lora_dropout": 0.0}),
]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits.float()
    return found


def away(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the norm of a difference over that of what is wanted."""
    return float((found - wanted).norm() / wanted.norm())


def peft_kind(variant: str, config: Any) -> str:
    if variant == "olora" or config.pissa_iterations is None:
        return variant
    return f"pissa_niter_{config.pissa_iterations}"


def peft_config(variant: str, config: Any) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha,
        use_rslora=config.use_rslora,
        target_modules=list(config.target_modules),
        init_lora_weights=peft_kind(variant, config),  # type: ignore[arg-type]
        task_type="CAUSAL_LM",
    )


def pefts(tiny: Any, variant: str, run: Any) -> Any:
    """Return the tiny model with the adapters of peft's own initialisation, drawn from our streams."""
    model = peft.get_peft_model(tiny.model("llama"), peft_config("olora", run.method.config))
    fresh = dict(tiny.model("llama").named_modules())
    for path, layer in model.named_modules():
        if getattr(layer, "lora_A", None):
            layer.base_layer.weight.data = fresh[path.removeprefix("base_model.model.")].weight.data  # type: ignore
            with run.context.seed_globally(f"lora_init/{path}"):
                kind = peft_kind(variant, run.method.config)
                layer.olora_init("default") if kind == "olora" else layer.pissa_init("default", kind)  # type: ignore
    return model


# PiSSA and OLoRA


@pytest.mark.parametrize(("variant", "changes"), FROM_WEIGHTS)
def test_what_begins_in_the_weights_is_pefts_bit_by_bit(tiny: Any, variant: str, changes: dict[str, Any]) -> None:
    run = tiny.start(variant, target_modules=TARGETS, **changes)
    model = pefts(tiny, variant, run)
    ours, theirs = dict(run.model.named_parameters()), dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.0)
    for step in range(4):
        ids = run.batch(step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    run.steps(0, 4)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_pissa_takes_the_largest_singular_values(tiny: Any) -> None:
    """||A||^2 = ||B||^2 = sum of the r largest / s, and what is left of W has the others."""
    run = tiny.start("pissa", pissa_iterations=None, lora_alpha=8, rank=4, target_modules=TARGETS)
    fresh = dict(tiny.model("llama").named_modules())
    for path, layer in run.model.named_modules():
        if not getattr(layer, "lora_A", None):
            continue
        values = torch.linalg.svdvals(fresh[path.removeprefix("base_model.model.")].weight)
        for matrix in (layer.lora_A, layer.lora_B):
            assert float(matrix["default"].weight.square().sum()) == pytest.approx(
                float(values[:4].sum()) / 2, rel=1e-5
            )
        left = torch.linalg.svdvals(layer.base_layer.weight)
        torch.testing.assert_close(left[: len(values) - 4], values[4:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["pissa", "olora"])
@pytest.mark.parametrize(("dtype", "least", "most"), [("fp32", 0.0, 1e-6), ("bf16", 1e-4, 2e-2)])
def test_the_proof_says_how_far_the_start_is_from_the_base_model(
    tiny: Any, variant: str, dtype: str, least: float, most: float
) -> None:
    run = tiny.start(variant, dtype=dtype)
    fresh = tiny.model("llama", dtype=torch.float32 if dtype == "fp32" else torch.bfloat16)
    start = run.method.proof()["adapters"]["start"]
    assert start["init"] == variant and least <= start["output_error"] <= most
    ids = torch.randint(0, 64, (1, 8), generator=run.context.torch_generator("lora_start"))
    with torch.no_grad():
        found, wanted = (one.eval()(input_ids=ids).logits.float() for one in (run.model, fresh))
    if dtype == "bf16":  # rotary embeddings of a model that was cast apart
        assert start["output_error"] == pytest.approx(away(found, wanted), rel=0.5)
    lost = total = 0.0
    modules = dict(fresh.named_modules())
    for path, layer in run.model.named_modules():
        if getattr(layer, "lora_A", None):
            old = modules[path.removeprefix("base_model.model.")].weight.detach().double()
            A, B = (part["default"].weight.detach().double() for part in (layer.lora_A, layer.lora_B))
            new = layer.base_layer.weight.detach().double() + layer.scaling["default"] * B @ A
            lost, total = lost + float((new - old).square().sum()), total + float(old.square().sum())
    if dtype == "bf16":
        assert start["weight_error"] == pytest.approx(math.sqrt(lost / total), rel=1e-2)
        assert 5e-4 < start["weight_error"] < 5e-3
    else:
        assert start["weight_error"] < 1e-6


def test_adapters_in_fp32_beside_bf16_keep_what_peft_rounds_away(tiny: Any) -> None:
    run = tiny.start("pissa", dtype="bf16", pissa_iterations=None)
    base = tiny.model("llama", dtype=torch.bfloat16)
    theirs = peft.get_peft_model(base, peft_config("pissa", run.method.config))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    ours = dict(run.model.named_parameters())[name].detach()
    rounded = dict(theirs.named_parameters())[name].detach()
    assert rounded.dtype == torch.float32 and torch.equal(rounded, rounded.bfloat16().float())
    assert ours.dtype == torch.float32 and not torch.equal(ours, ours.bfloat16().float())


NEAR = {"fp32": 1e-5, "bf16": 16 * 2**-8}
"""How far logits may be where the same sum is taken in another order. In bf16 the principal part of a matrix is added
and taken away again in steps of 2^-8 of it, in 28 matrices one behind the other; training moved the logits by 1."""


@pytest.mark.parametrize(("variant", "changes"), FROM_WEIGHTS)
@pytest.mark.parametrize("adapters", ["fp32", "bf16"])
def test_the_kept_adapter_stands_on_the_base_weights_as_they_were(
    tiny: Any, variant: str, changes: dict[str, Any], adapters: str, tmp_path: Path
) -> None:
    """For peft it is an adapter of twice the rank, which can be disabled; for us it is what was trained, to the bit."""
    run = tiny.start(variant, adapter_dtype=adapters, **changes).steps(0, 3)
    scored = run.method.finalize(run.model)
    keep_trained(run.method, scored, byte_tokenizer(), tmp_path, SPEC)
    wanted, plain = logits(scored), logits(tiny.model("llama"))
    folder = tmp_path / "adapter"
    loaded: Any = peft.PeftModel.from_pretrained(tiny.model("llama"), folder, autocast_adapter_dtype=False)
    assert loaded.peft_config["default"].r == 2 * run.method.config.rank
    assert away(logits(loaded), wanted) < NEAR[adapters]
    assert away(wanted, plain) > 0.5
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded), plain)
    ours: Any = load_adapter(tiny.model("llama"), folder)
    assert torch.equal(logits(ours), wanted)
    fresh = METHODS.get("lora")(run.method.config)
    assert away(logits(fresh.export(ours)), wanted) < NEAR[adapters]


@pytest.mark.parametrize("rslora", [False, True])
def test_the_kept_adapter_is_pefts_own_conversion(tiny: Any, rslora: bool, tmp_path: Path) -> None:
    run = tiny.start("pissa", use_rslora=rslora, pissa_iterations=None, target_modules=TARGETS)
    model: Any = run.model
    model.save_pretrained(tmp_path / "initial")
    run.steps(0, 3)
    run.method.adapter(model).save_pretrained(tmp_path / "ours", safe_serialization=True)
    model.peft_config["default"].init_lora_weights = "pissa"
    model.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    ours, theirs = (load_file(tmp_path / whose / WEIGHTS) for whose in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    scalings = [
        layer.scaling["default"]
        for whose in ("ours", "theirs")
        for path, layer in peft.PeftModel.from_pretrained(tiny.model("llama"), tmp_path / whose).named_modules()
        if path.endswith("layers.0.mlp.down_proj")
    ]
    assert scalings == pytest.approx([model.base_model.model.model.layers[0].mlp.down_proj.scaling["default"]] * 2)


def test_a_rank_above_the_smaller_side_leaves_zeros(tiny: Any, tmp_path: Path) -> None:
    run = tiny.start("pissa", rank=40, target_modules=["v_proj"])  # (16, 32)
    layer = run.model.base_model.model.model.layers[0].self_attn.v_proj
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert A.shape == (40, 32) and not A[16:].any() and not B[:, 16:].any() and A[:16].any(dim=1).all()
    assert float(layer.base_layer.weight.abs().max()) < 1e-6
    assert away(logits(run.model), logits(tiny.model("llama"))) < 1e-5
    run.steps(0, 2)
    assert not A[16:].any() and not B[:, 16:].any()
    run.method.adapter(run.model).save_pretrained(tmp_path)
    assert torch.equal(logits(load_adapter(tiny.model("llama"), tmp_path)), logits(run.model))


@pytest.mark.parametrize("variant", ["pissa", "olora"])
def test_transposed_layers_give_their_part_as_they_are(tiny: Any, variant: str) -> None:
    torch.manual_seed(3)
    model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4)).eval()
    wanted = logits(model)
    method, values = tiny.settings_of(variant, target_modules=["c_attn", "mlp.c_proj"], pissa_iterations=None)
    decoder = decoder_of(tiny.model("llama"))
    context = FakeContext(1, 2, tiny.train_settings(), decoder)
    wrapped = method(method.Config.model_validate(values)).prepare(model, context)
    layer = wrapped.transformer.h[0].attn.c_attn
    assert layer.lora_A["default"].weight.any() and layer.lora_B["default"].weight.any()
    assert away(logits(wrapped), wanted) < 1e-5


def test_a_start_hangs_on_no_other_matrix_and_moves_no_global_generator(tiny: Any) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    alone = tiny.start("pissa", pissa_iterations=1, target_modules=["v_proj"])
    together = tiny.start("pissa", pissa_iterations=1, target_modules=TARGETS)
    assert torch.equal(before, torch.random.get_rng_state())
    ours, others = dict(alone.model.named_parameters()), dict(together.model.named_parameters())
    assert all(torch.equal(p, others[name]) for name, p in ours.items() if ".v_proj." in name)


@pytest.mark.parametrize(
    ("targets", "tied", "words"),
    [
        (["q_proj", "embed_tokens"], False, "model.embed_tokens is an embedding"),
        (["q_proj", "lm_head"], True, "lm_head is a weight that another layer shares"),
    ],
)
def test_a_weight_that_can_give_nothing_away_is_refused(tiny: Any, targets: list[str], tied: bool, words: str) -> None:
    with pytest.raises(Refused, match=words):
        tiny.start("pissa", tied=tied, target_modules=targets)


def test_weights_that_are_not_finite_are_refused(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **named: Any) -> nn.Module:
        model = tiny_model(*given, **named)
        model.model.layers[1].mlp.up_proj.weight.data[0, 0] = math.inf  # type: ignore
        return model

    monkeypatch.setattr("tests.contract.conftest.tiny_model", broken)
    with pytest.raises(Refused, match=r"layers\.1\.mlp\.up_proj is a weight that is not finite"):
        tiny.start("olora")


# LoRA+


@pytest.mark.parametrize("dora", [False, True])
def test_groups_are_those_of_pefts_function(tiny: Any, dora: bool) -> None:
    targets = [*TARGETS, "embed_tokens"]
    given = {"loraplus_lr_ratio": 16.0, "loraplus_lr_embedding": 1e-3, "weight_decay": 0.1, "lora_dropout": 0.0}
    run = tiny.start("lora-plus", target_modules=targets, use_dora=dora, **given)
    config = peft.LoraConfig(r=4, lora_alpha=64, target_modules=targets, task_type="CAUSAL_LM", use_dora=dora)
    model = peft.get_peft_model(tiny.model("llama"), config)
    model.load_state_dict(run.model.state_dict())
    theirs = create_loraplus_optimizer(
        model,
        torch.optim.AdamW,
        lr=0.01,
        loraplus_lr_ratio=16.0,
        loraplus_lr_embedding=1e-3,
        loraplus_weight_decay=0.1,
        foreach=False,
    )
    groups = [sorted_names(model, group) for group in theirs.param_groups if group["params"]]
    ours = [sorted_names(run.model, group) for group in run.optimizer.param_groups]
    assert sorted(ours) == sorted(groups) and len(ours) == 3
    by_names = {tuple(sorted_names(model, group)): group for group in theirs.param_groups}
    for names, group in zip(ours, run.optimizer.param_groups, strict=True):
        reference = by_names[tuple(names)]
        assert (group["lr"], run.method.config.weight_decay) == (reference["lr"], reference["weight_decay"])
    for step in range(4):
        ids = run.batch(step)
        model(input_ids=ids, labels=ids).loss.backward()
        theirs.step()
        theirs.zero_grad()
    trained = dict(run.steps(0, 4).model.named_parameters())
    assert all(torch.equal(trained[name], p) for name, p in model.named_parameters())


def sorted_names(model: nn.Module, group: dict[str, Any]) -> list[str]:
    held = {id(p) for p in group["params"]}
    return sorted(name for name, p in model.named_parameters() if id(p) in held)


def test_the_schedule_scales_every_group_and_the_runs_rate_is_the_base(tiny: Any) -> None:
    for rate in (1e-2, 1e-3):
        run = tiny.start("lora-plus", loraplus_lr_ratio=16.0)
        run.context.train = tiny.train_settings(learning_rate=rate)
        optimizer = run.method.build_optimizer(run.model, run.context)
        scheduler = get_scheduler("linear", optimizer, num_warmup_steps=2, num_training_steps=4)
        seen = []
        for _ in range(4):
            seen.append([group["lr"] / rate for group in optimizer.param_groups])
            optimizer.step()
            scheduler.step()
        assert seen == [pytest.approx([share, 16 * share]) for share in (0.0, 0.5, 1.0, 0.5)]


def test_an_embeddings_adapter_needs_a_rate_of_its_own(tiny: Any) -> None:
    with pytest.raises(Refused, match=r"says nothing of model\.embed_tokens.*peft takes to be 1e-6"):
        tiny.start("lora-plus", target_modules=["q_proj", "embed_tokens"], loraplus_lr_embedding=None)


@pytest.mark.parametrize(
    ("variant", "changes", "words"),
    [
        ("lora-fa", {"loraplus_lr_ratio": 4.0}, "lora_fa and loraplus_lr_ratio exclude each other"),
        ("lora-fa", {"init_lora_weights": "pissa"}, "lora_fa and init_lora_weights = 'pissa' exclude each other"),
        ("dora", {"init_lora_weights": "olora"}, "use_dora and init_lora_weights = 'olora' exclude each other"),
        ("dora", {"lora_fa": True}, "lora_fa and use_dora exclude each other"),
        ("lora", {"pissa_iterations": 4}, "pissa_iterations is for init_lora_weights = 'pissa', not 'kaiming'"),
        ("lora", {"loraplus_lr_embedding": 1e-6}, "give loraplus_lr_ratio too"),
        ("lora", {"loraplus_lr_ratio": 0.0}, "greater than 0"),
        ("pissa", {"pissa_iterations": 0}, "greater than 0"),
    ],
)
def test_variants_that_exclude_each_other_are_refused(
    tiny: Any, variant: str, changes: dict[str, Any], words: str
) -> None:
    method, values = tiny.settings_of(variant, **changes)
    with pytest.raises(ValidationError, match=words):
        method.Config.model_validate(values)


def test_gaussian_adapters_are_pefts(tiny: Any) -> None:
    run = tiny.start("lora", init_lora_weights="gaussian", lora_dropout=0.0)
    config = run.method.config
    reference = peft.LoraConfig(r=4, target_modules=list(config.target_modules), init_lora_weights="gaussian")
    with run.context.seed_globally("lora_init"):
        model = peft.get_peft_model(tiny.model("llama"), reference)
    theirs = dict(model.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in run.model.named_parameters())


# What records say


def test_the_record_holds_every_groups_rate_and_show_names_them(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.commands.show import _adapter_facts

    record = record_of(task_of("lora-plus", tiny_llama, tmp_path, num_steps=3, warmup_steps=2), monkeypatch)
    assert record.train is not None
    curve = record.train.curve
    assert curve.group_learning_rates == tuple((rate, 16 * rate) for rate in curve.learning_rate)
    assert curve.learning_rate[0] == 0.0
    assert ("learning rates", "A 0.01, B 0.16") in _adapter_facts(record)


def test_an_adapter_that_stays_where_it_began_is_unproven(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B is not zero there from the start on: what it is compared with are its first values."""
    step = AdamW.step_parameters

    def others(self: Any, params: Any) -> None:
        step(self, [p for p in params if "layers.3.self_attn.v_proj" not in self._names[p]])

    monkeypatch.setattr(AdamW, "step_parameters", others)
    record = record_of(task_of("pissa", tiny_llama, tmp_path, num_steps=2), monkeypatch)
    judgement = judge_record(record)
    assert judgement is not None
    said = {check.name: check.sentence for check in judgement.failed}
    assert said["adapters"] == "the adapter of model.layers.3.self_attn.v_proj did not move"


@pytest.mark.parametrize(
    "changes", [{"dtype": "bf16"}, {"dtype": "bf16", "adapter_dtype": "bf16"}, {"learning_rate": 1e-30}]
)
def test_a_start_in_the_weights_proves_itself(
    changes: dict[str, Any], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of(task_of("olora", tiny_llama, tmp_path, num_steps=2, **changes), monkeypatch)
    judgement = judge_record(record)
    assert record.status == "ok" and judgement is not None and judgement.is_whole, record.reason
    said = [remark.sentence for remark in remarks_of(record) if remark.kind == "adapter start"]
    assert len(said) == (changes.get("dtype") == "bf16")
    assert all("of its adapted weights' norm" in sentence for sentence in said)


def test_only_zeros_must_move_at_every_rate() -> None:
    part = DeclaredPart(num_params=1000, dtypes=("bfloat16",))
    declared = Declaration(blocks=(part, part), others={}, adapters=("a", "b"))
    assert _least_rate(declared) == LEAST_NUMBER
    assert _least_rate(declared.model_copy(update={"adapters_begin_at_zero": False})) == 5e-3 / 1000
