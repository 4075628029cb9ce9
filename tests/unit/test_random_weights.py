"""Random weights and random tokens: what they are built from, in which dtype, under which identity, from which seed."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.catalogue.datasets import load_datasets
from harness.catalogue.models import BaseModelSpec, ModelShape, load_models
from harness.data.batches import TrainData, validation_batches
from harness.data.drawn import RandomTokens, run_rows
from harness.errors import HarnessError
from harness.expansion import expand, load_suite
from harness.spec import RunSpec
from harness.tensors import seeding
from harness.tensors.loading import build_model, load_model, model_config
from tests.records import TRAIN

SHAPE = ModelShape(
    hidden_size=32,
    intermediate_size=64,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=260,
    max_positions=1024,
    rope_theta=10000.0,
    tied_head=False,
)
DRAWN = TRAIN.model_copy(update={"data": "random-tokens", "sequence_length": 16})


def tiny(architecture: str = "LlamaForCausalLM", **changes: Any) -> BaseModelSpec:
    shape = SHAPE.model_copy(update=changes)
    return BaseModelSpec(name="tiny", architecture=architecture, hub_id="someone/tiny", shape=shape)


class Makes(TorchDispatchMode):
    """Keeps the largest size of what operations return, by dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: dict[torch.dtype, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.largest[tensor.dtype] = max(self.largest.get(tensor.dtype, 0), tensor.numel())
        return made


def described(model: torch.nn.Module) -> dict[str, tuple[Any, ...]]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["llama", "llama_tied", "mistral"])
def test_a_built_model_is_what_from_pretrained_gives(kind: str, dtype: str, request: pytest.FixtureRequest) -> None:
    loaded = load_model(request.getfixturevalue(f"tiny_{kind}"), dtype, torch.device("cpu"))
    architecture = "MistralForCausalLM" if kind == "mistral" else "LlamaForCausalLM"
    window = {"sliding_window": 4096} if kind == "mistral" else {}
    spec = tiny(architecture, tied_head=kind == "llama_tied", **window)
    built = build_model(spec, dtype, "cpu")
    assert type(built) is type(loaded)
    assert described(built) == described(loaded)
    assert not built.training
    assert getattr(built.config, "sliding_window", None) == getattr(loaded.config, "sliding_window", None)


def test_weights_in_bf16_never_exist_in_fp32() -> None:
    with Makes() as makes:
        build_model(tiny(), "bf16", "cpu")
    assert makes.largest[torch.bfloat16] == 260 * 32
    assert makes.largest[torch.float32] <= SHAPE.head_dim  # the rotary frequencies


def test_a_model_on_meta_holds_nothing_and_has_the_papers_parameters() -> None:
    model = build_model(load_models()["mistral-7b"], "bf16", "meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert sum(p.numel() for p in model.parameters()) == 7_241_732_096
    assert model.config.sliding_window == 4096


def test_a_folder_is_built_from_its_own_configuration(tiny_mistral: Path) -> None:
    spec = tiny().model_copy(update={"folder": tiny_mistral})
    assert type(build_model(spec, "fp32", "meta")).__name__ == "MistralForCausalLM"


def test_equal_seeds_give_equal_weights_and_others_do_not() -> None:
    def first(seed: int) -> torch.Tensor:
        with seeding.seeded_globally(seed, "weights"):
            return build_model(tiny(), "bf16", "cpu").get_parameter("lm_head.weight")

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_random_weights_have_an_identity_of_their_own() -> None:
    spec = load_models()["llama2-7b"]
    found = spec.with_weights("random").identity()
    assert (found["name"], found["source"]) == ("llama2-7b", "random")
    assert found != spec.identity()
    assert found == spec.model_copy(update={"revision": "x"}).with_weights("random").identity()
    assert found["checksum"] != tiny().with_weights("random").identity()["checksum"]
    assert spec.with_weights("pretrained").identity() == spec.identity()


def test_a_model_of_unknown_shape_is_one_sentence(tiny_llama: Path) -> None:
    unknown = BaseModelSpec(name="mine", architecture="LlamaForCausalLM", hub_id="someone/mine")
    with pytest.raises(HarnessError, match=r"'mine' cannot have random weights: it has no shape .* --model mine=PATH"):
        unknown.with_weights("random")
    with pytest.raises(HarnessError, match="model 'mine' has no shape"):
        model_config(unknown)
    assert unknown.model_copy(update={"folder": tiny_llama}).with_weights("random").identity()["source"] == "random"
    with pytest.raises(HarnessError, match="has no NoneForCausalLM"):
        model_config(tiny("NoneForCausalLM"))
    with pytest.raises(HarnessError, match="sliding_window = 8 cannot be built as LlamaForCausalLM"):
        model_config(tiny(sliding_window=8))


def test_random_tokens_are_full_rows_all_trained_without_a_tokenizer() -> None:
    rows = run_rows(DRAWN, load_datasets()[DRAWN.data], vocab_size=260, seed=1).train
    assert len(rows) == 1024
    data = TrainData(rows, None, DRAWN, seed=1)
    ((batch,),) = islice(data.step_batches(), 1)
    assert batch.input_ids.shape == (2, 16)
    assert batch.attention_mask is None
    assert (batch.num_tokens, batch.num_trained_tokens) == (32, 30)
    assert torch.equal(batch.labels, batch.input_ids)
    assert int(batch.input_ids.max()) < 260


@pytest.mark.parametrize("packing", [False, True])
def test_random_tokens_come_from_the_seed_and_parts_share_none(packing: bool) -> None:
    settings = DRAWN.model_copy(update={"packing": packing, "validation_rows": 2})

    def rows(part: Any, seed: int) -> Any:
        return getattr(run_rows(settings, load_datasets()[settings.data], vocab_size=260, seed=seed), part)

    def first(seed: int) -> list[int]:
        (batch,) = next(TrainData(rows("train", seed), None, settings, seed).step_batches())
        return list(batch.input_ids.flatten().tolist())

    assert first(1) == first(1)
    assert first(1) != first(2)
    assert rows("train", 1)[0] != rows("validation", 1)[0]
    (held_out,) = validation_batches(rows("validation", 1), None, settings)
    assert held_out.input_ids.shape == (2, 16)


def test_every_id_of_the_vocabulary_can_be_drawn() -> None:
    rows = RandomTokens(num_rows=4, length=64, vocab_size=5, seed=1, part="train")
    assert {token for row in rows for token in row.ids} == set(range(5))


SUITE = """
name = "tiny"
version = 1
protocol = "test"
description = "a suite of the tests"
models = ["llama2-7b"]
weights = "random"
labels = ["full"]
seeds = [1]
[train]
data = "random-tokens"
prompt = "plain"
loss_on = "all"
packing = false
sequence_length = 64
batch_size = 2
num_steps = 4
learning_rate = 1e-3
lr_scheduler = "linear"
dtype = "bf16"
[evaluation]
tasks = []
"""


def test_a_suite_says_which_weights_and_its_runs_carry_them(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(SUITE)
    suite = load_suite(str(tmp_path / "tiny.toml"))
    model = load_models()["llama2-7b"].with_weights(suite.weights)
    sources = {"random-tokens": load_datasets()["random-tokens"].identity()}
    (spec,) = expand(suite, models={"llama2-7b": model}, sources=sources)
    assert spec.model["source"] == "random"
    assert spec.sources == {"train": "drawn:uniform:1024"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('weights = "random"', 'weights = "none"', "weights is 'none'"),
        ("tasks = []", 'tasks = ["piqa"]', "tasks need rows"),
        ("tasks = []", 'tasks = ["piqa"]\nrows = "hub"', "its data 'random-tokens' are random tokens, so scores would"),
        (
            'data = "random-tokens"',
            'data = "gsm8k"',
            "random weights come without a tokenizer, which data 'gsm8k' need",
        ),
        (
            "[evaluation]",
            '[calibration]\ndata = "random-tokens"\nnum_samples = 1\nsequence_length = 8\n[evaluation]',
            "[calibration] needs a data set of text, and 'random-tokens' holds none",
        ),
    ],
)
def test_what_does_not_go_together_is_one_sentence(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in SUITE
    (tmp_path / "tiny.toml").write_text(SUITE.replace(old, new))
    with pytest.raises(HarnessError) as caught:
        load_suite(str(tmp_path / "tiny.toml"))
    assert said in str(caught.value)
    assert "tiny.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_random_weights_have_no_scores_to_draw_blocks_by(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(SUITE.replace('"full"', '"owlore"'))
    suite = load_suite(str(tmp_path / "tiny.toml"))
    model = load_models()["llama2-7b"].with_weights("random")
    with pytest.raises(HarnessError, match="scores of random weights mean nothing; set probability = 'uniform'"):
        expand(suite, models={"llama2-7b": model}, sources={})


def memory_specs(name: str) -> list[RunSpec]:
    suite, known = load_suite(name), load_models()
    models = {model: known[model].with_weights(suite.weights) for model in suite.models}
    return expand(suite, models=models, sources={})


def test_the_memory_suite_downloads_and_scores_nothing_and_is_short() -> None:
    specs = memory_specs("memory")
    assert {spec.model_name for spec in specs} == {"llama2-7b", "llama3-8b", "mistral-7b", "tinyllama-1.1b"}
    for spec in specs:
        assert spec.model["source"] == "random"
        assert spec.evaluation.tasks == ()
        assert spec.calibration is None
        assert spec.train is not None
        assert spec.train.num_steps is not None
        assert spec.train.num_steps <= 60
        assert spec.train.dtype == "bf16"
        shape = f"{spec.train.batch_size}x{spec.train.sequence_length}"
        assert spec.label.endswith(f"-{shape}")
        assert spec.train.gradient_checkpointing == (shape != "1x1024")
        if (active := spec.config.get("active_layers")) and "steady" not in spec.label and "svd" not in spec.label:
            assert (spec.config["sampling"], spec.config["interval_steps"]) == ("tour", 1)
            assert spec.train.num_steps * int(str(active)) >= 32


def test_ours_and_the_codes_settings_are_told_apart() -> None:
    specs = {spec.label: spec for spec in memory_specs("memory") if spec.model_name == "llama2-7b"}
    for label, spec in specs.items():
        assert spec.train is not None
        ours = "-ours" in label or "-steady" in label
        assert (spec.train.loss_chunk_columns is not None) == ours
        assert spec.config["update_in_backward"] == (ours or "layerwise" in label)
        clipped = "-ours-clipped" in label or ("-ours" not in label and spec.config["update_in_backward"] is False)
        assert (spec.train.max_grad_norm is not None) == (clipped and not label.endswith("1x1024"))
        assert spec.config["two_pass_clipping"] == ("-ours-clipped" in label)
        if "state_policy" in spec.config and not label.endswith("1x1024"):
            assert spec.config["state_policy"] == ("drop" if ours else "keep")


def test_every_setting_of_the_memory_suites_labels_says_its_source() -> None:
    for label, entry in load_suite("memory").methods.items():
        assert entry.alias_of is not None
        assert entry.summary, label
        assert set(entry.sources().values()) <= {"paper", "code", "ours"}, label


def test_the_small_suite_takes_the_same_paths() -> None:
    specs = memory_specs("memory-small")
    assert any(spec.config["update_in_backward"] for spec in specs)
    assert any(spec.config["two_pass_clipping"] for spec in specs)
    assert {spec.method for spec in specs} == {"full", "lora", "galore", "lisa", "owlore"}
    assert all(spec.model["source"] == "random" for spec in specs)
