"""Base models: where their weights come from and where their decoder blocks are. Read from ``suites/models.toml``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from harness.errors import HarnessError, near_miss
from harness.files import read_bytes
from harness.settings import Name
from harness.toml_files import read_tables, validate

Weights = Literal["pretrained", "random"]
"""``random``: initial values drawn from the run's seed, for suites that measure memory and speed, not quality."""
PARTS = ("blocks", "embedding", "final_norm", "head")
"""Fields that say where a decoder's parts are."""
WINDOWED = ("MistralForCausalLM",)
"""Architectures whose configuration has a sliding window that is on unless it says None."""


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
    architecture: Literal["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"] | str
    """The class of transformers that is built."""
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

    blocks: str = "model.layers"
    """Where the list of decoder blocks is in the model."""
    embedding: str = "model.embed_tokens"
    """Where the input embedding is."""
    final_norm: str = "model.norm"
    """Where the norm behind the last block is."""
    head: str = "lm_head"
    """Where the output projection is."""

    @model_validator(mode="after")
    def _one_source(self) -> BaseModelSpec:
        if not (self.hub_id or self.packaged or self.folder or self.shape):
            raise ValueError("a model needs hub_id, packaged, folder, or a shape for random weights alone")
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
        usual = {name: BaseModelSpec.model_fields[name].default for name in PARTS}
        return {name: place for name in PARTS if (place := getattr(self, name)) != usual[name]}

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
        if weights == "random" and self.shape is None and self.folder is None:
            raise HarnessError(
                f"model '{self.name}' cannot have random weights: it has no shape in models.toml, and no folder with a "
                f"config.json is given with --model {self.name}=PATH"
            )
        return self.model_copy(update={"weights": weights})

    def _architecture_checksum(self) -> str:
        """Return the SHA-256 over the configuration that random weights are built from."""
        if self.folder is not None:
            file = self.folder / "config.json"
            return hashlib.sha256(read_bytes(file)).hexdigest()
        assert self.shape is not None
        built = [self.architecture, self.shape.config_settings(self.architecture)]
        return hashlib.sha256(json.dumps(built, sort_keys=True).encode()).hexdigest()


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
