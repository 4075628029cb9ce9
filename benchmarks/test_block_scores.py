"""Block scores from the checkpoint, a block at a time, against a pass of the whole model: time, memory, equal scores.

Time: a scoring loads, or opens, a model and takes its outlier ratios. Three processes take turns, of which the others
wait: this build streamed, this build with the whole model, and an older build, which knows the whole model alone, in
its own environment; imports, a tiny model and one round before are not timed. Ratios are taken round by round; the
scores of all must be the same numbers. Models: the embedded SmolLM2-135M, and a random one of 1.1 billion.

Memory: ``harness layers`` itself on a random checkpoint of LLaMA-2-7B's shape, of shards as large as a block, in a
process whose peak is the kernel's VmHWM: all resident pages, those of mapped files among them (``ru_maxrss`` would hold
what the parent had before it became the child). Once all 32 blocks with two samples, once two blocks with the suite's
own 64 samples of 2048 tokens: what is kept of these between two blocks is as in the whole model, whose other blocks
come and go like these two.

    OMP_NUM_THREADS=1 HARNESS_BENCH_BASELINE_PYTHON=/path/to/old/bin/python pytest benchmarks/test_block_scores.py -s

``HARNESS_BENCH_BASELINE_PYTHON`` is a Python with an older build installed; unset, that column is left out.
``HARNESS_BENCH_ROUNDS`` sets the rounds of the timing (default 3), ``HARNESS_BENCH_BLOCKS`` the blocks of the large
model (default 32, which take 14 GB of disk in pytest's temporary folder, removed at the end). ``HARNESS_BENCH_FOLDER``
names a folder in which checkpoints are left instead, and taken from where they are there.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from harness.assets.cache import cache_root
from harness.checkpoint_files import INDEX
from harness.data.packaged import rows_place

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' own models and records
from tests.conftest import byte_tokenizer, needed

ROOT = Path(__file__).parent.parent
BASELINE = os.environ.get("HARNESS_BENCH_BASELINE_PYTHON")
ROUNDS = int(os.environ.get("HARNESS_BENCH_ROUNDS", "3"))
BLOCKS = int(os.environ.get("HARNESS_BENCH_BLOCKS", "32"))
FOLDER = os.environ.get("HARNESS_BENCH_FOLDER")
MOST_RATIO = 1.3
MOST_GIB = 2.5
GIB = 2**30

SCORING = """
import json, sys, time
from pathlib import Path
import torch
import transformers.models.llama.modeling_llama
from harness.engine.block_scores import block_scores
from harness.method import BlockScoreRequest
try:
    from harness.catalogue.models import BaseModelSpec
    from harness.tensors.decoder import find_decoder
    from harness.tensors.loading import load_model
except ImportError:  # of an older build
    from harness.engine.decoder import find_decoder
    from harness.engine.loading import load_model
    from harness.models import BaseModelSpec

how, tiny, folder, dtype, number, length, scratch = sys.argv[1:]
host, request = torch.device("cpu"), BlockScoreRequest("outlier", 5.0)

def score(folder, samples):
    spec = BaseModelSpec(name="m", architecture="LlamaForCausalLM", folder=folder)
    if how == "streamed":
        from harness.engine.streamed_scores import checkpoint_scorer
        def tell(sentence):
            raise AssertionError(sentence)
        return checkpoint_scorer(folder, dtype, host, spec, scratch=Path(scratch), tell=tell)(request, samples)
    model = load_model(folder, dtype, host)
    return block_scores(request, model, find_decoder(model, spec), samples)

generator = torch.Generator().manual_seed(0)
samples = [torch.randint(0, 250, (1, int(length)), generator=generator) for _ in range(int(number))]
score(Path(tiny), samples[:1])
for _ in sys.stdin:
    start, cpu = time.perf_counter(), time.process_time()
    scores = score(Path(folder), samples)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
    print(json.dumps({"wall": wall, "cpu": cpu, "peak": peak, "scores": scores}), flush=True)
"""
LAYERS = """
import sys
from harness.cli import main
code = main(sys.argv[2:])
with open(sys.argv[1], "w") as out:
    out.write(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


@dataclass(frozen=True)
class Shape:
    """What a random Llama looks like."""

    width: int
    inner: int
    blocks: int
    heads: int
    kv_heads: int
    vocabulary: int

    def config(self) -> dict[str, Any]:
        """Return its config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "vocab_size": self.vocabulary,
            "bos_token_id": 256,
            "eos_token_id": 257,
        }


TINY = Shape(64, 176, 2, 4, 2, 260)
BILLION = Shape(2048, 5632, 22, 32, 4, 32000)


def llama2_7b(blocks: int) -> Shape:
    """Return LLaMA-2-7B's shape, with some number of blocks."""
    return Shape(4096, 11008, blocks, 32, 32, 32000)


def write_checkpoint(folder: Path, shape: Shape) -> Path:
    """Write a random checkpoint in bf16, a shard a block; blocks are one drawn block under another scale each.

    One that is there whole is left as it is; its configuration is written last.
    """
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)

    def drawn(*size: int) -> torch.Tensor:
        return (torch.randn(size, generator=generator) * 0.02).to(torch.bfloat16)

    kv = shape.width // shape.heads * shape.kv_heads
    inside = {
        "self_attn.q_proj": drawn(shape.width, shape.width),
        "self_attn.k_proj": drawn(kv, shape.width),
        "self_attn.v_proj": drawn(kv, shape.width),
        "self_attn.o_proj": drawn(shape.width, shape.width),
        "mlp.gate_proj": drawn(shape.inner, shape.width),
        "mlp.up_proj": drawn(shape.inner, shape.width),
        "mlp.down_proj": drawn(shape.width, shape.inner),
        "input_layernorm": torch.ones(shape.width, dtype=torch.bfloat16),
        "post_attention_layernorm": torch.ones(shape.width, dtype=torch.bfloat16),
    }
    places: dict[str, str] = {}

    def write(tensors: dict[str, torch.Tensor]) -> None:
        name = f"model-{len(set(places.values())) + 1:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, name))

    write({"model.embed_tokens.weight": drawn(shape.vocabulary, shape.width)})
    for block in range(shape.blocks):
        scale = 1.0 + block / shape.blocks
        write({f"model.layers.{block}.{name}.weight": values * scale for name, values in inside.items()})
    head = drawn(shape.vocabulary, shape.width)
    write({"model.norm.weight": torch.ones(shape.width, dtype=torch.bfloat16), "lm_head.weight": head})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    byte_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(shape.config()))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if FOLDER is not None:
        yield Path(FOLDER)
        return
    folder = tmp_path_factory.mktemp("checkpoints")
    yield folder
    shutil.rmtree(folder)


def begun(python: str, code: str, *arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """Begin a process that runs code; this build's own Python imports this checkout, another what it has installed."""
    environment = dict(os.environ) | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    environment.pop("PYTHONPATH", None)
    if python == sys.executable:
        environment["PYTHONPATH"] = str(ROOT)
    command = [python, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    with (cwd / "errors").open("w") as errors:
        return subprocess.Popen(command, cwd=cwd, env=environment, stdin=pipe, stdout=pipe, stderr=errors, text=True)


def scored(process: subprocess.Popen[str], cwd: Path) -> dict[str, Any]:
    """Return times, peak so far and scores of one more scoring of a process."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("once more\n")
    process.stdin.flush()
    said = process.stdout.readline()
    assert said, (cwd / "errors").read_text()[-3000:]
    found: dict[str, Any] = json.loads(said)
    return found


@pytest.mark.parametrize(
    ("model", "dtype", "number", "length"),
    [
        ("smollm2-135m", "fp32", 8, 512),
        ("smollm2-135m", "bf16", 8, 512),
        ("random 1.1B", "bf16", 4, 512),
    ],
)
def test_time_against_a_pass_of_the_whole_model(  # noqa: PLR0917  # pytest hands fixtures over by name
    model: str, dtype: str, number: int, length: int, place: Path, tmp_path: Path
) -> None:
    if model == "smollm2-135m":
        from harness.catalogue.models import load_models
        from harness.preparing.assets import converted_model_place

        folder = needed(converted_model_place(load_models()["smollm2-135m"]))
    else:
        folder = write_checkpoint(place / "billion", BILLION)
    tiny = write_checkpoint(place / "tiny", TINY)
    ways = {"streamed": (sys.executable, "streamed"), "whole": (sys.executable, "whole")}
    if BASELINE is None:
        print("\nHARNESS_BENCH_BASELINE_PYTHON is not set: no older build is measured")
    else:
        ways["older build, whole"] = (BASELINE, "whole")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    asked = (tiny, folder, dtype, str(number), str(length), place / "scratch")
    with ExitStack() as stack:
        processes = {name: begun(python, SCORING, how, *asked, cwd=tmp_path) for name, (python, how) in ways.items()}
        for process in processes.values():
            stack.callback(process.kill)
        for turn in range(ROUNDS + 1):  # the first fills the system's cache of files
            for name in sorted(ways, reverse=bool(turn % 2)):
                one = scored(processes[name], tmp_path)
                if turn:
                    found[name].append(one)
    scores = found["streamed"][0]["scores"]
    assert len(set(scores)) > len(scores) // 2
    assert all(one["scores"] == scores for several in found.values() for one in several)
    print(f"\n{model}, {dtype}, {number} samples of {length} tokens, {ROUNDS} rounds")
    print(f"{'':20} {'wall s':>8} {'cpu s':>8} {'peak MiB':>9} {'streamed / it, wall':>20} {'cpu':>6}")
    ratios: dict[str, float] = {}
    for name, several in found.items():
        wall, cpu, peak = (statistics.median(one[key] for one in several) for key in ("wall", "cpu", "peak"))
        pairs = list(zip(found["streamed"], several, strict=True))
        ratios[name] = statistics.median(streamed["cpu"] / other["cpu"] for streamed, other in pairs)
        by_wall = statistics.median(streamed["wall"] / other["wall"] for streamed, other in pairs)
        print(f"{name:20} {wall:8.2f} {cpu:8.2f} {peak / 2**20:9.0f} {by_wall:20.3f} {ratios[name]:6.3f}")
    assert all(ratio <= MOST_RATIO for ratio in ratios.values())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cache with what is prepared, and without scores."""
    folder = tmp_path / "cache"
    folder.mkdir()
    for there in (cache_root() / "wheels", needed(rows_place())):
        (folder / there.name).symlink_to(there)
    monkeypatch.setenv("HARNESS_CACHE", str(folder))
    return folder


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("blocks", "number", "length"),
    [pytest.param(BLOCKS, 2, 512, id="all-blocks"), pytest.param(2, 64, 2048, id="all-samples")],
)
def test_peak_memory_of_llama2_7b(blocks: int, number: int, length: int, place: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(place / f"llama2-7b-{blocks}", llama2_7b(blocks))
    suite = (ROOT / "suites" / "gsm8k.toml").read_text()
    assert "num_samples = 64\nsequence_length = 2048" in suite
    suite = suite.replace(
        "num_samples = 64\nsequence_length = 2048", f"num_samples = {number}\nsequence_length = {length}"
    )
    (tmp_path / "scored.toml").write_text(suite)
    # Of a label that draws two blocks; the ratios are what is asked for.
    asked = ("--label", "lisa", "--tau", "3", "--json")
    arguments = ("layers", "--suite", "scored.toml", "--model", f"llama2-7b={folder}", "--offline")
    with begun(sys.executable, LAYERS, tmp_path / "peak", *arguments, *asked, cwd=tmp_path) as process:
        said, _ = process.communicate()
    errors = (tmp_path / "errors").read_text()
    assert process.returncode == 0, errors[-3000:]
    table = json.loads(said)
    assert len(table["blocks"]) == blocks
    assert all(row["score"] > 0.0 for row in table["blocks"])
    assert table["calibration"]["num_samples"] == number
    peak = int((tmp_path / "peak").read_text()) * 1024
    weights = 2 * (blocks * 202_383_360 + 2 * 32000 * 4096 + 4096)
    states = number * length * 4096 * 2 * (blocks > 1)
    print(
        f"\nLLaMA-2-7B's shape, {blocks} blocks, {number} samples of {length} tokens, {table['dtype']}: weights "
        f"{weights / GIB:.2f} GiB, hidden states {states / GIB:.2f} GiB, peak {peak / GIB:.2f} GiB"
    )
    print("\n".join(errors.splitlines()[-6:]))
    assert peak <= MOST_GIB * GIB
