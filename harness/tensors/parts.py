"""Finds where a causal language model keeps its decoder blocks, embedding, final norm and head, by looking at it.

The model is built from its configuration alone, without weights. Embedding and head are what the accessors of
transformers return. The blocks are the one list of modules in the text decoder that is as long as the configuration
says. The final norm is the first norm that is called behind the last block and before the head: the order of calls is
watched in a forward pass of tensors without storage, as the order of definition tells no norm of embeddings from it.
Whatever is not plain is refused with what there is to choose from: a wrong guess would train another model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.catalogue.models import PARTS
from harness.errors import HarnessError
from harness.tensors.fakes import replace_by_fakes
from harness.tensors.linear import weight_of
from harness.tensors.loading import UNREADABLE, config_in

PROBE_TOKENS = 8
NO_NORM = ""
"""The place of a final norm that there is none of."""
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "decoder_layers", "n_layer", "n_layers")
"""What configurations call the number of decoder blocks; all that a configuration has are asked."""
MOST_LAYERS = 1000
"""Of a configuration that is built; the largest published model has some 130."""
UNBUILDABLE = (*UNREADABLE, ArithmeticError, AssertionError, ImportError, MemoryError, NotImplementedError)
"""What classes of transformers raise of a configuration that does not fit them."""


class PartsUnknown(HarnessError):
    """What cannot be told of a model by looking at it; the sentence names the keys to set."""


def parts_of(folder: Path, given: Mapping[str, str | None]) -> dict[str, str]:
    """Return where the parts of the model in a folder are, by its config.json alone.

    Args:
        folder: With config.json.
        given: As :func:`find_parts` has it.

    Raises:
        PartsUnknown: as :func:`find_parts`, or no model can be built from the configuration.
        HarnessError: the configuration cannot be read.
    """
    from transformers import AutoModelForCausalLM

    config = config_in(folder)
    num_layers(config)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    except UNBUILDABLE as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise PartsUnknown(f"no causal language model can be built from {folder / 'config.json'}: {reason}") from error
    return find_parts(model.eval(), given)


def find_parts(model: nn.Module, given: Mapping[str, str | None]) -> dict[str, str]:
    """Return the names of the modules that are a model's blocks, embedding, final norm and head.

    Args:
        model: On ``meta``; its tensors are replaced by fake ones.
        given: Places that the user says, by part; None: to be found.

    Raises:
        PartsUnknown: one cannot be told, or there is no module where the user says.
    """
    said = {part: place for part, place in given.items() if place is not None}
    for part, place in said.items():
        _check_there(model, part, place)
    blocks = said["blocks"] if "blocks" in said else _blocks(model)
    embedding = said["embedding"] if "embedding" in said else _accessed(model, "embedding")
    head = said["head"] if "head" in said else _accessed(model, "head")
    order = _calls(model, model.get_submodule(blocks))
    if order is not None and "blocks" not in said:
        _check_order(order, blocks, len(list(model.get_submodule(blocks).children())))
    norm = said["final_norm"] if "final_norm" in said else _final_norm(model, order, blocks, embedding, head)
    return dict(zip(PARTS, (blocks, embedding, norm, head), strict=True))


def block_lists(model: nn.Module) -> dict[str, int]:
    """Return the lists of modules that may be a decoder's blocks, and how long they are: those inside no other."""
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and not any(name.startswith(f"{o}.") for o in found):
            children = list(module)
            if all(any(True for _ in one.children()) and any(True for _ in one.parameters()) for one in children):
                found[name] = len(module)
    return found


def num_layers(config: Any) -> set[int]:
    """Return every number of layers that a configuration gives for its text decoder.

    Raises:
        PartsUnknown: one is no number that a model can be built with.
    """
    text = config.get_text_config(decoder=True)
    found = {value for key in LAYER_COUNTS if (value := getattr(text, key, None)) is not None}
    if any(not isinstance(value, int) or not 0 < value <= MOST_LAYERS for value in found):
        raise PartsUnknown(f"its config.json has {sorted(map(str, found))} layers, expected 1 to {MOST_LAYERS}")
    return found


def _blocks(model: Any) -> str:
    everywhere = block_lists(model)
    decoder = next((name for name, module in model.named_modules() if module is _text_decoder(model)), "")
    inside = {name: size for name, size in everywhere.items() if name.startswith(f"{decoder}.") or not decoder}
    counts = num_layers(model.config)
    fitting = [name for name, size in (inside or everywhere).items() if size in counts]
    if len(fitting) != 1:
        there = ", ".join(f"{name} ({size})" for name, size in everywhere.items()) or "none"
        how_many = f"{len(fitting)} lists" if fitting else "no list"
        raise PartsUnknown(
            f"which of its modules are the decoder's blocks cannot be told: {how_many} of modules as long as its "
            f"configuration says ({', '.join(map(str, sorted(counts))) or 'nothing'}), set blocks in its entry to one "
            f"of {there}"
        )
    return fitting[0]


def _text_decoder(model: Any) -> nn.Module | None:
    """Return the decoder of text inside a model of several towers, as transformers has it; None where it has none."""
    try:
        found = model.get_decoder()
    except (AttributeError, NotImplementedError, ValueError):
        return None
    return found if isinstance(found, nn.Module) and found is not model else None


def _accessed(model: Any, part: str) -> str:
    """Return the name of what transformers calls the input embedding or the head."""
    getter = model.get_input_embeddings if part == "embedding" else model.get_output_embeddings
    module: Any
    try:
        module = getter()
    except (AttributeError, NotImplementedError):
        module = None
    wanted = nn.Embedding if part == "embedding" else nn.Linear
    names: dict[str, nn.Module] = dict(model.named_modules())
    name = next((name for name, one in names.items() if one is module), None)
    if name is None or getattr(module, "weight", None) is None or module.weight.dim() != 2:
        there = _some([name for name, one in names.items() if isinstance(one, wanted)])
        raise PartsUnknown(f"its {part} cannot be told: set {part} in its entry, as to one of {there}")
    return name


def _check_there(model: nn.Module, part: str, place: str) -> None:
    if part == "final_norm" and place == NO_NORM:
        return
    if place and place in dict(model.named_modules()):
        return
    there = {"blocks": [*block_lists(model)], "final_norm": [*_norms(model)]}.get(part)
    advice = f"; there are {_some(there)}" if there else ""
    raise PartsUnknown(f"there is no module '{place}' for its {part}{advice}: set {part} in its entry, or leave it out")


def _calls(model: nn.Module, blocks: nn.Module) -> list[str] | None:
    """Return the names of modules in the order in which a forward pass calls them; None where none can be made.

    Of blocks of one class the first alone is run: what it returns stands for the others.
    """
    order: list[str] = []
    returned: dict[type, Any] = {}
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda _module, _args, name=name: order.append(name)))
    stubbed = list(blocks.children())
    for block in stubbed:
        _run_once(block, returned)
    mode = FakeTensorMode()
    replace_by_fakes(model, mode)
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    quiet, logger.disabled = logger.disabled, True  # what it says of a pass that cannot be made is not the user's
    try:
        with mode, torch.no_grad():
            model(input_ids=torch.zeros((1, PROBE_TOKENS), dtype=torch.int64), use_cache=False)
    except Exception:  # whatever a model's code does with values that there are none of
        return None
    finally:
        logger.disabled = quiet
        for handle in handles:
            handle.remove()
        for block in stubbed:
            del block.forward
    return order


def _run_once(block: nn.Module, returned: dict[type, Any]) -> None:
    own = block.forward

    def forward(*args: Any, **settings: Any) -> Any:
        if type(block) not in returned:
            returned[type(block)] = own(*args, **settings)
        return returned[type(block)]

    block.forward = forward  # type: ignore[method-assign]


def _check_order(order: Sequence[str], blocks: str, number: int) -> None:
    """Refuse a list whose modules are not called one after the other, each once.

    Raises:
        PartsUnknown: they are not.
    """
    wanted = [f"{blocks}.{index}" for index in range(number)]
    called = [name for name in order if name in set(wanted)]
    if called != wanted:
        raise PartsUnknown(
            f"the {number} modules of '{blocks}' are called {len(called)} times in a forward pass, not each once in "
            f'their order, so that they are no row of decoder blocks: set blocks = "{blocks}" in its entry if they are'
        )


def _final_norm(model: nn.Module, order: Sequence[str] | None, blocks: str, embedding: str, head: str) -> str:
    norms = _norms(model)
    outside = [name for name in norms if not name.startswith(f"{blocks}.")]
    if order is None:
        width = weight_of(model.get_submodule(embedding)).shape[1]
        placed = [name for name in _behind(model, blocks) if name in outside and norms[name] in (width, 0)]
        if len(placed) != 1:
            raise PartsUnknown(
                "its forward pass cannot be watched without weights, and its final norm cannot be told: set final_norm "
                f"in its entry, as to one of {_some(outside)}"
            )
        return placed[0]
    last = max((place for place, name in enumerate(order) if name.startswith(f"{blocks}.")), default=-1)
    ends = [place for place, name in enumerate(order) if name == head and place > last]
    if last < 0 or not ends:
        raise PartsUnknown(
            f"its head '{head}' is not called behind its blocks '{blocks}': set blocks, head and final_norm in its "
            "entry"
        )
    between = order[last + 1 : ends[0]]
    return next((name for name in between if name in outside), NO_NORM)


def _norms(model: nn.Module) -> dict[str, int]:
    """Return every norm by name, with the number of its weights: a module without others inside that is called so."""
    return {
        name: sum(parameter.numel() for key, parameter in module.named_parameters() if key == "weight")
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and not any(True for _ in module.children())
    }


def _behind(model: nn.Module, blocks: str) -> Iterator[str]:
    """Yield modules that are defined behind the blocks, in what holds these or further out."""
    inner = blocks
    while inner:
        outer = inner.rpartition(".")[0]
        names = [f"{outer}.{name}" if outer else name for name, _ in model.get_submodule(outer).named_children()]
        yield from names[names.index(inner) + 1 :]
        inner = outer


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more
