"""Base models: where their weights come from and where their decoder blocks are. Read from ``suites/models.toml``."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from harness.errors import HarnessError, near_miss
from harness.files import read_bytes
from harness.settings import NAME_PATTERN, Name
from harness.toml_files import read_tables, validate

Weights = Literal["pretrained", "random"]
"""``random``: initial values drawn from the run's seed, for suites that measure memory and speed, not quality."""
USUAL_PLACES: Mapping[str, str] = {
    "blocks": "model.layers",
    "embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
}
"""Where most decoders have their parts, by the field that says it of another: in a run's identity it goes unsaid."""
PARTS = tuple(USUAL_PLACES)
"""Fields that say where a decoder's parts are."""
USUAL_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Those that are known to have them there."""
HUB = "hub:"
"""What begins a repository on the hub where a folder may be given, too."""
WINDOWED = ("MistralForCausalLM",)
"""Architectures whose configuration has a sliding window that is on unless it says None."""
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([A-Za-z0-9][\w./-]{0,199}))?", re.ASCII)
"""A repository on the hub, and perhaps a branch, tag or commit of it."""


class ModelShape(BaseModel):
    """Architecture of a decoder, enough to build it without its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_size: int
    """Width of the residual stream."""
    intermediate_size: int
    """Width inside the MLP."""
    num_layers: int
    """Decoder blocks."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key and value heads."""
    head_dim: int
    """Width of a head."""
    vocab_size: int
    """Rows of the embedding."""
    max_positions: int
    """Longest sequence, in tokens."""
    rope_theta: float
    """Base of the rotary frequencies."""
    tied_head: bool
    """True: the head's weight is the embedding's."""
    sliding_window: int | None = None
    """Tokens that attention looks back; left out: all."""

    def config_settings(self, architecture: str) -> dict[str, Any]:
        """Return the settings of transformers' configuration of ``architecture``, by its names.

        Raises:
            HarnessError: the shape has a sliding window and the architecture takes none.
        """
        settings = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_positions,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "tie_word_embeddings": self.tied_head,
        }
        if architecture in WINDOWED:
            return {**settings, "sliding_window": self.sliding_window}
        if self.sliding_window is not None:
            raise HarnessError(
                f"a shape with sliding_window = {self.sliding_window} cannot be built as {architecture}: a window is "
                f"known of {', '.join(WINDOWED)}"
            )
        return settings


class BaseModelSpec(BaseModel):
    """One entry of models.toml, or a folder given by the user."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    summary: str = ""
    """One line for ``harness list models``."""
    architecture: str | None = None
    """Class of transformers; None: what config.json says."""
    hub_id: str | None = None
    """``owner/name`` on the hub."""
    hub_id_source: str | None = None
    """The public source where the hub id was read."""
    revision: str | None = None
    """Commit hash on the hub; None until ``harness prepare`` resolves it and pins it in the lock file."""
    packaged: str | None = None
    """Name of the packaged asset that holds the weights."""
    folder: Path | None = None
    """A local folder that ``from_pretrained`` loads, standing in for the above."""
    checksum: str | None = None
    """SHA-256 over the files of ``folder``, or of the packaged asset."""
    licence: str = ""
    """Of the weights."""
    gated: bool = False
    """True: the hub asks to accept the licence, and for HF_TOKEN."""
    shape: ModelShape | None = None
    """Enough to build the model without its weights: for planning, and for random weights."""
    weights: Weights = "pretrained"
    """Set by the suite; ``random`` needs shape or folder, and takes nothing but the configuration from them."""

    config: Path | None = None
    """The configuration of a model on the hub, once it is in the cache."""
    blocks: str | None = None
    """Where the list of decoder blocks is in the model; it and the next three are found where they are left out."""
    embedding: str | None = None
    """Where the input embedding is."""
    final_norm: str | None = None
    """Where the norm behind the last block is; empty: the model has none."""
    head: str | None = None
    """Where the output projection is."""

    @model_validator(mode="after")
    def _one_source(self) -> BaseModelSpec:
        if not (self.hub_id or self.packaged or self.folder or self.shape):
            raise ValueError("a model needs hub_id, packaged, folder, or a shape for random weights alone")
        if self.architecture is None and (self.packaged or self.shape):
            raise ValueError("a shape, and a packaged model, needs its architecture: there is no config.json to say it")
        return self

    def identity(self) -> dict[str, str | None]:
        """Return what tells these weights from any others, for the run's identity.

        Of random weights it is the architecture and its configuration; the values follow from the run's seed.
        """
        return {"name": self.name, **self._weights_identity(), **self._unusual_parts()}

    def _weights_identity(self) -> dict[str, str | None]:
        if self.weights == "random":
            return {"source": "random", "checksum": self._architecture_checksum()}
        if self.folder is not None:
            return {"source": "folder", "checksum": self.checksum}
        if self.packaged is not None:
            return {"source": f"packaged:{self.packaged}", "checksum": self.checksum}
        return {"source": f"hub:{self.hub_id}", "revision": self.revision}

    def _unusual_parts(self) -> dict[str, str | None]:
        """Return where the decoder's parts are, if not in the usual place: it decides what is trained."""
        return {name: place for name, place in self.places().items() if place != USUAL_PLACES[name]}

    def places(self) -> dict[str, str]:
        """Return where each part is, as far as it is known; in the usual place otherwise."""
        given = {name: getattr(self, name) for name in PARTS}
        return {name: USUAL_PLACES[name] if place is None else place for name, place in given.items()}

    def config_file(self) -> Path | None:
        """Return the config.json that says what the model looks like; None where there is none, or none yet."""
        return self.config if self.folder is None else self.folder / "config.json"

    def can_be_built(self) -> bool:
        """Return whether it is known what the model looks like."""
        return self.shape is not None or self.config_file() is not None

    def with_weights(self, weights: Weights) -> BaseModelSpec:
        """Return the model with pretrained or random weights.

        Raises:
            HarnessError: random weights are asked for, and nothing says what the model looks like; or pretrained ones,
                and it is a shape alone.
        """
        if weights == "pretrained" and not (self.hub_id or self.packaged or self.folder):
            raise HarnessError(
                f"model '{self.name}' is a shape without weights, for suites of random weights; give a folder with "
                f"--model {self.name}=PATH, or another model"
            )
        if weights == "random" and not self.can_be_built():
            fetch = "; 'harness prepare' on a suite of its weights fetches its config.json" if self.hub_id else ""
            raise HarnessError(
                f"model '{self.name}' cannot have random weights: it has no shape in models.toml, and no folder with a "
                f"config.json is given with --model {self.name}=PATH{fetch}"
            )
        return self.model_copy(update={"weights": weights})

    def _architecture_checksum(self) -> str:
        """Return the SHA-256 over the configuration that random weights are built from."""
        if (file := self.config_file()) is not None and (self.folder is not None or self.shape is None):
            return hashlib.sha256(read_bytes(file)).hexdigest()
        assert self.shape is not None and self.architecture is not None
        built = [self.architecture, self.shape.config_settings(self.architecture)]
        return hashlib.sha256(json.dumps(built, sort_keys=True).encode()).hexdigest()


def given_model(name: str, place: str, known: Mapping[str, BaseModelSpec], option: str) -> BaseModelSpec:
    """Return the base model of ``--model NAME=hub:OWNER/NAME@REVISION``, or of a folder that is under a new name.

    Of a model that there is already, the name stays, and where its parts are if the entry says so.

    Args:
        name: What it is called.
        place: What stands behind the name; None of a known model is taken over where it is on the hub.
        known: The models that there are.
        option: How to call what was given in a message.

    Raises:
        HarnessError: the name cannot be one, or there can be no such repository.
    """
    entry = known.get(name)
    if entry is None:
        _check_name(name, option)
    if not place.startswith(HUB):
        return entry or BaseModelSpec(name=name, folder=Path(place).expanduser().absolute())
    match = HUB_ID.fullmatch(place.removeprefix(HUB))
    if match is None or ".." in place:
        raise HarnessError(
            f"{option}: expected NAME={HUB}OWNER/NAME@REVISION, of the hub's letters; a revision is optional"
        )
    said = {} if entry is None else {part: getattr(entry, part) for part in PARTS}
    return BaseModelSpec(name=name, hub_id=match[1], revision=match[2], **said)


def _check_name(name: str, option: str) -> None:
    """Refuse a name that no record could have.

    Raises:
        HarnessError: it is one.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise HarnessError(
            f"{option}: '{' '.join(name.split())}' cannot be the name of a model; one is made of letters, digits and "
            "._- and begins with a letter or digit"
        )


def load_models(file: Path | None = None) -> dict[str, BaseModelSpec]:
    """Return every base model of models.toml (or of ``file``) by name.

    Raises:
        HarnessError: the file cannot be read or an entry is not valid.
    """
    table, where = read_tables(file if file is not None else "models.toml")
    return {
        name: validate(BaseModelSpec, {"name": name, **entry}, f"{where}: [{name}]") for name, entry in table.items()
    }


def find_model(name: str, models: Mapping[str, BaseModelSpec]) -> BaseModelSpec:
    """Return the base model called ``name``.

    Raises:
        HarnessError: there is none; the sentence holds a near miss.
    """
    if name not in models:
        raise HarnessError(f"there is no model '{name}'{near_miss(name, models)}")
    return models[name]
