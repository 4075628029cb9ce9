"""TensorBoard: an event file a run, in ``logs/tensorboard/SUITE/RUN``, by tensorboard's own writer and without torch.

Source of the format of hyperparameters: tensorboard/plugins/hparams/summary.py, whose import needs TensorFlow.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from harness.loggers.contract import LoggedRun, Logger, Place, Session, flat
from harness.record import Status


class TensorBoard(Logger):
    """Writes event files."""

    extra = "tensorboard"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        from tensorboard.summary.writer import event_file_writer

        self._writer = event_file_writer.EventFileWriter

    def begin(self, run: LoggedRun, *, resumed: bool) -> Session:
        """Open an event file, beside those of earlier attempts."""
        folder = self.place.folder / "tensorboard" / run.folder
        folder.mkdir(parents=True, exist_ok=True)
        session = _Events(self._writer(str(folder)))
        if not resumed:
            session.settings(run)
        return session


class _Events(Session):
    """The event file of a run."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def settings(self, run: LoggedRun) -> None:
        """Write the hyperparameters, and what identifies the run as text."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        self._add(hparams_pb(flat(run.settings), trial_id=run.key, start_time_secs=time.time()))
        self._text("run", "; ".join(f"{name} {value}" for name, value in run.tags.items()), 0)
        self._writer.flush()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write scalars, so that a reader sees them at once."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add(Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]), step)
        self._writer.flush()

    def end(self, step: int, status: Status, reason: str | None, figures: Mapping[str, float]) -> None:
        """Write figures, and how the run ended: as text, and as the end of the session of hyperparameters."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import metadata
        from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

        if figures:
            self.log(step, figures)
        self._text("status", f"{status}: {reason}" if reason else status, step)
        how = STATUS_SUCCESS if status == "ok" else STATUS_FAILURE
        told = HParamsPluginData(session_end_info=SessionEndInfo(status=how, end_time_secs=time.time()))
        tag, data = metadata.SESSION_END_INFO_TAG, metadata.create_summary_metadata(told)
        self._add(Summary(value=[Summary.Value(tag=tag, metadata=data, tensor=metadata.NULL_TENSOR)]))
        self._writer.close()

    def leave(self) -> None:
        """Close the file."""
        self._writer.close()

    def _text(self, tag: str, text: str, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.plugins.text.metadata import create_summary_metadata

        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode()], tensor_shape=shape)
        data = create_summary_metadata(tag, "")
        self._add(Summary(value=[Summary.Value(tag=f"{tag}/text_summary", metadata=data, tensor=tensor)]), step)

    def _add(self, summary: Any, step: int = 0) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(summary=summary, step=step, wall_time=time.time()))
