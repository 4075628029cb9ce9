"""The section of a page on proofs: which fail, and how many could be judged wholly."""

from __future__ import annotations

from harness.proof import Judgement
from harness.record import Proof
from harness.report.pages.document import Block, Heading, Paragraph, TableBlock
from harness.report.reading.proofs import all_judgements
from harness.report.reading.summary import Run, Summary
from harness.report.table import Column, Table

TITLE = "Proofs"


def proof_blocks(summary: Summary) -> list[Block]:
    """Return the section of a page; nothing where no run has a proof at all."""
    found = list(all_judgements(summary))
    if all(run.record is None or run.record.proof in (None, Proof()) for run, _ in found):
        return []
    blocks: list[Block] = [Heading(2, TITLE)]
    rows = [
        (run.model, run.label, str(run.seed), check.name, check.sentence)
        for run, judgement in found
        for check in judgement.failed
    ]
    if rows:
        titles = ("model", "label", "seed", "check", "what is wrong")
        blocks.append(TableBlock(Table(tuple(Column(title, "left") for title in titles), tuple(rows))))
    return [*blocks, Paragraph(_count(found))]


def _count(found: list[tuple[Run, Judgement]]) -> str:
    failing = sum(bool(judgement.failed) for _, judgement in found)
    whole = sum(judgement.is_whole for _, judgement in found)
    partly = len(found) - failing - whole
    ends = "1 run" if len(found) == 1 else f"{len(found)} runs"
    return (
        f"Of {ends} that trained to the end the proof holds in every check of {whole}, holds as far as it could be "
        f"judged of {partly}, and fails of {failing}."
    )
