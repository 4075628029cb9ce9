"""A model of one's own under a name of its own: given by its place, its parts found, identified by what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.assets.cache import cache_root
from harness.catalogue.models import BaseModelSpec, given_model
from harness.catalogue.resolved import load_catalogue, packaged_catalogue
from harness.commands._models import located
from harness.commands._selection import chosen_model, select
from harness.commands.requests import SelectionRequest
from harness.errors import HarnessError
from harness.preparing.assets import resolve_model
from tests.families import tiny_folder
from tests.unit.test_assets_hub import FILES, SHARDED, _Hub, hub  # noqa: F401
from tests.unit.test_suite import TEXT

GPT2 = {"blocks": "transformer.h", "embedding": "transformer.wte", "final_norm": "transformer.ln_f"}
KNOWN = packaged_catalogue().models


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("gpt2", tmp_path_factory.mktemp("own") / "gpt2")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def selected(tmp_path: Path, text: str, **chosen: Any) -> Any:
    (tmp_path / "own.toml").write_text(text)
    empty: dict[str, Any] = {"models": (), "labels": ("base",), "seeds": (), "overrides": (), "data": ()}
    return select(SelectionRequest(**{"suite": str(tmp_path / "own.toml"), **empty, **chosen}), tuned=False)


def test_a_folder_under_any_name_is_the_run_that_its_entry_written_out_is(tmp_path: Path, gpt2: Path) -> None:
    given = selected(tmp_path, TEXT, models=(f"mine={gpt2}",))
    assert {one.model_name for one in given.specs} == {"mine"}
    assert given.models["mine"].architecture == "GPT2LMHeadModel"
    places = "".join(f'{part} = "{place}"\n' for part, place in GPT2.items())
    for entry in ("", f'architecture = "GPT2LMHeadModel"\n{places}head = "lm_head"\n'):
        own = TEXT.replace('models = ["a"]', 'models = ["mine"]') + f'[base_models.mine]\nfolder = "{gpt2}"\n{entry}'
        written = selected(tmp_path, own)
        assert [one.run_id for one in written.specs] == [one.run_id for one in given.specs]
        assert written.specs[0].model == {**given.specs[0].model, **GPT2}


def test_a_model_of_the_usual_kind_says_nothing_of_its_parts(tmp_path: Path, tiny_llama: Path) -> None:
    given = selected(tmp_path, TEXT, models=(f"mine={tiny_llama}",))
    assert set(given.specs[0].model) == {"name", "source", "checksum"}
    assert not (cache_root() / "model_parts").exists(), "and nobody has to look"


def test_what_is_found_is_kept_and_a_damaged_file_is_found_anew(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = BaseModelSpec(name="mine", folder=gpt2)
    found = located(spec)
    assert {part: getattr(found, part) for part in GPT2} == GPT2
    (kept,) = (cache_root() / "model_parts").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr("harness.tensors.parts.parts_of", lambda *_: pytest.fail("looked again"))
        assert located(spec) == found
    kept.write_text(json.dumps({"key": {}, "places": {"blocks": "elsewhere"}}))
    assert located(spec) == found


def test_a_folder_in_the_place_of_a_named_model_has_its_own_parts(gpt2: Path) -> None:
    found = located(chosen_model(f"llama2-7b={gpt2}", KNOWN))
    assert (found.name, found.architecture, found.blocks) == ("llama2-7b", "GPT2LMHeadModel", "transformer.h")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("mine=", "expected NAME=PATH or NAME=hub:OWNER/NAME@REVISION"),
        ("=hub:a/b", "'' cannot be the name of a model"),
        ("../mine=hub:a/b", "cannot be the name of a model"),
        ("m\ni=hub:a/b", "'m i' cannot be the name of a model"),
        ("a" * 65 + "=hub:a/b", "cannot be the name of a model"),
        ("mine=hub:ab", "expected NAME=hub:OWNER/NAME@REVISION"),
        ("mine=hub:a/b@", "expected NAME=hub:OWNER/NAME@REVISION"),
        ("mine=hub:a/../b", "expected NAME=hub:OWNER/NAME@REVISION"),
        ("mine=hub:a/b@x y", "expected NAME=hub:OWNER/NAME@REVISION"),
        ("mine=/nowhere/at/all", "there is no file or folder '/nowhere/at/all'"),
    ],
)
def test_what_can_be_no_model_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(HarnessError, match=sentence) as caught:
        chosen_model(text, KNOWN)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (b"\xff\xfe", "the configuration cannot be read"),
        (b"[]", "the configuration cannot be read"),
        (b'{"model_type": "nonsense"}', "the configuration cannot be read"),
        (b'{"model_type": "gpt2", "n_layer": 100000000}', "has .'100000000'. layers, expected 1 to 1000"),
        (b'{"model_type": "gpt2", "n_layer": 0}', "has .'0'. layers, expected 1 to 1000"),
        (b'{"model_type": "gpt2", "n_head": 5}', "no causal language model can be built from .*config.json"),
        (b'{"model_type": "vit"}', "no causal language model can be built from .*config.json"),
    ],
)
def test_a_configuration_that_no_model_has_is_one_sentence(
    config: bytes, sentence: str, gpt2: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_bytes(config)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(HarnessError, match=sentence) as caught:
        located(chosen_model(f"mine={folder}", KNOWN))
    assert "\n" not in str(caught.value)


def test_a_file_is_no_folder_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(HarnessError, match="there is no such folder"):
        chosen_model(f"mine={tmp_path / 'config.json'}", KNOWN)


def test_a_repository_on_the_hub_is_given_by_its_name(
    hub: type[_Hub],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    gpt2: Path,
) -> None:
    from harness.assets.hub import cached_config, fetch_config, model_asset, pinned_revision

    for files in (FILES, SHARDED):
        monkeypatch.setitem(files, "config.json", (gpt2 / "config.json").read_bytes())
    spec = located(chosen_model("mine=hub:tiny/model@v1", KNOWN))
    assert (spec.hub_id, spec.revision, spec.blocks, spec.can_be_built()) == ("tiny/model", "v1", None, False)
    assert hub.requests == [], "nothing is fetched to say what a run would be"
    fetch_config(model_asset(spec))
    assert not any("safetensors" in path for path in hub.requests), "the configuration comes alone"
    found = located(chosen_model("mine=hub:tiny/model@v1", KNOWN))
    assert found.revision == pinned_revision(model_asset(spec)) == "a" * 40
    assert {part: getattr(found, part) for part in GPT2} == GPT2 and found.can_be_built()
    assert found.identity() == {"name": "mine", "source": "hub:tiny/model", "revision": "a" * 40, **GPT2}
    hub.requests.clear()
    assert fetch_config(model_asset(spec)) == cached_config(model_asset(spec)) and hub.requests == []


def test_a_hub_model_keeps_what_its_entry_says_of_its_parts(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('[base_models.mine]\nhub_id = "a/b"\nblocks = "some.blocks"\n')
    known = load_catalogue(tmp_path / "own.toml").models
    assert given_model("mine", "hub:c/d", known, "--model").blocks == "some.blocks"
    assert resolve_model(given_model("llama2-7b", "hub:c/d@main", KNOWN, "--model")).hub_id == "c/d"


@pytest.mark.parametrize("table", ["[base_models.mine.shape]\n", 'packaged = "smollm2-135m"\n'])
def test_a_shape_needs_its_architecture(table: str, tmp_path: Path) -> None:
    shape = "".join(f"{key} = 8\n" for key in ("hidden_size", "intermediate_size", "num_layers", "num_heads"))
    shape += "num_kv_heads = 8\nhead_dim = 8\nvocab_size = 8\nmax_positions = 8\nrope_theta = 8.0\ntied_head = true\n"
    (tmp_path / "own.toml").write_text("[base_models.mine]\n" + table + (shape if "shape" in table else ""))
    with pytest.raises(HarnessError, match="needs its architecture: there is no"):
        load_catalogue(tmp_path / "own.toml")
