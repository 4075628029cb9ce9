"""Predictions of runs in a thread of their own, beside whatever else goes on. Imports no torch."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from queue import Queue
from types import TracebackType

from harness.errors import HarnessError
from harness.planning.questions import PlanAnswer, PlanTask, Predictor


class Foreteller:
    """Predicts runs, each when it is asked for, or all of them ahead in their order."""

    def __init__(self, tasks: Mapping[str, PlanTask], source_checksum: str, *, ahead: bool) -> None:
        """Start.

        Args:
            tasks: What may be asked, by run id, in the order in which it will be.
            source_checksum: Of the harness.
            ahead: Predict all without being asked, where a core is to spare.
        """
        self._tasks = dict(tasks)
        self._source_checksum = source_checksum
        self._predictor = Predictor(source_checksum)
        self._wanted: Queue[str | None] = Queue()
        self._answers: dict[str, PlanAnswer] = {}
        self._came = threading.Condition()
        self._closed = False
        for run_id in self._tasks if ahead else ():
            self._wanted.put(run_id)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __enter__(self) -> Foreteller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._wanted.put(None)
        self._predictor.close()
        self._thread.join()

    def answer(self, run_id: str, stop_at: float) -> PlanAnswer | None:
        """Return what is predicted of a run, or None where ``time.monotonic()`` reaches ``stop_at`` before."""
        self._wanted.put(run_id)
        with self._came:
            self._came.wait_for(lambda: run_id in self._answers, max(0.0, stop_at - time.monotonic()))
            return self._answers.get(run_id)

    def _work(self) -> None:
        while (run_id := self._wanted.get()) is not None and not self._closed:
            if run_id in self._answers:
                continue
            try:
                answer = self._predictor.answer(self._tasks[run_id])
            except HarnessError as error:
                answer = PlanAnswer(error=str(error), lasting=False)
                if not self._closed:
                    self._predictor.close()
                    self._predictor = Predictor(self._source_checksum)
            with self._came:
                self._answers[run_id] = answer
                self._came.notify_all()
