"""How long a prediction takes, imports left out, and how much host memory its process holds.

    pytest benchmarks/test_prediction.py --benchmark-json=prediction.json

Each case runs in a process of its own, as ``harness plan`` does it; the largest resident set of that process, libraries
included, stands in ``extra_info``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from harness.catalogue.labels import load_labels

LABELS = sorted(label for label in load_labels() if label != "base")
CASES = [("llama2-7b", label) for label in LABELS]
CASES += [("llama3-8b", "owlore"), ("mistral-7b", "owlore"), ("llama2-13b", "owlore")]
CASES += [("llama2-70b", label) for label in ("full", "lora", "galore", "lisa", "owlore")]

PREDICT = """
import json, resource, sys
import peft, torch, transformers
from harness.catalogue.models import load_models
from harness.planning.predict import Question, predict
from harness.expansion import expand, load_suite
model, label = sys.argv[1:]
suite, entry = load_suite("commonsense"), load_models()[model]
changes = {"max_grad_norm": None} if label == "galore-layerwise" else {}
suite = suite.model_copy(update={"train": {**suite.train, **changes}})
spec = expand(suite, models={model: entry}, sources={}, labels=[label], seeds=[1])[0]
found = predict(spec, entry, Question("cuda", "run", num_steps=10_000), lambda request: None)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"predict_seconds": found.predict_seconds, "host_peak_gib": round(peak / 2**30, 2)}))
"""


@pytest.mark.parametrize(("model", "label"), CASES)
def test_prediction(benchmark: Any, model: str, label: str) -> None:
    found: dict[str, float] = {}

    def predict() -> None:
        done = subprocess.run(
            [sys.executable, "-P", "-c", PREDICT, model, label], capture_output=True, text=True, check=True
        )
        found.update(json.loads(done.stdout.splitlines()[-1]))

    benchmark.pedantic(predict, rounds=1)
    benchmark.extra_info.update(found)
    print(f"\n{model} {label}: {found['predict_seconds']:.1f} s, {found['host_peak_gib']:.2f} GiB", flush=True)
