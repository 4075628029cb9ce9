"""The process that predicts: JSON lines of [key, PlanTask] on standard input, lines of [key, PlanAnswer] back."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from typing import IO

from harness.engine.block_scores import kept_block_scores
from harness.errors import HarnessError, Refused
from harness.method import BlockScoreRequest
from harness.planning.predict import Question, predict_and_tell
from harness.planning.questions import PlanAnswer, PlanTask
from harness.runs.child import die_with_parent


def main() -> None:
    """Answer until the input ends, in as many processes as the first argument says."""
    die_with_parent()
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print
    processes = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    if processes > 1 and sys.platform == "linux":
        _answer_with(processes, out)
        return
    for line in sys.stdin:
        print(answered(line), file=out, flush=True)


def answered(line: str) -> str:
    """Return the line that answers a line."""
    key, task = json.loads(line)
    return json.dumps([key, answer(PlanTask.model_validate(task)).model_dump(mode="json")])


def _answer_with(processes: int, out: IO[str]) -> None:
    """Answer in several processes, forked once everything is imported; one that dies ends them all."""
    import peft  # noqa: F401  # what nearly every prediction imports is imported once
    import torch._dynamo  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    def tell(done: Future[str]) -> None:
        if (error := done.exception()) is not None:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        print(done.result(), file=out, flush=True)

    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, mp_context=fork, initializer=die_with_parent) as pool:
        for line in sys.stdin:
            pool.submit(answered, line).add_done_callback(tell)


def answer(task: PlanTask) -> PlanAnswer:
    """Return the prediction of one task, or why there is none; a failure here must not stop a run."""
    unknown: list[str] = []

    def scores(request: BlockScoreRequest) -> list[float] | None:
        spec = task.spec
        assert spec.train is not None
        if spec.calibration is None:
            return None
        found, file = kept_block_scores(
            request,
            model=spec.model,
            dtype=spec.train.dtype,
            calibration=spec.calibration,
            data=spec.sources["calibration"],
            device_type=task.device if task.num_ranks == 1 else "cpu",  # where they are taken of what several hold
            cache_folder=task.cache_folder,
        )
        if found is None:
            unknown.append(str(file.relative_to(task.cache_folder)))
        return found

    question = Question(
        device=task.device,
        horizon=task.horizon,
        compute_capability=task.compute_capability,
        num_steps=task.num_steps,
        profile=task.profile,
        dataset=task.dataset,
        num_ranks=task.num_ranks,
    )
    try:
        prediction, seed_matters = predict_and_tell(task.spec, task.model, question, scores)
    except Refused as error:
        return PlanAnswer(error=str(error), refused=True)
    except HarnessError as error:
        return PlanAnswer(error=str(error))
    except Exception as error:  # a plug-in's own; the record says it
        first = (str(error).strip().splitlines() or [""])[0]
        return PlanAnswer(error=f"it cannot run on fake tensors: {type(error).__name__}: {first}"[:500])
    awaited = tuple(unknown)
    return PlanAnswer(prediction=prediction, lasting=not unknown, awaited=awaited, seed_matters=seed_matters)


if __name__ == "__main__":
    main()
