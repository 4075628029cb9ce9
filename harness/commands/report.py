"""``harness report``: tables and plots from records alone. Works where torch is absent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.calibration_log import SUITES, Log, read_log
from harness.catalogue.tuned import Tuned
from harness.commands._files_said import say_files
from harness.commands._output import console, warn
from harness.commands._selection import given_catalogue
from harness.commands.requests import NO_TASKS, TasksRequest
from harness.errors import HarnessError
from harness.expansion import load_suite, load_tuned
from harness.report.formats import FORMATS
from harness.report.reading.sides import items_beside
from harness.report.write import terminal_table, write_report
from harness.store import Store, no_collection
from harness.suite import Suite

