"""What a Slurm job calls on its node, by this module's name: a run with what commands give to it."""

from __future__ import annotations

from harness.report.pages.model_card import model_card
from harness.runs.slurm_job import do_run


def work(order_json: str) -> None:
    """Do a run; kept weights have a card."""
    do_run(order_json, model_card)
