"""An installed build's ``HarnessLM`` in a process of its own, asked over pipes lap by lap: the second yardstick.

Run by the Python of that build's environment, from a folder outside any checkout, so that ``import harness`` finds what
is installed there. A line of JSON asks (``{"requests": [[context, continuation], ...]}``), a line answers
(``{"cpu_seconds", "clock_seconds", "results": [[log-likelihood, greedy], ...]}``); the model is loaded once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PYTHON = "HARNESS_BENCH_BASELINE_PYTHON"


class Baseline:
    """The process, seen from ours."""

    def __init__(self, model: Path, batch_tokens: int, folder: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [os.environ[PYTHON], str(Path(__file__).resolve()), str(model), str(batch_tokens)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
        )

    def answer(self, requests: list[tuple[str, str]]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"requests": requests}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main(model_folder: str, batch_tokens: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    import torch
    from lm_eval.api.instance import Instance
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness.evaluation.language_model import HarnessLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    lm = HarnessLM(model, tokenizer, device="cpu", batch_tokens=int(batch_tokens))
    for line in sys.stdin:
        requests = [
            Instance("loglikelihood", {}, tuple(pair), index) for index, pair in enumerate(json.loads(line)["requests"])
        ]
        clock, cpu = time.perf_counter(), time.process_time()
        results = lm.loglikelihood(requests)
        took = {"cpu_seconds": time.process_time() - cpu, "clock_seconds": time.perf_counter() - clock}
        answers.write(json.dumps({**took, "results": results}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
