"""Base models: where their weights come from and where their decoder blocks are. Read from ``suites/models.toml``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from harness.errors import HarnessError, near_miss
from harness.toml_files import read_toml, validate


class ModelShape(BaseModel):
    """Architecture of a decoder, enough to build it without its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rope_theta: float
    tied_head: bool
    sliding_window: int | None = None


class BaseModelSpec(BaseModel):
    """One entry of models.toml, or a folder given by the user."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    summary: str = ""
    architecture: Literal["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"] | str
    hub_id: str | None = None
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
    gated: bool = False
    shape: ModelShape | None = None

    blocks: str = "model.layers"
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"

    @model_validator(mode="after")
    def _one_source(self) -> BaseModelSpec:
        if not (self.hub_id or self.packaged or self.folder):
            raise ValueError("a model needs hub_id, packaged or folder")
        return self

    def identity(self) -> dict[str, str | None]:
        """Return what tells these weights from any others, for the run's identity."""
        if self.folder is not None:
            return {"name": self.name, "source": "folder", "checksum": self.checksum}
        if self.packaged is not None:
            return {"name": self.name, "source": f"packaged:{self.packaged}", "checksum": self.checksum}
        return {"name": self.name, "source": f"hub:{self.hub_id}", "revision": self.revision}


def load_models(file: Path | None = None) -> dict[str, BaseModelSpec]:
    """Return every base model of models.toml (or of ``file``) by name.

    Raises:
        HarnessError: the file cannot be read or an entry is not valid.
    """
    table, where = read_toml(file if file is not None else "models.toml")
    return {
        name: validate(BaseModelSpec, {"name": name, **entry}, f"{where}: [{name}]") for name, entry in table.items()
    }


def find_model(name: str, models: dict[str, BaseModelSpec]) -> BaseModelSpec:
    """Return the base model called ``name``.

    Raises:
        HarnessError: there is none; the sentence holds a near miss.
    """
    if name not in models:
        raise HarnessError(f"there is no model '{name}'{near_miss(name, models)}")
    return models[name]
