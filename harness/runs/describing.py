"""What lies beside kept weights: the record of their run, and a card that says what they are. Imports no torch.

Both are in the folder before it stands where the record will say, and are written anew when scores are added. A parent
that is killed before that leaves its work folder, by which the next one does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from harness.beside import within
from harness.files import read_bytes_if_there, said_as, write_file
from harness.kept import ADAPTER, CARD, CONFIG, RECORD, Kept, origin_in
from harness.record import Record
from harness.store import Store

Card = Callable[[Kept], str]
"""Returns the text of a model card."""
MARK = "<!-- written by harness, and anew when scores are added: without this line it is yours and stays -->"
"""Last line of a card that may be replaced."""


def describe(folder: Path, record: Record, added: Sequence[Record], card: Card | None) -> None:
    """Write record and card into a folder of kept weights.

    Args:
        folder: Of the weights.
        record: Of their run, as it is stored.
        added: Later evaluations of them, in the order of time.
        card: What writes the card; None: there is none.

    Raises:
        HarnessError: they cannot be written.
    """
    with said_as(f"{folder}: what describes the weights cannot be written"):
        write_file(folder / RECORD, record.model_dump_json(indent=2) + "\n")
        if card is None or _is_of_a_person(folder / CARD):
            return
        kept = Kept(record, added, origin_in(folder), (folder / ADAPTER).is_dir(), (folder / CONFIG).is_file())
        write_file(folder / CARD, f"{card(kept).rstrip()}\n\n{MARK}\n")


def describe_again(store: Store, record: Record, card: Card | None) -> None:
    """Write record and card of the kept weights that a stored record gave scores to; of any other do nothing.

    Raises:
        HarnessError: they cannot be written.
    """
    records = [one for one in store.read(record.suite).records if one.run_id == record.run_id]
    runs = [one for one in records if one.is_run]
    scored = next((one for one in runs if one.uuid in (record.uuid, record.of)), None)
    if scored is None or scored.weights is None:
        return
    alike = {one.uuid: one for one in runs if one.weights == scored.weights}
    folder = within(store.folder, scored.weights)
    if folder.is_dir():
        newest = list(alike.values())[-1]
        describe(folder, newest, [one for one in records if one.of in alike and one.scores], card)


def _is_of_a_person(file: Path) -> bool:
    """Return whether a card is there that somebody made theirs."""
    text = read_bytes_if_there(file)
    return text is not None and MARK.encode() not in text
