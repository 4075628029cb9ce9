"""A checkpoint whose tensors are not the model's is refused by name: nothing is filled with random values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.catalogue.models import load_models
from harness.errors import HarnessError
from harness.preparing.assets import resolve_model
from harness.tensors.loading import load_model

Tensors = dict[str, torch.Tensor]
CPU = torch.device("cpu")


def changed(source: Path, target: Path, change: Callable[[Tensors], Tensors], **config: Any) -> Path:
    """Return a copy of a model's folder with other tensors and settings."""
    folder = Path(shutil.copytree(source, target))
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    set_config(folder, **config)
    return folder


def set_config(folder: Path, **config: Any) -> None:
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(table | config))


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def renamed(change: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {change(key): value for key, value in tensors.items()}


LAYER = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("lm_head.weight"), r"1 tensor is missing \(lm_head.weight\)$"),
        (without(LAYER), rf"1 tensor is missing \({LAYER}\)$"),
        (without("model.norm.weight"), r"1 tensor is missing \(model.norm.weight\)$"),
        (renamed(lambda name: f"_orig_mod.{name}"), r"'_orig_mod.' \(torch.compile\) stands in their names"),
        (renamed(lambda name: f"module.{name}"), r"'module.' \(DistributedDataParallel or DeepSpeed\)"),
        (renamed(lambda name: f"base_model.model.{name}"), r"'base_model.model.' \(peft\)"),
        (renamed(lambda name: f"module._orig_mod.{name}"), r"'_orig_mod.' .* and 'module.' "),
        (renamed(lambda name: name.replace("mlp.", "_checkpoint_wrapped_module.mlp.")), "activation checkpointing"),
        (lambda tensors: tensors | {"v_head.weight": torch.zeros(1, 32)}, r"1 tensor is unexpected \(v_head.weight\)"),
        (lambda tensors: tensors | {LAYER: torch.zeros(0)}, rf"1 tensor is of another shape \({LAYER} \(0,\) for "),
        (lambda tensors: tensors | {"lm_head.weight": torch.ones(261, 32)}, r"head.weight \(261, 32\) for \(260, 32\)"),
        (
            lambda tensors: tensors | {LAYER.replace("weight", "lora_A.weight"): torch.zeros(4, 32)},
            "they are an adapter's: merge it",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[Tensors], Tensors], said: str, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = changed(tiny_llama, tmp_path / "model", change)
    with pytest.raises(HarnessError, match=said) as caught:
        load_model(folder, "fp32", CPU)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_checkpoint_that_lacks_tensors_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = changed(tiny_llama, tmp_path / "model", without(LAYER))
    with pytest.raises(HarnessError, match="missing"):
        load_model(folder, "fp32", CPU)


def test_many_names_are_cut_and_counted(tiny_llama: Path, tmp_path: Path) -> None:
    folder = changed(tiny_llama, tmp_path / "model", renamed(lambda name: f"x.{name}"))
    with pytest.raises(HarnessError, match=r"39 tensors are missing \(.*and 35 more\); 39 tensors are unexpected"):
        load_model(folder, "fp32", CPU)


def test_layers_beyond_the_config_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = changed(tiny_llama, tmp_path / "model", lambda tensors: tensors, num_hidden_layers=3)
    with pytest.raises(HarnessError, match=r"9 tensors are unexpected \(model.layers.3.input_layernorm.weight"):
        load_model(folder, "fp32", CPU)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_tied_head_needs_no_tensor_of_its_own(dtype: str, tiny_llama_tied: Path, tmp_path: Path) -> None:
    saved = load_file(tiny_llama_tied / "model.safetensors")
    assert "lm_head.weight" not in saved
    model: Any = load_model(tiny_llama_tied, dtype, CPU)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    both = changed(
        tiny_llama_tied,
        tmp_path / "both",
        lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
    )
    assert torch.equal(dict(load_model(both, dtype, CPU).named_parameters())["model.embed_tokens.weight"],
                       model.lm_head.weight)  # fmt: skip


def test_a_tied_head_that_differs_is_refused(tiny_llama_tied: Path, tmp_path: Path) -> None:
    folder = changed(
        tiny_llama_tied, tmp_path / "model", lambda tensors: tensors | {"lm_head.weight": torch.ones(260, 32)}
    )
    with pytest.raises(HarnessError, match="holds two that differ: set it to false"):
        load_model(folder, "fp32", CPU)
    set_config(folder, tie_word_embeddings=False)
    assert bool((dict(load_model(folder, "fp32", CPU).named_parameters())["lm_head.weight"] == 1).all())


def test_buffers_that_old_checkpoints_hold_are_no_fault(tiny_llama: Path, tmp_path: Path) -> None:
    left = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(4)}
    folder = changed(tiny_llama, tmp_path / "model", lambda tensors: tensors | left)
    good, old = load_model(tiny_llama, "fp32", CPU), load_model(folder, "fp32", CPU)
    assert all(torch.equal(a, b) for a, b in zip(good.parameters(), old.parameters(), strict=True))


def test_a_model_saved_without_its_head_but_tied_loads(tiny_llama_tied: Path, tmp_path: Path) -> None:
    folder = changed(tiny_llama_tied, tmp_path / "model", renamed(lambda name: name.removeprefix("model.")))
    good, bare = load_model(tiny_llama_tied, "fp32", CPU), load_model(folder, "fp32", CPU)
    assert all(torch.equal(a, b) for a, b in zip(good.parameters(), bare.parameters(), strict=True))


def loaders() -> dict[str, Callable[[Path], object]]:
    spec = load_models()["smollm2-135m"]
    return {
        "load": lambda folder: load_model(folder, "fp32", CPU),
        "resolve": lambda folder: resolve_model(spec, folder),
    }


@pytest.mark.parametrize("door", loaders())
@pytest.mark.parametrize("config", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "fp8"}, {"bits": 8}])
def test_quantised_weights_are_refused(door: str, config: dict[str, Any], tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    set_config(folder, quantization_config=config)
    with pytest.raises(HarnessError, match=rf"quantization_config \({config.get('quant_method', 'of no name')}\)"):
        loaders()[door](folder)


@pytest.mark.parametrize("door", loaders())
@pytest.mark.parametrize(
    ("dtype", "said"),
    [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.uint8, "U8"), (torch.float16, None)],
)
def test_weights_in_few_bits_without_their_scales_are_refused(
    door: str, dtype: torch.dtype, said: str | None, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = changed(tiny_llama, tmp_path / "model", lambda tensors: {k: v.to(dtype) for k, v in tensors.items()})
    if said is None:
        loaders()[door](folder)
        return
    with pytest.raises(HarnessError, match=f"lm_head.weight is of type {said}; weights are expected"):
        loaders()[door](folder)


@pytest.mark.parametrize("door", loaders())
@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_in_the_place_of_a_model_is_named(door: str, whole: bool, tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    if whole:
        shutil.copytree(tiny_llama, folder)
    else:
        folder.mkdir()
        save_file({"a": torch.zeros(1)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    with pytest.raises(HarnessError, match="says that it is an adapter of some/base, which is no model"):
        loaders()[door](folder)


@pytest.mark.parametrize("door", loaders())
def test_a_shard_that_is_missing_is_named(door: str, tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    parts = {files[0]: dict(list(tensors.items())[:20]), files[1]: dict(list(tensors.items())[20:])}
    for file, part in parts.items():
        save_file(part, folder / file, metadata={"format": "pt"})
    names = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    loaders()[door](folder)
    (folder / files[1]).unlink()
    with pytest.raises(HarnessError, match=f"names 2 files of weights, and {files[1]} of them is not in the folder"):
        loaders()[door](folder)
