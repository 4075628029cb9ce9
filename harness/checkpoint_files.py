"""What a model's folder says of itself in JSON alone, so that what is no plain checkpoint is refused before it is read.

transformers follows an ``adapter_config.json`` to another base than the folder's own, unpacks quantised weights into
what can be neither trained nor compared, and loads the shards that an index names, pickled ones too.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from harness.errors import HarnessError

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
ADAPTER = "adapter_config.json"
FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights, by the names that safetensors has for them, that hold a weight's own value."""
MOST_HEADER_BYTES = 100_000_000
"""Of a safetensors file, by its format."""


def check_checkpoint(folder: Path) -> None:
    """Refuse a folder that holds an adapter, quantised weights, or an index of files that are not there.

    Raises:
        HarnessError: it does; the sentence names the file.
    """
    if (folder / ADAPTER).is_file():
        base = _table(folder / ADAPTER).get("base_model_name_or_path")
        of = f" of {base}" if isinstance(base, str) and base else ""
        raise HarnessError(
            f"{folder}: {ADAPTER} says that it is an adapter{of}, which is no model: give a folder with the merged "
            "weights, or take that file out of one that holds them"
        )
    quantisation = _table(folder / "config.json").get("quantization_config")
    if quantisation:
        kind = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
        raise HarnessError(
            f"{folder}: config.json has a quantization_config ({kind or 'of no name'}): quantised weights are neither "
            "trained nor scored here, give the checkpoint that they were made from"
        )
    _check_index(folder / INDEX)
    for file in sorted(folder.glob("*.safetensors")):
        _check_dtypes(file)


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights that transformers reads of a folder, in order; :func:`check_checkpoint` passed it."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def _check_index(file: Path) -> None:
    """Refuse an index that names what is no safetensors file, or one that is missing."""
    try:
        names = sorted({str(name) for name in json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()})
    except FileNotFoundError:
        return
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise HarnessError(f"{file}: is no index of weights: {reason}") from error
    if others := [name for name in names if not name.endswith(".safetensors")]:
        raise HarnessError(f"{file}: names {others[0]}, which is no safetensors file; pickled weights are not read")
    if (file.parent / WEIGHTS).is_file():  # is loaded, and the index is not looked at
        return
    if absent := [name for name in names if not (file.parent / name).is_file()]:
        raise HarnessError(
            f"{file}: names {len(names)} files of weights, and {', '.join(absent[:4])}"
            f"{f' and {len(absent) - 4} more' if len(absent) > 4 else ''} of them "
            f"{'is' if len(absent) == 1 else 'are'} not in the folder: copy the whole checkpoint"
        )


def _check_dtypes(file: Path) -> None:
    """Refuse weights in few bits: without the scales that belong to them transformers would read them as they stand.

    Buffers of old checkpoints, as masks and positions, may be of any type.
    """
    for name, entry in _header(file).items():
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        if name.endswith(".weight") and isinstance(dtype, str) and dtype not in FLOATS:
            raise HarnessError(
                f"{file}: {name} is of type {dtype}; weights are expected in one of {', '.join(FLOATS)}, "
                "quantised ones are neither trained nor scored here"
            )


def _header(file: Path) -> dict[str, Any]:
    """Return what a safetensors file says of its tensors; empty where it is none: who loads it says so."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            value = json.loads(stream.read(min(length, MOST_HEADER_BYTES)))
    except (OSError, ValueError, RecursionError, struct.error):
        return {}
    return value if isinstance(value, dict) else {}


def _table(file: Path) -> dict[str, Any]:
    """Return the table in a JSON file; empty where it is none: who loads the folder says what is wrong with it."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
