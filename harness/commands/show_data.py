"""``harness show-data``: the first training examples of a run as the model sees them, trained tokens marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.text import Text

from harness.commands._assets import prepare
from harness.commands._output import Display, console
from harness.commands._selection import given_catalogue, given_wheels, select
from harness.commands.requests import AssetsRequest, SelectionRequest
from harness.conversation import find_template
from harness.errors import HarnessError
from harness.expansion import load_suite, training_labels
from harness.printable import as_json, printable
from harness.spec import RunSpec

if TYPE_CHECKING:
    from harness.data.examples import Example
    from harness.data.showing import Piece

TRAINED_STYLE = "bold green"


def show_data(chosen: SelectionRequest, assets: AssetsRequest, *, num_examples: int = 3, in_json: bool = False) -> int:
    """Print the first examples of one run in the order of its seed."""
    catalogue = given_catalogue(chosen.catalogue, chosen.tasks)
    suite = load_suite(chosen.suite, catalogue)
    labels = chosen.labels or tuple(training_labels(suite, catalogue=catalogue)[:1])
    selection = select(replace(chosen, labels=labels), tuned=False)
    spec = next((spec for spec in selection.specs if spec.train is not None), None)
    if spec is None or spec.train is None:
        raise HarnessError("nothing of what is chosen trains, so there is no training data to show")
    model = selection.models[spec.model_name]
    one = replace(selection, specs=(spec,), models={spec.model_name: model})
    if model.weights == "random":
        raise HarnessError(f"suite '{spec.suite}' trains on random tokens, which have no text to show")
    with Display() as display:
        wheels = given_wheels(assets.wheels)
        prepared = prepare(one, offline=assets.offline, wheels=wheels, progress=display.progress)

    from harness.data.batches import TrainData
    from harness.data.drawn import run_rows
    from harness.tensors.loading import load_tokenizer

    tokenizer = load_tokenizer(prepared.model_folders[spec.model_name])
    conversation = None if spec.conversation is None else find_template(spec.conversation)
    dataset = selection.datasets[spec.train.data]
    rows = run_rows(spec.train, dataset, vocab_size=len(tokenizer), seed=spec.seed)
    data = TrainData(rows.train, tokenizer, spec.train, spec.seed, conversation)
    examples = [data.example(index) for index in islice(data.order(), num_examples)]
    if in_json:
        print(as_json(_as_json(spec, examples, tokenizer)))
    else:
        _print(spec, examples, tokenizer, len(data))
    return 0


def _as_json(spec: RunSpec, examples: Sequence[Example], tokenizer: Any) -> dict[str, Any]:
    from harness.data.showing import pieces, trained_flags

    return {
        "model": spec.model_name,
        "label": spec.label,
        "seed": spec.seed,
        "train": None if spec.train is None else spec.train.model_dump(mode="json"),
        "examples": [
            {
                **asdict(example),
                "trained": trained_flags(example),
                "pieces": [asdict(piece) for piece in pieces(example, tokenizer)],
            }
            for example in examples
        ],
    }


def _print(spec: RunSpec, examples: Sequence[Example], tokenizer: Any, num_examples: int) -> None:
    from harness.data.showing import LEGEND, heading, marked, pieces

    train = spec.train
    assert train is not None
    out = console()
    layout = "packed" if train.packing else "one example a row"
    out.print(
        f"{train.data} for {spec.model_name}, {spec.label}, seed {spec.seed}: prompt {train.prompt}, loss on "
        f"{train.loss_on}, {layout}, at most {train.sequence_length} tokens; {num_examples} rows an epoch",
        markup=False,
        soft_wrap=True,
    )
    out.print("trained tokens are green" if out.is_terminal else LEGEND, markup=False, soft_wrap=True)
    for number, example in enumerate(examples, start=1):
        parts = pieces(example, tokenizer)
        out.print(Text(f"\n--- {heading(example, number)}", style="bold"), soft_wrap=True)
        out.print(
            _styled(parts, example) if out.is_terminal else Text(printable(marked(parts, example))), soft_wrap=True
        )


def _styled(parts: Sequence[Piece], example: Example) -> Text:
    """Return an example as :func:`harness.data.showing.marked`, trained text by its style."""
    from harness.data.showing import NEXT, cut_mark

    text = Text(cut_mark(example.cut_before), style="")
    for part in parts:
        text.append(NEXT if part.begins_example else "", style="reverse")
        text.append(printable(part.text), style=TRAINED_STYLE if part.trained else "")
    return text.append(cut_mark(example.cut_after))
