"""What ``harness check`` prints: a line for each thing that was looked at, or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.commands._check_suite import Found
from harness.commands._output import say
from harness.printable import printable_json
from harness.redaction import redacted

if TYPE_CHECKING:
    from harness.checking import Checked

SHOWN_RUNS = 12


def say_found(found: Found, *, in_json: bool) -> int:
    """Print what was found of a file; return 1 where something is wrong with it."""
    if in_json:
        _say_json({**vars(found), "ok": not found.faults})
        return 1 if found.faults else 0
    for fault in found.faults:
        say(f"wrong: {fault}")
    for what in found.missing:
        say(f"not here yet: {what}")
    if found.runs:
        more = f" and {len(found.runs) - SHOWN_RUNS} more" if len(found.runs) > SHOWN_RUNS else ""
        say(f"runs: {', '.join(found.runs[:SHOWN_RUNS])}{more}")
    number = len(found.faults)
    state = "ok" if not number else f"{number} fault{'s' * (number > 1)}"
    count = f"; {len(found.runs)} runs" if found.kind == "suite" and not number else ""
    lacking = f"; {len(found.missing)} to fetch with harness prepare" if found.missing else ""
    say(f"{found.kind} {found.name}: {state}{count}{lacking}")
    return 1 if number else 0


def say_checks(kind: str, name: str, checks: Sequence[Checked], *, in_json: bool) -> int:
    """Print how the checks of a method went; return 1 where one failed."""
    failed = [check for check in checks if not check.ok]
    if in_json:
        _say_json({"kind": kind, "name": name, "ok": not failed, "checks": [vars(check) for check in checks]})
        return 1 if failed else 0
    width = max(len(check.name) for check in checks)
    for check in checks:
        say(f"{'ok' if check.ok else 'failed':6}  {check.name:{width}}  {check.reason}")
    say(f"{kind} {name}: {f'{len(failed)} of {len(checks)} checks failed' if failed else 'ok'}")
    return 1 if failed else 0


def _say_json(value: dict[str, Any]) -> None:
    print(printable_json(redacted(json.dumps(value, indent=2, ensure_ascii=False))))
