"""What stands at the end of each command's help: lines that can be typed as they are, and what they do."""

from __future__ import annotations

Example = tuple[str, str]
"""What it does, and the line."""

EXAMPLES: dict[str, tuple[Example, ...]] = {
    "list": (
        ("named configurations of methods", "harness list methods"),
        ("GPUs that 'plan --device' knows", "harness list devices"),
    ),
    "new": (
        ("a suite to begin with, that runs as it is", "harness new suite mine"),
        ("a method of your own", "harness new method mymethod --out plugin"),
    ),
    "check": (
        ("what is wrong with a suite, all of it at once", "harness check mine.toml"),
        ("whether a method keeps its contract", "harness check owlore"),
    ),
    "prepare": (
        ("every download and conversion of a suite", "harness prepare --suite quickstart"),
        (
            "all that a machine without a network needs",
            "harness prepare --suite quickstart --bundle bundle --without torch",
        ),
    ),
    "doctor": (
        ("what this machine has and lacks", "harness doctor"),
        ("and what a suite needs here", "harness doctor --suite quickstart"),
    ),
    "layers": (("how often each block would be drawn", "harness layers --model smollm2-135m --label owlore"),),
    "show-data": (("the text, trained tokens marked", "harness show-data --suite quickstart --n 3"),),
    "plan": (
        ("what fits into 24 GiB", "harness plan --suite commonsense --device-memory 24GiB"),
        (
            "two labels at one shape",
            "harness plan --model llama2-7b --label owlore --label lora --batch-size 1",
        ),
    ),
    "run": (
        ("the whole suite; what has an outcome is skipped", "harness run --suite quickstart"),
        ("a part of it", "harness run --suite quickstart --label lora --seed 1"),
        ("one setting changed", "harness run --suite quickstart --label 'lora[rank=64]'"),
        ("weights to score later", "harness run --suite quickstart --label lora --keep-weights"),
        ("an hour at most; again goes on", "harness run --suite commonsense --budget-seconds 3600"),
        ("each run on two GPUs; on a CPU two processes", "harness run --suite quickstart --gpus-per-run 2"),
        ("losses as they come, in TensorBoard", "harness run --suite quickstart --log tensorboard"),
    ),
    "tune": (("one grid of learning rates for every label", "harness tune --suite commonsense"),),
    "evaluate": (
        ("one more benchmark on kept weights", "harness evaluate lora/1 --benchmark boolq"),
        ("score what trained and could not be scored", "harness evaluate last"),
    ),
    "judge": (
        (
            "grade what a suite's runs answered",
            "harness judge --suite mt-bench --judge http://localhost:8000 --judge-model m",
        ),
    ),
    "calibrate": (
        ("what this GPU can do", "harness calibrate"),
        ("the machinery alone, on a CPU too", "harness calibrate --smoke"),
        ("training that two devices share; on a CPU two processes", "harness calibrate --part sharded --gpus 2"),
    ),
    "status": (("what is left to do", "harness status --suite quickstart"),),
    "paper": (
        ("published tables", "harness paper list"),
        ("one of them beside our records", "harness paper compare lisa-memory"),
    ),
    "show": (
        ("the newest run", "harness show last"),
        ("one run by its name", "harness show smollm2-135m/lora/1 --plot memory.png"),
    ),
    "report": (
        ("every format, into ./report-quickstart", "harness report --suite quickstart"),
        ("one page to share", "harness report --suite quickstart --format html --out page"),
    ),
    "compare": (
        ("these records against those of main", "harness compare main results/records"),
        (
            "what may become how much worse",
            "harness compare old new --fail-on tracked_peak:3%,score:1pt",
        ),
    ),
    "history": (("step time over the commits", "harness history --suite quickstart --metric step_time"),),
}
"""By command."""


def epilog(name: str) -> str | None:
    """Return the end of a command's help, or None where it has no examples."""
    found = EXAMPLES.get(name, ())
    if not found:
        return None
    return "examples:\n" + "\n".join(f"  # {what}\n  {line}" for what, line in found)
