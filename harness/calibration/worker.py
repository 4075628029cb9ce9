"""The process that asks a device: a JSON order on standard input, and a JSON line back as each part begins and ends.

Whatever a part does ends in a result: as in a run's process, everything is caught here, and written down. Of the
processes that share a part the first one says how it went; another one only where it failed.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from harness.calibration.bench import Bench, Found, Skip
from harness.calibration.parts import Part, all_parts
from harness.calibration_log import Outcome, PartResult, Reading
from harness.engine.environment import default_device, describe_environment
from harness.engine.ranks import Deserted
from harness.errors import HarnessError
from harness.faults import first_fault
from harness.runs.child import DESERTED, RANK_VARIABLE, die_with_parent, end_with_parent
from harness.tensors.out_of_memory import is_out_of_memory

LONGEST_SENTENCE = 500


def main() -> None:
    """Answer the parts that are ordered, in their order."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print
    die_with_parent()
    order = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()
    rank = int(os.environ[RANK_VARIABLE]) if "ranks" in order else 0
    bench = Bench(default_device(), order["sizes"], rank, order.get("ranks", 1), Path(order.get("folder", ".")))
    parts = {part.name: part for part in all_parts(order["asked_of"])}
    if not any(parts[name].untouched for name in order["parts"]):
        describe_environment()  # kept: what is busy now is busy by others
    for name in order["parts"]:
        if rank == 0:
            print(json.dumps({"begins": name}), file=out, flush=True)
        try:
            result = answer(parts[name], bench)
        except Deserted as lost:
            print(f"{type(lost).__name__}: {lost.__cause__}", file=sys.stderr, flush=True)
            os._exit(DESERTED)
        if rank == 0 or result.outcome not in ("ok", "skipped"):
            print(json.dumps({"result": result.model_dump(mode="json")}), file=out, flush=True)
    out.flush()
    os._exit(0)  # skip the slow teardown


def answer(part: Part, bench: Bench) -> PartResult:
    """Return the result of one part, whatever happens in it.

    Raises:
        Deserted: another process that shares it is gone.
    """
    started_at, begin = datetime.now(UTC), time.perf_counter()
    outcome: Outcome = "ok"
    found = Found()
    try:
        found = part.function()(bench, part.argument)
    except Skip as reason:
        outcome, found = "skipped", Found(sentence=str(reason))
    except HarnessError as error:
        outcome, found = "failed", Found(sentence=str(error))
    except Deserted:
        raise
    except Exception as error:  # a library's, or a plug-in's own; the result says it
        outcome = "out_of_memory" if is_out_of_memory(error) else "failed"
        found = Found(sentence=bench.own(_sentence(error)))
    gc.collect()
    if bench.cuda:
        torch.cuda.empty_cache()
    environment = describe_environment()
    facts: dict[str, Any] = dict(found.facts)
    return PartResult(
        part=part.name,
        group=part.group,
        sizes=bench.sizes,
        outcome=outcome,
        sentence=None if found.sentence is None else found.sentence[:LONGEST_SENTENCE],
        readings=found.readings,
        facts=facts,
        seconds=time.perf_counter() - begin,
        started_at=started_at,
        environment_id=environment.environment_id,
        environment=environment,
    )


def _sentence(error: Exception) -> str:
    if isinstance(error, ValidationError):  # of a reading that is no number
        return f"it measured what cannot be recorded:{first_fault(Reading, error)}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


if __name__ == "__main__":
    main()
