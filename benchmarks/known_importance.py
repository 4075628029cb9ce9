"""Known importance: do the scores that blocks are drawn by find the blocks that have to be trained?

Which blocks of a real model matter for a task nobody knows, so no law of sampling can be held against the truth. Here
it is planted. A small teacher writes sequences; a student is the teacher with some blocks disturbed, and is fine-tuned
on what the teacher wrote (``known_importance_students.py``). What has to be trained is then known: the disturbed
blocks. Every arm is a method of the harness with its own law, stepped by the harness's own training loop on the same
rows, everything but the law alike. Arms that know the truth bound the rest: the planted blocks alone, the others alone.

    OMP_NUM_THREADS=1 python benchmarks/known_importance.py --write docs      # some minutes of one core
    python benchmarks/known_importance.py --seed 1 --kind reset               # one student, to standard output

``--write`` leaves the results as JSON in a folder, and makes page and plot from them; ``--again`` makes both anew from
the JSON files that lie there. Everything follows from the seeds.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from known_importance_report import write_page
from known_importance_students import (
    BLOCKS,
    HELD_OUT_ROWS,
    KINDS,
    LENGTH,
    PLANTED,
    ROWS,
    STEPS,
    VOCABULARY,
    WIDTH,
    Student,
    students,
)
from torch import nn

from harness.catalogue.labels import load_labels
from harness.catalogue.models import BaseModelSpec
from harness.engine.block_scores import block_scores
from harness.engine.context import EngineContext
from harness.engine.training import TrainingLoop, mean_loss
from harness.errors import Refused
from harness.method import METHODS, Method
from harness.settings import TrainSettings
from harness.tensors.decoder import find_decoder

READ_EVERY, LEARNING_RATE, INTERVAL = 10, 2e-3, 4
"""Steps between readings of the held-out loss; steps of a period."""
TAU = 5.0
"""Threshold of the outlier ratio: at the papers' 13 a model this small has no outlier at all."""
SEEDS = (1, 2, 3, 4, 5)
SPEC = BaseModelSpec(name="teacher", architecture="LlamaForCausalLM", folder=Path())
TRAIN = TrainSettings(
    data="teacher",
    prompt="plain",
    loss_on="all",
    packing=True,
    sequence_length=LENGTH,
    batch_size=ROWS,
    num_steps=STEPS,
    learning_rate=LEARNING_RATE,
    lr_scheduler="constant",
    dtype="fp32",
)
ALIKE: dict[str, Any] = {
    "active_layers": PLANTED,
    "interval_steps": INTERVAL,
    "sampling": "without_replacement",
    "state_policy": "keep",
    "active_state": "resident",
    "returning_step_counter": "keep",
    **dict.fromkeys(("train_embedding", "train_head", "train_final_norm"), False),
    "adamw_rule": "torch",
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "moment_dtype": "fp32",
    **dict.fromkeys(("master_weights", "stochastic_rounding", "update_in_backward"), False),
}
"""Settings that every arm shares, where its method has them."""
ALPHA = {"tau": None, "alpha_estimator": "hill", "alpha_mapping": "softmax"}


@dataclass(frozen=True)
class Arm:
    """A law of sampling under test: a label, and the settings that it changes."""

    name: str
    label: str
    changes: dict[str, Any]
    knows: bool = False
    """True for what is told which blocks were planted, or trains all."""


ARMS = (
    Arm("uniform", "lisa-matched", {}),
    Arm("decrease", "lisa-d", {}),
    Arm("outlier", "ows-fullrank", {"tau": TAU}),
    Arm("outlier reversed", "ows-fullrank", {"tau": TAU, "probability": "outlier_reverse"}),
    Arm("alpha (Hill)", "ows-fullrank", {"probability": "alpha", **ALPHA}),
    Arm("alpha (Hill) reversed", "ows-fullrank", {"probability": "alpha_reverse", **ALPHA}),
    Arm("weight norm", "ows-fullrank", {"probability": "weight_norm", "tau": None}),
    Arm("gradient norm (GRASS)", "grass", {"probe_batches": 2, "stage_steps": 2 * INTERVAL}),
    Arm("planted blocks only", "ows-fullrank", {"probability": "file", "tau": None}, knows=True),
    Arm("other blocks only", "ows-fullrank", {"probability": "file", "tau": None}, knows=True),
    Arm("all blocks", "lisa-matched", {"active_layers": BLOCKS}, knows=True),
)
"""One whose label there is not is left out."""


def _context(model: nn.Module, seed: int, steps: int, scores: dict[Any, Sequence[float]]) -> EngineContext:
    decoder = find_decoder(model, SPEC)
    return EngineContext(seed=seed, num_steps=steps, train=TRAIN, decoder=decoder, block_scores=scores)


def method_of(arm: Arm, planted: Sequence[int], folder: Path) -> Method:
    """Return the method of an arm with its settings; the arms that know the truth read it from a file."""
    entry = load_labels()[arm.label]
    method = METHODS.get(entry.method)
    known = method.Config.model_fields
    values = {key: value for key, value in {**entry.values(), **ALIKE, **arm.changes}.items() if key in known}
    if values.get("probability") == "file":
        chosen = [(block in planted) == (arm.name == "planted blocks only") for block in range(BLOCKS)]
        file = folder / f"{arm.name}.txt"
        file.write_text("".join(f"{100.0 * one}\n" for one in chosen))
        values["probability_file"] = str(file)
    return method(method.Config.model_validate(values))


def run_arm(arm: Arm, student: Student) -> dict[str, Any]:
    """Return what one arm makes of a student: probabilities at the first draw, block steps, held-out losses by step."""
    model, steps = copy.deepcopy(student.model), len(student.batches)
    with tempfile.TemporaryDirectory() as folder:
        method = method_of(arm, student.planted, Path(folder))
        request = method.block_scores_needed()
        samples = [batch.input_ids for batch in student.batches[:2]]
        decoder = find_decoder(model, SPEC)
        scores = {} if request is None else {request: block_scores(request, model, decoder, samples)}
        context = _context(model, student.seed, steps, scores)
        trained = method.prepare(model, context)
    loop = TrainingLoop(trained, method, method.build_optimizer(trained, context), context)

    def held_out_loss() -> float:
        return mean_loss(trained, student.held_out, context)[0]

    losses = {0: held_out_loss()}
    probe = method.probe_needed()
    if probe is not None:
        loop.probe(([batch] for batch in student.batches), probe)

    def note(step: int, _: float) -> None:
        if step % READ_EVERY == 0 or step == steps:
            losses[step] = held_out_loss()

    loop.run(([batch] for batch in student.batches), note)
    return {
        "losses": {str(step): round(loss, 6) for step, loss in losses.items()},
        **_drawn(method.proof(), student.planted),
    }


def _drawn(proof: dict[str, Any], planted: Sequence[int]) -> dict[str, Any]:
    """Return the probabilities of the first draw, and the share of all block periods that the planted blocks had."""
    history = proof.get("probability_history", [])
    first = [entry["probabilities"] for entry in history if entry["step"] == 0]
    drawn = [block for draw in proof["draws"] for block in draw["blocks"]]
    return {
        "probabilities": [round(p, 6) for p in (first[-1] if first else proof["probabilities"])],
        "planted_share": sum(block in planted for block in drawn) / len(drawn),
    }


def study(seed: int, kinds: Sequence[str], arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Return the results of every arm on every student of a seed."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # every run collects garbage, and would look through all that the imports made
    runs = []
    for student in students(seed, kinds):
        context = _context(student.teacher, seed, 1, {})
        floor = mean_loss(student.teacher, student.held_out, context)[0]
        for arm in arms:
            begin = time.process_time()
            try:
                found = run_arm(arm, student)
            except Refused as error:
                found = {"refused": str(error)}
            facts = {"seed": seed, "kind": student.kind, "planted": list(student.planted), "floor": floor}
            runs.append({**facts, "arm": arm.name, **found})
            last = list(found["losses"].values())[-1] if "losses" in found else found["refused"]
            seconds = time.process_time() - begin
            print(f"seed {seed}, {student.kind}, {arm.name}: {last} in {seconds:.1f} s", file=sys.stderr)
    return runs


def settings() -> dict[str, Any]:
    """Return what the results are of."""
    sizes = {"blocks": BLOCKS, "planted": PLANTED, "width": WIDTH, "vocabulary": VOCABULARY, "length": LENGTH}
    steps = {"steps": STEPS, "rows": ROWS, "held_out_rows": HELD_OUT_ROWS, "interval_steps": INTERVAL}
    return {**sizes, **steps, "learning_rate": LEARNING_RATE, "tau": TAU, "torch": torch.__version__}


def main() -> None:
    """Run the study, or make its page anew."""
    parser = argparse.ArgumentParser(description="Do the scores of blocks find those that have to be trained?")
    parser.add_argument("--seed", type=int, action="append", help="may be repeated (default: 1 to 5)")
    parser.add_argument("--kind", choices=KINDS, action="append", help="of disturbance; may be repeated (default: all)")
    parser.add_argument("--processes", type=int, default=1, help="how many seeds at once (default: 1)")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="leave results, page and plot there")
    parser.add_argument("--again", action="store_true", help="make page and plot from the results in FOLDER")
    args = parser.parse_args()
    if args.again and args.write is None:
        parser.error("--again needs --write FOLDER")
    file = None if args.write is None else args.write / "known-importance.json"
    if args.again:
        results = json.loads(file.read_text())
    else:
        arms = [arm for arm in ARMS if arm.label in load_labels()]
        one = partial(study, kinds=args.kind or KINDS, arms=arms)
        with ProcessPoolExecutor(args.processes) as pool:
            runs = [run for of_seed in pool.map(one, args.seed or SEEDS) for run in of_seed]
        results = {"settings": settings(), "arms": [asdict(arm) for arm in arms], "runs": runs}
    if file is None:
        json.dump(results, sys.stdout)
        return
    if not args.again:
        file.write_text(json.dumps(results) + "\n")
    write_page(results, args.write)


if __name__ == "__main__":
    main()
