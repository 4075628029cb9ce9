"""What commands print on a terminal of 60, 80 and 100 columns, on fixed records: the pictures beside this file.

On a wanted change run this file from the root of a checkout, and read the difference before it is committed:
``python tests/unit/fixtures_terminal/write_pictures.py``.
"""

from __future__ import annotations

import io
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from harness import cli
from harness.commands import _output, layers, plan
from harness.commands._doctor_text import as_text
from harness.commands._selection import select
from harness.commands.requests import SelectionRequest
from harness.diagnosis import Diagnosis, NetworkFacts, PlaceFacts, TorchFacts
from harness.report.pages.calibration import COLUMNS as CALIBRATION_COLUMNS
from harness.report.write import terminal_table
from harness.store import Store

HERE = Path(__file__).parent
FOLDER = HERE / "pictures"
WIDTHS = (60, 80, 100)
PLACE = PlaceFacts(path="/data/harness", exists=True, writable=True, size_bytes=2**30, free_bytes=2**38, locks=True)
REASON = "needs 9.25 GiB for the weights alone, more than the 8.00 GiB of the device; the predicted peak is 31.7 GiB"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def made(factory: dict[str, Any], folder: Path) -> None:
    """Write the records that the commands read."""
    _, contents = factory["quickstart"]()
    for record in contents.records:
        Store(folder / "one").append(record)
    for record in contents.records:
        moved = record.environment.model_copy(update={"commit": "e" * 40})
        other = record.model_copy(update={"uuid": f"{record.uuid}b", "environment": moved})
        Store(folder / "both").append(other)
        if record.spec.label != "lora":
            Store(folder / "two").append(other)
        Store(folder / "both").append(record)
    specs = select(SelectionRequest(suite="calibration-small"), tuned=False).specs
    failed = factory["make_record"]("full", status="refused", reason=REASON)
    Store(folder / "failed").append(failed.model_copy(update={"spec": specs[0], "run_id": specs[0].run_id}))


def command(*words: str) -> Callable[[], None]:
    """Return what runs a command in this process."""

    def run() -> None:
        cli.main(list(words))

    return run


def pictures(factory: dict[str, Any], folder: Path) -> dict[str, Callable[[], None]]:
    """Return what draws each picture, by its name."""
    results, both = ("--results", str(folder / "one")), ("--results", str(folder / "both"))
    failed = ("--suite", "calibration-small", "--results", str(folder / "failed"))
    report = factory["golden"]()
    return {
        "list-methods-galore": command("list", "methods", "galore"),
        "list-devices-h100": command("list", "devices", "h100-sxm"),
        "list-suites-calibration-small": command("list", "suites", "calibration-small"),
        "report": lambda: terminal_table(*report, _output.console(), None, factory["read_items"](report[1])),
        "show": command("show", "smollm2-135m/lora/1", *results),
        "status": command("status", "--any-environment", *failed),
        "history": command("history", "--suite", "quickstart", "--metric", "step_time", *both),
        "compare": command("compare", str(folder / "one"), str(folder / "two"), "--format", "text"),
        "paper-show": command("paper", "show", "owlore-claims"),
        "paper-compare": command("paper", "compare", "owlore-claims", *results),
        "plan": _plan,
        "layers": _layers,
        "calibrate": _calibrate,
        "doctor": lambda: print(as_text(_diagnosis(), _output.console().width)),
    }


def _plan() -> None:
    rows = [
        {"model": "llama2-7b", "label": label} | dict(zip(plan.COLUMNS, _cells(i), strict=True))
        for i, label in enumerate(("lora", "galore-layerwise", "owlore"))
    ]
    _output.print_table(rows, keys=2)


def _cells(i: int) -> list[str]:
    return [
        f"{12.5 + i + k / 8:.3f}" if k not in (1, 2) else ("backward", "yes")[k - 1] for k in range(len(plan.COLUMNS))
    ]


def _layers() -> None:
    blocks = [
        {"block": k, "score": 3.0 + k / 7, "sampling_probability": (k + 1) / 36, "inclusion_probability": k / 9}
        for k in range(8)
    ]
    told = {"model": "llama2-7b", "dtype": "bf16", "label": "owlore", "score": "outlier", "tau": 13.0, "blocks": blocks}
    drawn = {"probability": "proportional to the score", "sampling": "without_replacement", "active_layers": 2}
    sampled = {"num_samples": 8, "sequence_length": 256, "data": "packaged-passages"}
    beside = {"beside": {"alpha_hill": [2.0 + k / 16 for k in range(8)]}}
    ranks = [{"scores": ["outlier", "alpha_hill"], "spearman": 1.0}]
    layers._print(told | drawn | beside | {"rank_correlations": ranks, "calibration": sampled})


def _calibrate() -> None:
    cells = ("matrix product of bf16, 8192 x 8192", "989.5 TFLOP/s", "701.2 TFLOP/s", "+41.1", "within 50%", "yes")
    notes = "the clock of the device fell by 12% while it was asked, as nvidia-smi says: its power limit was reached"
    _output.print_table([dict(zip(CALIBRATION_COLUMNS, (*cells, said), strict=True)) for said in (notes, "")])


def _diagnosis() -> Diagnosis:
    return Diagnosis(
        harness="1.0.0",
        commit="d" * 40,
        dirty=True,
        python="3.11.9 (CPython)",
        platform="Linux-6.1.0-x86_64-with-glibc2.36",
        packages={"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.19.0", "ray": None},
        torch=TorchFacts(version="2.13.0+cpu", built_for="CPU", num_threads=2),
        torch_error=None,
        nvidia=None,
        omp_num_threads=None,
        cpus=2,
        host_memory_bytes=24 * 2**30,
        host_available_bytes=20 * 2**30,
        cache=PLACE,
        results=PLACE,
        network=NetworkFacts(
            hub_offline=False,
            hub_endpoint_set=False,
            hub_token_set=True,
            proxies_set=(),
            pip_settings=("PIP_RETRIES",),
        ),
        actions=("The cache has 3 GiB free and the suite needs 13.5: make room, or name another with HARNESS_CACHE.",),
    )


@contextmanager
def drawn_with(width: int) -> Iterator[io.StringIO]:
    """Run what is inside as on a plain terminal of a width, and yield what it prints."""
    shown = _Terminal()
    with mock.patch.dict(os.environ, {"COLUMNS": str(width), "TERM": "dumb"}), redirect_stdout(shown):
        yield shown


def draw(picture: Callable[[], None], width: int, folder: Path) -> str:
    """Return what is printed on a terminal of a width, with the folder of the records by another name."""
    with drawn_with(width) as shown:
        picture()
    return shown.getvalue().replace(str(folder), "RESULTS")


def all_pictures() -> dict[str, Callable[[int], str]]:
    """Return every picture as a function of the width, by its name."""
    factory = runpy.run_path(str(HERE.parent / "fixtures_report" / "factory.py"))
    folder = Path(tempfile.mkdtemp(prefix="pictures-"))
    made(factory, folder)
    found = pictures(factory, folder)
    return {name: lambda width, picture=picture: draw(picture, width, folder) for name, picture in found.items()}  # type: ignore[misc]


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[2]))
    for name, picture in all_pictures().items():
        for width in WIDTHS:
            (FOLDER / f"{name}-{width}.txt").write_text(picture(width), encoding="utf-8")
