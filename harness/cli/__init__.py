"""The ``harness`` command: parse, call, print. This is the one part that knows a command line.

A module here is a command's door: it declares the command's arguments and hands them on, in types, to the module of the
same name in ``harness.commands``, which it imports when it is called. Only the named command's door is imported.

Exit codes: 0 done; 1 a run failed or timed out, something became worse (``compare``), or what was read was incomplete;
2 wrong use, said in one sentence; 3 the budget of ``run --budget-seconds`` ended before all runs were done; 130
interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from harness.cli._completion import SHELLS, PrintCompletion
from harness.cli._examples import epilog
from harness.cli._groups import group_options
from harness.cli._stdout import OutputLost, stdout_that_says_so
from harness.cli._version import PrintVersion
from harness.errors import HarnessError

COMMANDS = {
    "list": "what there is: methods, models, datasets, suites, benchmarks, devices",
    "new": "write a suite, a method or a task to begin with, commented, that runs as it is",
    "check": "what is wrong with or missing for a suite, a catalogue, a task or a method",
    "prepare": "download and convert what a suite needs",
    "doctor": "what this machine has and lacks; for reports of bugs too",
    "layers": "scores of a model's blocks, and how often each would be drawn",
    "show-data": "the first training examples as the model sees them",
    "plan": "what runs will need, without a GPU or weights",
    "run": "run a suite; what has an outcome is skipped",
    "tune": "try the suite's learning rates for every label; what has an outcome is skipped",
    "evaluate": "add scores to a run whose weights were kept",
    "judge": "grade the MT-Bench answers of a suite's runs; no GPU needed",
    "calibrate": "what this device can do, and whether predictions hold on it; what is answered is skipped",
    "status": "what of a suite is done, failed, still to do",
    "paper": "published tables, and our records beside them",
    "show": "one record, readable",
    "report": "tables and plots of a suite's records",
    "compare": "what became worse between two sets of records; exits with 1 when something did",
    "history": "one metric of a suite over the commits of its records",
}
"""What each command does, in the order of the help."""
FIRST_STEPS = """\
harness help COMMAND shows a command's options, with examples. First steps:
  harness prepare --suite quickstart
  harness run --suite quickstart
  harness report --suite quickstart
"""
GIVEN = "_given"
"""Attribute of parsed arguments: which options were given."""


class _Formatter(argparse.HelpFormatter):
    """Keeps the lines of a text of several lines, as examples are, and fills any other."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Store(argparse.Action):
    """Takes the value of an option that stands once: of two the last alone would count."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = vars(namespace).setdefault(GIVEN, set())
        if option_string is not None and self.dest in given:
            raise argparse.ArgumentError(self, "is given twice, and only one could count")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class _Append(argparse.Action):
    """Takes the values of an option that may be repeated, each once."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = tuple(getattr(namespace, self.dest) or ())  # ``list`` is a command's door in this module
        if values in before:
            raise argparse.ArgumentError(self, f"'{values}' is given twice")
        setattr(namespace, self.dest, [*before, values])


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence, and whose options say what they say once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in (None, "store"):
            self.register("action", name, _Store)
        self.register("action", "append", _Append)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = _without_help(sys.argv[1:] if arguments is None else arguments)
    # No option that stands before a command takes a value.
    name = next((word for word in words if not word.startswith("-")), "")
    called = f"harness {name}" if name in COMMANDS else "harness"
    try:
        with stdout_that_says_so():
            args = build_parser(name).parse_args(words)
            code: int = _door(name).main(args)
            sys.stdout.flush()
            return code
    except OutputLost as error:
        print(f"{called}: error: {error}", file=sys.stderr)
        return 2
    except HarnessError as error:
        _say_error(f"{called}: error: {error}")
        return error.exit_code
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("harness", "__main__"):
            raise
        print(
            f"{called}: error: the package '{error.name}' is not installed, which this command needs; "
            "install it with pip",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"{called}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader, head or less, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _say_error(text: str) -> None:
    """Print an error, without what is secret or cannot be printed."""
    from harness.printable import printable  # help needs neither
    from harness.redaction import redacted

    print(printable(redacted(text)), file=sys.stderr)


def build_parser(name: str, *, whole: bool = False) -> argparse.ArgumentParser:
    """Return the parser that knows the name of every command, and the arguments of the one that is named.

    Args:
        name: Of the command; another word names none.
        whole: The arguments of every command.
    """
    parser = _Parser(
        prog="harness",
        description="Compare memory-efficient fine-tuning methods: memory, speed and scores, measured alike.",
        epilog=FIRST_STEPS,
        formatter_class=_Formatter,
    )
    parser.add_argument("-V", "--version", action=PrintVersion, help="print version and commit")
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=SHELLS,
        parser_of_all=lambda: build_parser("", whole=True),
        metavar="SHELL",
        help=f"print what completes commands and names in a shell: {', '.join(SHELLS)}",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for command, what in COMMANDS.items():
        added = commands.add_parser(
            command,
            help=what,
            description=f"{what[0].upper()}{what[1:]}.",
            epilog=epilog(command),
            formatter_class=_Formatter,
        )
        if whole or command == name:
            _door(command).add_arguments(added)
            group_options(added)
    return parser


def _without_help(words: Sequence[str]) -> Sequence[str]:
    """Return words in which ``help COMMAND`` is ``COMMAND --help``."""
    return [*words[1:], "--help"] if words and words[0] == "help" else words


def _door(name: str) -> Any:
    return importlib.import_module(f"harness.cli.{name.replace('-', '_')}")
