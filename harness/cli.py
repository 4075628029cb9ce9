"""The ``harness`` command: parse, call, print. Every handler is imported when it runs.

Exit codes: 0 done; 1 a run failed or timed out, something became worse (``compare``), or what was read was incomplete;
2 wrong use, said in one sentence; 3 the budget of ``run --budget-seconds`` ended before all runs were done; 130
interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from harness import __version__
from harness.commands._bundle_options import add_bundle_options
from harness.commands._calibrating import add_calibrate
from harness.commands._comparing import add_compare, add_history
from harness.errors import HarnessError
from harness.printable import printable
from harness.redaction import redacted

RESULTS = "results/records"
FORMATS = ("md", "latex", "html", "csv", "json")


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what the terminal's encoding lacks is no error
    args = build_parser().parse_args(arguments)
    try:
        module = importlib.import_module(f"harness.commands.{args.command.replace('-', '_')}")
        code: int = module.main(args)
        sys.stdout.flush()
        return code
    except HarnessError as error:
        print(printable(redacted(f"harness {args.command}: error: {error}")), file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("harness", "__main__"):
            raise
        print(
            f"harness {args.command}: error: the package '{error.name}' is not installed, which this command needs; "
            "install it with pip",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"harness {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader, head or less, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = _Parser(
        prog="harness",
        description="Compare memory-efficient fine-tuning methods: memory, speed and scores, measured alike.",
    )
    parser.add_argument("--version", action="version", version=f"harness {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    command = commands.add_parser("list", help="what there is: methods, models, suites, benchmarks, devices")
    command.add_argument("what", choices=("methods", "models", "suites", "benchmarks", "devices"))
    _catalogue(command)
    command.add_argument("--json", action="store_true", help="as JSON")

    _add_prepare(commands)
    _add_doctor(commands)

    command = commands.add_parser(
        "layers", help="outlier scores of a model's blocks, and how often each would be drawn"
    )
    command.add_argument(
        "--model", required=True, metavar="NAME[=PATH]", help="a base model, from a local folder with =PATH"
    )
    command.add_argument(
        "--suite", default="quickstart", metavar="NAME", help="its [calibration] is used (default: quickstart)"
    )
    command.add_argument(
        "--method", default="owlore", metavar="LABEL", help="whose sampling law is shown (default: owlore)"
    )
    command.add_argument("--tau", type=_threshold, metavar="X", help="threshold of an outlier, instead of the label's")
    command.add_argument(
        "--data", action="append", default=[], metavar="NAME=PATH", help="a local file for a data set; may be repeated"
    )
    _catalogue(command)
    _assets(command)
    command.add_argument("--json", action="store_true", help="as JSON")
    command.add_argument("--out", metavar="FILE", help="also draw a plot: FILE.png or FILE.svg")

    _add_show_data(commands)
    _add_plan(commands)
    _add_run(commands)
    _add_tune(commands)

    command = commands.add_parser("evaluate", help="add scores to a run whose weights were kept")
    command.add_argument("run_id", metavar="RUN_ID", help="or its first digits")
    command.add_argument("--benchmark", action="append", required=True, metavar="TASK", help="may be repeated")
    command.add_argument("--limit", type=_positive, metavar="N", help="score the first N items of each task")
    _catalogue(command)
    _results(command)
    _assets(command)

    _add_judge(commands)
    add_calibrate(commands, RESULTS, _seconds)

    command = commands.add_parser("status", help="what of a suite is done, failed, still to do")
    _suite(command)
    _selection(command)
    _results(command)
    command.add_argument(
        "--any-environment", action="store_true", help="count also what was run in another environment"
    )
    command.add_argument("--json", action="store_true", help="as JSON")

    _add_paper(commands)

    command = commands.add_parser("show", help="one record, readable")
    command.add_argument("run_id", metavar="RUN_ID", help="or its first digits")
    _results(command)
    command.add_argument("--json", action="store_true", help="the whole record as JSON")
    command.add_argument(
        "--plot", metavar="FILE", help="also draw memory and active blocks over the steps: FILE.png or FILE.svg"
    )

    _add_report(commands)
    add_compare(commands)
    add_history(commands, RESULTS)
    return parser


def _add_report(commands: Any) -> None:
    command = commands.add_parser("report", help="tables and plots of a suite's records")
    _suite(command)
    _catalogue(command)
    _results(command)
    command.add_argument("--out", metavar="DIR", help="where the report goes (default: report-SUITE)")
    command.add_argument(
        "--format", action="append", choices=FORMATS, metavar="|".join(FORMATS), help="may be repeated"
    )


def _add_prepare(commands: Any) -> None:
    command = commands.add_parser("prepare", help="download and convert what a suite needs")
    _suite(command)
    _selection(command)
    _assets(command)
    add_bundle_options(command)


def _add_doctor(commands: Any) -> None:
    command = commands.add_parser("doctor", help="what this machine has and lacks; for reports of bugs too")
    command.add_argument("--suite", metavar="NAME", help="also what this suite still lacks here")
    _selection(command)
    _results(command)
    command.add_argument("--json", action="store_true", help="as JSON")


def _add_show_data(commands: Any) -> None:
    command = commands.add_parser("show-data", help="the first training examples as the model sees them")
    _suite(command)
    _selection(command)
    _settings(command)
    command.add_argument("--n", type=_positive, default=3, metavar="N", help="how many (default: 3)")
    command.add_argument("--seed", action="append", type=_seed, metavar="N", help="in the order of this seed")
    _assets(command)
    command.add_argument("--json", action="store_true", help="as JSON, with the token ids")


def _add_plan(commands: Any) -> None:
    command = commands.add_parser("plan", help="what runs will need, without a GPU or weights")
    command.add_argument(
        "--suite",
        metavar="NAME",
        help="a packaged suite, or the path of a .toml file; without one --model and --method in the settings of suite "
        "commonsense",
    )
    _selection(command)
    _settings(command)
    command.add_argument("--seed", action="append", type=_seed, metavar="N", help="plan this seed; may be repeated")
    command.add_argument("--max-steps", type=_positive, metavar="N", help="train at most N optimizer steps")
    command.add_argument("--batch-size", type=_positive, metavar="B", help="rows of a micro-batch")
    command.add_argument("--seq-len", type=_positive, metavar="N", help="tokens of a row")
    command.add_argument("--dtype", choices=("bf16", "fp32"), help="of the weights")
    command.add_argument("--checkpointing", choices=("on", "off"), help="gradient checkpointing")
    command.add_argument(
        "--horizon",
        choices=("first", "run", "all-visited"),
        default="run",
        help="the first active blocks only; the worst step of the run's own draws (default); every block visited",
    )
    command.add_argument("--device", metavar="NAME", help="a device of 'harness list devices': its memory and its peak")
    command.add_argument(
        "--device-profile",
        metavar="FILE",
        help="what harness calibrate measured of a device (default: what comes with the project for --device)",
    )
    command.add_argument("--device-memory", metavar="SIZE", help="such as 24GiB: whether each run fits")
    command.add_argument(
        "--mfu", type=_share, metavar="X", help="share of the device's peak, for times (above 0, to 1)"
    )
    command.add_argument("--json", action="store_true", help="as JSON")


def _add_run(commands: Any) -> None:
    command = commands.add_parser("run", help="run a suite; what has an outcome is skipped")
    _suite(command)
    _selection(command)
    _assets(command)
    _results(command)
    command.add_argument("--seed", action="append", type=_seed, metavar="N", help="run this seed; may be repeated")
    _settings(command)
    command.add_argument("--limit", type=_positive, metavar="N", help="score the first N items of each task")
    command.add_argument("--max-steps", type=_positive, metavar="N", help="train at most N optimizer steps")
    command.add_argument("--repeat", type=_positive, metavar="K", help="run everything K more times, done or not")
    command.add_argument("--keep-weights", action="store_true", help="save the trained weights beside the records")
    _how_to_run(command)


def _add_tune(commands: Any) -> None:
    command = commands.add_parser(
        "tune", help="try the suite's learning rates for every label; what has an outcome is skipped"
    )
    _suite(command)
    _selection(command)
    _assets(command)
    _results(command)
    command.add_argument("--out", metavar="FILE", help="where the choices go (default: what the suite names)")
    _how_to_run(command)
    command.set_defaults(repeat=None, keep_weights=False)


def _how_to_run(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--retry",
        action="append",
        default=[],
        choices=("ok", "unproven", "refused", "out_of_memory", "diverged"),
        help="run again what ended so; may be repeated",
    )
    command.add_argument("--any-environment", action="store_true", help="skip also what was run in another environment")
    command.add_argument(
        "--checkpoint-every", type=_positive, metavar="N", help="write a checkpoint every N steps, to go on from"
    )
    command.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="end a run that takes longer")
    command.add_argument(
        "--budget-seconds",
        type=_seconds,
        metavar="N",
        help="start no run later than this, interrupt the one under way and exit with 3; the same command goes on",
    )
    command.add_argument(
        "--devices",
        type=_names,
        metavar="LIST",
        help="CUDA devices by number or UUID, such as 0,1: one run at a time on each (default: the first alone)",
    )
    command.add_argument(
        "--busy",
        choices=("use", "skip"),
        default="use",
        help="of the devices those that others use: run on them and mark it (default), or leave them out",
    )
    command.add_argument(
        "--executor", choices=("local", "ray"), default="local", help="this machine, or a Ray cluster (default: local)"
    )
    command.add_argument(
        "--ray-address", metavar="ADDRESS", help="a cluster that runs already (default: start one on this machine)"
    )
    command.add_argument(
        "--cpus-per-run",
        type=_positive,
        metavar="N",
        help="asked of Ray, and threads of a run (default: OMP_NUM_THREADS, else 1)",
    )
    command.add_argument("--dry-run", action="store_true", help="list the runs and stop")


def _add_paper(commands: Any) -> None:
    command = commands.add_parser("paper", help="published tables, and our records beside them")
    command.add_argument("action", choices=("list", "show", "compare"))
    command.add_argument("table", nargs="?", metavar="TABLE", help="a packaged table, or the path of a .csv file")
    _results(command)
    command.add_argument("--format", choices=("text", "csv", "json"), default="text", help="(default: text)")


def _add_judge(commands: Any) -> None:
    command = commands.add_parser("judge", help="grade the MT-Bench answers of a suite's runs; no GPU needed")
    _suite(command)
    _catalogue(command)
    command.add_argument(
        "--judge", required=True, metavar="URL|PATH", help="an OpenAI-compatible endpoint, or a folder with a model"
    )
    command.add_argument("--judge-model", required=True, metavar="NAME", help="as the endpoint knows it")
    command.add_argument(
        "--key-variable", metavar="NAME", help="environment variable with the key (default: OPENAI_API_KEY, if set)"
    )
    command.add_argument("--run", action="append", metavar="RUN_ID", help="this run only; may be repeated")
    command.add_argument(
        "--references", default="gpt-4", metavar="NAME", help="who gave the reference answers (default: gpt-4)"
    )
    command.add_argument("--repeats", type=_positive, default=1, metavar="K", help="judge everything K times")
    command.add_argument("--max-tokens", type=_positive, default=2048, metavar="N", help="of one judgment")
    command.add_argument("--requests-per-minute", type=_rate, metavar="N", help="calls a minute at most")
    command.add_argument("--concurrency", type=_positive, default=1, metavar="N", help="calls at a time")
    command.add_argument(
        "--timeout", type=_seconds, default=120.0, metavar="SECONDS", help="how long the judge may stay silent"
    )
    command.add_argument(
        "--max-retries", type=_count, default=8, metavar="N", help="tries after the first (default: 8)"
    )
    command.add_argument(
        "--data", action="append", default=[], metavar="NAME=PATH", help="a local folder of MT-Bench's files"
    )
    _results(command)
    _assets(command)
    command.add_argument("--dry-run", action="store_true", help="count calls and tokens and stop")


def _suite(command: argparse.ArgumentParser) -> None:
    command.add_argument("--suite", required=True, metavar="NAME", help="a packaged suite, or the path of a .toml file")


def _selection(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        action="append",
        metavar="NAME[=PATH]",
        help="run this base model, from a local folder with =PATH; may be repeated",
    )
    command.add_argument("--method", action="append", metavar="LABEL", help="run this label; may be repeated")
    command.add_argument(
        "--data", action="append", default=[], metavar="NAME=PATH", help="a local file for a data set; may be repeated"
    )
    _catalogue(command)


def _catalogue(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--catalogue", metavar="FILE", help="a .toml file with base models, data sets and labels of yours"
    )


def _settings(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change a setting; shows in the label",
    )


def _assets(command: argparse.ArgumentParser) -> None:
    command.add_argument("--offline", action="store_true", help="never touch the network")
    command.add_argument(
        "--wheel",
        action="append",
        default=[],
        metavar="PATH",
        help="a wheel already on disk, instead of pip's download",
    )


def _results(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--results", default=RESULTS, metavar="DIR", help=f"folder of the records (default: {RESULTS})"
    )


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return number


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of different devices, such as 0,1")
    return names


def _count(text: str) -> int:
    return 0 if text.strip() == "0" else _positive(text)


def _rate(text: str) -> float:
    return _above_zero(text, "a number of calls a minute above 0")


def _seed(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 to 2**32 - 1")
    return number


def _seconds(text: str) -> float:
    return _above_zero(text, "a number of seconds above 0")


def _threshold(text: str) -> float:
    return _above_zero(text, "a number above 0")


def _share(text: str) -> float:
    number = _above_zero(text, "a number above 0, at most 1")
    if number > 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0, at most 1")
    return number


def _above_zero(text: str, expected: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not {expected}")
    return number


if __name__ == "__main__":
    sys.exit(main())
