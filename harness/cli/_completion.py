"""``harness --print-completion SHELL``: a script by which the shell completes commands, options and packaged names."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from harness.errors import HarnessError

SHELLS = ("bash", "zsh", "tcsh")
FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
FOLDERS = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}
"""As shtab has them."""
NAMED = ("suite", "model", "label", "run")
"""Arguments that take packaged names, or files in their place."""


class PrintCompletion(argparse.Action):
    """Prints the script and ends; the parser of every command is made for it alone."""

    def __init__(self, *args: Any, parser_of_all: Callable[[], argparse.ArgumentParser], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._parser_of_all = parser_of_all

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Print the script of a shell."""
        print(completion(self._parser_of_all(), str(values)))
        parser.exit()


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script that completes what a parser takes.

    Raises:
        HarnessError: shtab, which writes it, is not installed.
    """
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise HarnessError("the package 'shtab', which writes completions, is missing: pip install shtab") from error
    names = _names()
    for command in _commands(parser):
        for action in command._actions:
            _complete(action, names)
    script: str = shtab.complete(parser, shell, preamble={"bash": _functions(names)} if shell == "bash" else "")
    return script


def _names() -> dict[str, list[str]]:
    """Return the packaged names by argument."""
    from harness.catalogue.resolved import packaged_catalogue
    from harness.suite import suite_names

    catalogue = packaged_catalogue()
    return {
        "suite": sorted(suite_names()),
        "model": sorted(catalogue.models),
        "label": sorted(catalogue.labels),
        "run": ["last", *(f"last/{label}" for label in sorted(catalogue.labels))],
    }


def _commands(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return the parser of each command."""
    return [
        command
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for command in action.choices.values()
    ]


def _complete(action: argparse.Action, names: dict[str, list[str]]) -> None:
    """Say what completes an argument: shtab reads it from its attribute."""
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    how: dict[str, str] | None = None
    if action.dest in NAMED and action.choices is None:
        how = {"bash": f"_harness_{action.dest}", "zsh": f"({' '.join(names[action.dest])})"}
    elif metavar == "DIR":
        how = FOLDERS
    elif "FILE" in metavar or "PATH" in metavar or action.dest in ("baseline", "candidate"):
        how = FILES
    if how is not None:
        action.complete = how  # type: ignore[attr-defined]


def _functions(names: dict[str, list[str]]) -> str:
    """Return the functions of bash that complete names; a suite may be a file."""
    import shlex  # of this command alone

    lines: list[str] = []
    for name, words in names.items():
        lines += [f"_harness_{name}() {{", f'  compgen -W {shlex.quote(_words(words))} -- "$1"']
        lines += ["  compgen -f -X '!*.toml' -- \"$1\""] * (name == "suite")
        lines += ["}"]
    return "\n".join(lines)


def _words(words: Sequence[str]) -> str:
    return " ".join(words)
