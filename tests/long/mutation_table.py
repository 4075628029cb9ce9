"""Writes docs/mutations.md from the JUnit file of a run of test_mutations.py.

Usage: python tests/long/mutation_table.py FILE > docs/mutations.md
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

HEAD = """# Mutation check

{count} faults, planted one at a time in a copy of the package; each must make the tests named for it fail. The faults
are in `tests/long/mutations.toml`, with the text that each replaces. The check also runs all these tests on the copy
without a fault, where they pass, and fails where a fault no longer fits the code.

Made by the run on {date}, on a CPU: {caught} of {count} caught, {seconds:.0f} seconds in all.

    pytest -m long tests/long/test_mutations.py --junitxml mutations.xml
    python tests/long/mutation_table.py mutations.xml > docs/mutations.md

`tox -e long -- tests/long/test_mutations.py` runs the same check on two processes.

| Fault | What is wrong | Caught by | Seconds |
| --- | --- | --- | ---: |
"""
TAIL = """
The tests in `tests/contract/test_caught_faults.py` were written with this check, for five faults that by reading no
earlier test looked at; the earlier tests were not run against those five.
"""


def main(file: str) -> None:
    text = Path(__file__).with_name("mutations.toml").read_text(encoding="utf-8")
    faults = tomllib.loads(text)["fault"]
    suite = next(ElementTree.parse(file).iter("testsuite"))
    caught = {}
    for case in suite.iter("testcase"):
        properties = {item.attrib["name"]: item.attrib["value"] for item in case.iter("property")}
        if "caught_by" in properties:
            caught[properties["fault"]] = properties
    lines = []
    for fault in faults:
        found = caught.get(fault["id"], {"caught_by": "nothing", "seconds": ""})
        folder, _, test = found["caught_by"].rpartition("/")
        shown = f"`{folder.removeprefix('tests/')}/{test}`" if folder else "**nothing**"
        lines.append(f"| `{fault['id']}` | {fault['says']} | {shown} | {found['seconds']} |")
    date, seconds = suite.attrib["timestamp"].partition("T")[0], float(suite.attrib["time"])
    head = HEAD.format(count=len(faults), caught=len(caught), date=date, seconds=seconds)
    sys.stdout.write(head + "\n".join(lines) + "\n" + TAIL)


if __name__ == "__main__":
    main(sys.argv[1])
