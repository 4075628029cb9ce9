"""The page of every command and its options, made from the parser that reads them."""

from __future__ import annotations

import argparse

from harness.cli import COMMANDS, build_parser
from harness.cli._examples import epilog

HEAD = """# Commands

Made from the parser. `harness help COMMAND` prints the same in a terminal. Exit codes: 0 done; 1 a run failed or timed
out, something became worse (`compare`), or what was read was incomplete; 2 wrong use, said in one sentence; 3 the
budget of `--budget-seconds` ended before all runs were done; 130 interrupted.
"""


def page() -> str:
    """Return the page as Markdown."""
    parsers = _parsers(build_parser("", whole=True))
    return "\n".join([HEAD, *(_section(name, parsers[name]) for name in COMMANDS)])


def _parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    (action,) = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    return dict(action.choices)


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    """Return a command's section: what it does, its options by group, its examples."""
    lines = [f"## harness {name}\n", f"{COMMANDS[name][0].upper()}{COMMANDS[name][1:]}.\n"]
    nested = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    for one in nested:
        for inner, below in one.choices.items():
            lines += [f"### harness {name} {inner}\n", *_groups(below)]
    lines += _groups(parser)
    if text := epilog(name):
        lines.append(f"```\n{text.strip()}\n```\n")
    return "\n".join(lines)


def _groups(parser: argparse.ArgumentParser) -> list[str]:
    """Return a table for each group of a parser's arguments."""
    found = []
    for group in parser._action_groups:
        shown = [
            one
            for one in group._group_actions
            if one.help is not argparse.SUPPRESS
            and not isinstance(one, argparse._HelpAction | argparse._SubParsersAction)
        ]
        if shown:
            title = "" if group.title in ("options", "positional arguments") else f"{group.title}\n\n"
            rows = "\n".join(f"| {_words(one)} | {_cell(_help(parser, one))} |" for one in shown)
            found.append(f"{title}| | |\n| --- | --- |\n{rows}\n")
    return found


def _words(action: argparse.Action) -> str:
    """Return how an argument is written."""
    value = ""
    if action.nargs != 0:
        metavar = action.metavar if isinstance(action.metavar, str) else None
        value = metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper())
    if not action.option_strings:
        return f"`{_cell(value)}`"
    return ", ".join(f"`{_cell(f'{option} {value}'.strip())}`" for option in action.option_strings)


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Return an argument's help, its defaults filled in."""
    return (action.help or "") % {"prog": parser.prog, "default": action.default} if action.help else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
