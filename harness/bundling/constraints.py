"""The user's constraints without the packages that a bundle leaves out: the target has them in a version of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from packaging.utils import canonicalize_name

_NAME = re.compile(r"\s*([A-Za-z0-9][\w.-]*)")


def constraints_without(left_out: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return ``PIP_CONSTRAINT`` for copies of its files, written into a folder, without the packages left out.

    What is no file, an address, stays as it is.
    """
    given = os.environ.get("PIP_CONSTRAINT", "").split()
    if not (given and left_out):
        return {}
    places = []
    for number, name in enumerate(given):
        file = Path(name)
        if not file.is_file():
            places.append(name)
            continue
        lines = file.read_text(encoding="utf-8").splitlines()
        kept = [
            line
            for line in lines
            if (found := _NAME.match(line)) is None or canonicalize_name(found[1]) not in left_out
        ]
        place = folder / f"constraints-{number}.txt"
        place.write_text("\n".join(kept) + "\n", encoding="utf-8")
        places.append(str(place))
    return {"PIP_CONSTRAINT": " ".join(places)}
