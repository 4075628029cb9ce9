"""What each tracker's own reader says of the runs that were logged, in one form. Nothing here is the harness's."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Points = list[tuple[int, float]]


@dataclass
class Read:
    """One run as a tracker has it."""

    group: str
    name: str
    status: str
    reason: str | None
    settings: Mapping[str, Any]
    scalars: dict[str, Points] = field(default_factory=dict)


def of_tensorboard(logs: Path) -> Iterator[Read]:
    """Yield the runs in a folder of event files, by tensorboard's EventAccumulator."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    for folder in sorted({file.parent for file in logs.rglob("*tfevents*")}):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        told = {tag: events.Tensors(f"{tag}/text_summary")[-1].tensor_proto for tag in ("run", "status")}
        text = {tag: proto.string_val[0].decode() for tag, proto in told.items()}
        status, _, reason = text["status"].partition(": ")
        content = events.PluginTagToContent("hparams")
        start = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info
        settings = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
        end = HParamsPluginData.FromString(content["_hparams_/session_end_info"]).session_end_info
        assert (end.status == 1) == (status == "ok")
        scalars = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        yield Read(folder.parent.name, folder.name, status, reason or None, settings, scalars)


def of_mlflow(address: str) -> Iterator[Read]:
    """Yield the runs behind a tracking address, by MlflowClient."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=address)
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            tags = run.data.tags
            assert (run.info.status == "FINISHED") == (tags["status"] == "ok")
            scalars = {
                name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
            }
            name = run.info.run_name
            yield Read(experiment.name, name, tags["status"], tags.get("reason"), run.data.params, scalars)


def of_wandb(logs: Path) -> Iterator[Read]:
    """Yield the runs in wandb's offline files, by the messages of wandb itself; runs of one id are one."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, Read] = {}
    for file in sorted(logs.rglob("run-*.wandb")):
        records = [Record.FromString(data) for data in _blocks(file.read_bytes())]
        run = next(record.run for record in records if record.WhichOneof("record_type") == "run")
        settings = {update.key: json.loads(update.value_json) for update in run.config.update}
        known = found.setdefault(run.run_id, Read(run.run_group, run.display_name, "", None, settings))
        for record in records:
            if record.WhichOneof("record_type") == "history":
                items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                for name, value in items.items():
                    if not name.startswith("_"):
                        known.scalars.setdefault(name, []).append((items["_step"], value))
            elif record.WhichOneof("record_type") == "summary":
                for item in record.summary.update:
                    name, value = "/".join(item.nested_key) or item.key, json.loads(item.value_json)
                    if name == "status":
                        known.status = value
                    elif name == "reason":
                        known.reason = value or None
                    elif name.startswith(("figure/", "score/")):
                        known.scalars[name] = [(0, value)]
    yield from found.values()


TRACKIO = """
import json
from trackio.sqlite_storage import SQLiteStorage
for project in SQLiteStorage.get_projects():
    for run in SQLiteStorage.get_run_records(project):
        known = {"run_id": run["id"]}
        config = SQLiteStorage.get_run_config(project, run["name"], **known)
        print(json.dumps([run["name"], config, SQLiteStorage.get_logs(project, run["name"], **known)]))
"""


def of_trackio(folder: Path) -> Iterator[Read]:
    """Yield the runs in trackio's folder, by its own storage, in a process of its own: it takes it at import."""
    variables = {**os.environ, "TRACKIO_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", TRACKIO], env=variables, capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        name, config, logs = json.loads(line)
        read = Read(config["_Group"], name, "", None, config)
        for row in logs:
            read.status = row.pop("status", read.status)
            read.reason = row.pop("reason", read.reason) or None
            step = row.pop("step")
            row.pop("timestamp")
            for scalar, value in row.items():
                read.scalars.setdefault(scalar, []).append((step, value))
        yield read


def _blocks(data: bytes) -> Iterator[bytes]:
    """Yield the records of a .wandb file: LevelDB's log format behind seven bytes of its own.

    Source: leveldb's doc/log_format.md; wandb's checksums are CRC-32 over type and data.
    """
    assert data[:4] == b":W&B"
    at, parts = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        checksum, size, kind = struct.unpack("<IHB", data[at : at + 7])
        part = data[at + 7 : at + 7 + size]
        if kind == 0 and size == 0:
            return
        assert checksum == zlib.crc32(bytes([kind]) + part)
        parts = part if kind in (1, 2) else parts + part
        if kind in (1, 4):
            yield parts
        at += 7 + size
