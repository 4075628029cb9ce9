"""What a run reads and runs beside the harness's own code and data, and what tells each from any other.

Files that settings name, methods that are plug-ins, conversation templates of FastChat's. A spec holds their checksums,
so that a run whose inputs are others is another run, wherever they lie and whatever they are called.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from harness.conversation import find_template
from harness.errors import HarnessError
from harness.files import read_bytes
from harness.method import METHODS, MethodConfig
from harness.spec import RunSpec, identity

TURNS = ("a question", "an answer", "another question")
"""What a template is asked to write down, for what it makes of turns is all that there is to it."""
DIGITS = 16


def file_checksums(config: MethodConfig) -> dict[str, str] | None:
    """Return the SHA-256 of each file that a method's settings name, by setting; None where they name none.

    Raises:
        HarnessError: one cannot be read.
    """
    return {
        name: hashlib.sha256(read_bytes(file, f"{name} {file}")).hexdigest()
        for name, file in config.files_read().items()
    } or None


def outside_code(method: str, template: str | None) -> dict[str, str] | None:
    """Return what tells the code that is not the harness's from any other; None where all of it is.

    Args:
        method: By its name.
        template: Of conversations, by its name. One that cannot be had here is left out: a run that needs it says so.

    Raises:
        HarnessError: there is no such method.
    """
    found = {}
    METHODS.get(method)
    if (entry := METHODS.plug_in(method)) is not None:
        found[f"method {method}"] = _plug_in(entry)
    if template is not None and (written := _template(template)) is not None:
        found[f"template {template}"] = written
    return found or None


def check_outside(spec: RunSpec) -> None:
    """Refuse to run what is no longer what was asked for: files edited, or code replaced, since the run was laid out.

    Raises:
        HarnessError: a file or a piece of code is another; or it cannot be had here.
    """
    config = METHODS.get(spec.method).Config.model_validate(spec.config)
    for name, checksum in (file_checksums(config) or {}).items():
        if spec.files is not None and checksum != spec.files.get(name):
            raise HarnessError(f"the file that {name} names has changed since the run was laid out: run it again")
    here = outside_code(spec.method, spec.conversation) or {}
    for what, code in (spec.code or {}).items():
        if here.get(what) != code:
            raise HarnessError(
                f"{what} is {here.get(what, 'not there')} where the run takes place, and was {code} when it was laid "
                "out: install one version everywhere and run it again"
            )


@cache
def _plug_in(entry: importlib.metadata.EntryPoint) -> str:
    """Return distribution, version and checksum of a plug-in."""
    where = "no distribution" if entry.dist is None else f"{entry.dist.metadata['Name']} {entry.dist.version}"
    digest = hashlib.sha256()
    for name, file in sorted(dict(_sources(entry)).items()):
        digest.update(f"{name}\0{hashlib.sha256(read_bytes(file)).hexdigest()}\n".encode())
    return f"{where}, {digest.hexdigest()[:DIGITS]}"


def _sources(entry: importlib.metadata.EntryPoint) -> Iterator[tuple[str, Path]]:
    """Yield the files of a plug-in: those of its distribution, and of an editable one those that are imported."""
    for listed in (entry.dist.files if entry.dist is not None else None) or ():
        file = Path(str(listed.locate()))
        if not any(part.endswith((".dist-info", ".egg-info")) for part in listed.parts) and _counts(file):
            yield listed.as_posix(), file
    top = entry.module.partition(".")[0]
    found = importlib.util.find_spec(top)
    if found is None:
        return
    if found.submodule_search_locations is None:
        if found.origin is not None and _counts(file := Path(found.origin)):
            yield file.name, file
        return
    for root in map(Path, found.submodule_search_locations):
        for file in root.rglob("*"):
            if _counts(file):
                yield f"{top}/{file.relative_to(root).as_posix()}", file


def _counts(file: Path) -> bool:
    if file.name.startswith("__editable__") or file.suffix in (".pyc", ".pth") or "__pycache__" in file.parts:
        return False
    return file.is_file()


@cache
def _template(name: str) -> str | None:
    """Return what tells a template of FastChat's from any other of its name; None of ours, and where it is not there.

    What it makes of turns is taken, since that follows from its fields and from FastChat's code alike.
    """
    try:
        template = find_template(name)
    except HarnessError:
        return None
    if template.origin == "harness":
        return None
    written = [template.render(TURNS[:number]) for number in range(1, len(TURNS) + 1)]
    made = identity([written, template.stop_strings, template.stop_token_ids, template.stop_tokens])
    return f"{template.origin}, {made}"
