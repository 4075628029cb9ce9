"""The process that predicts: JSON lines of [key, PlanTask] on standard input, lines of [key, PlanAnswer] back."""

from __future__ import annotations

import json
import os
import sys

from harness.engine.block_scores import kept_block_scores
from harness.errors import HarnessError, Refused
from harness.method import BlockScoreRequest
from harness.planning.predict import Question, predict
from harness.planning.questions import PlanAnswer, PlanTask
from harness.runs.child import die_with_parent


def main() -> None:
    """Answer until the input ends."""
    die_with_parent()
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print
    for line in sys.stdin:
        key, task = json.loads(line)
        print(json.dumps([key, answer(PlanTask.model_validate(task)).model_dump(mode="json")]), file=out, flush=True)


def answer(task: PlanTask) -> PlanAnswer:
    """Return the prediction of one task, or why there is none; a failure here must not stop a run."""
    unknown: list[BlockScoreRequest] = []

    def scores(request: BlockScoreRequest) -> list[float] | None:
        spec = task.spec
        assert spec.train is not None
        if spec.calibration is None:
            return None
        found = kept_block_scores(
            request,
            model=spec.model,
            dtype=spec.train.dtype,
            calibration=spec.calibration,
            data=spec.sources["calibration"],
            device_type=task.device,
            cache_folder=task.cache_folder,
        )
        if found is None:
            unknown.append(request)
        return found

    question = Question(task.device, task.horizon, task.compute_capability, task.num_steps, task.profile, task.dataset)
    try:
        prediction = predict(task.spec, task.model, question, scores)
    except Refused as error:
        return PlanAnswer(error=str(error), refused=True)
    except HarnessError as error:
        return PlanAnswer(error=str(error))
    except Exception as error:  # a plug-in's own; the record says it
        first = (str(error).strip().splitlines() or [""])[0]
        return PlanAnswer(error=f"it cannot run on fake tensors: {type(error).__name__}: {first}"[:500])
    return PlanAnswer(prediction=prediction, lasting=not unknown)


if __name__ == "__main__":
    main()
