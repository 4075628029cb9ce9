"""Tiny random models, a small context and a plain training loop: what a method meets, without the engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from harness.catalogue.labels import load_labels
from harness.method import METHODS, BlockScoreRequest, Decoder, Method, check_run
from harness.settings import TrainSettings
from harness.tensors.quantized import quantize

LABELS = load_labels()
NUM_BLOCKS = 4
MODELS = ("llama", "mistral")
SMALL = {
    "active_layers": 2,
    "interval_steps": 2,
    "loraplus_lr_ratio": 4.0,  # at 16 the first steps of AdamW make rounding large
    "rank": 4,
    "update_gap": 3,
    "active_share": 0.5,
    "score_interval": 3,
    "score_rows": 2,
}
"""Settings that a published configuration gets to fit the tiny models."""


@dataclass
class FakeContext:
    """What the engine offers, in a few lines."""

    seed: int
    num_steps: int
    train: TrainSettings
    decoder: Decoder
    scores: Sequence[float] = (0.5, 0.1, 0.2, 0.4)
    requests: list[BlockScoreRequest] = field(default_factory=list)
    model: Any = None
    """What is trained, once it is prepared."""

    def _seed_of(self, stream: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{stream}".encode()).digest()[:6], "big")

    def torch_generator(self, stream: str) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed_of(stream))

    def numpy_generator(self, stream: str) -> np.random.Generator:
        return np.random.default_rng(self._seed_of(stream))

    @contextmanager
    def seed_globally(self, stream: str) -> Iterator[None]:
        before = torch.random.get_rng_state()
        torch.manual_seed(self._seed_of(stream))
        try:
            yield
        finally:
            torch.random.set_rng_state(before)

    def block_scores(self, request: BlockScoreRequest) -> Sequence[float]:
        self.requests.append(request)
        return self.scores

    rank, num_ranks = 0, 1

    def read_scalar(self, tensor: torch.Tensor) -> float:
        return float(tensor)

    def sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def inference_loss(self, stream: str, index: int, num_rows: int) -> float:
        ids = torch.randint(0, 64, (num_rows, 8), generator=self.torch_generator(f"{stream}/{index}"))
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            loss = self.model(input_ids=ids, attention_mask=None, labels=ids).loss
        self.model.train(was_training)
        return self.read_scalar(loss)


@dataclass
class Run:
    """One method on one model, ready to be stepped."""

    method: Method
    base: nn.Module
    model: nn.Module
    optimizer: Any
    context: FakeContext
    losses: list[float] = field(default_factory=list)

    def steps(self, first: int, last: int) -> Run:
        """Train from step ``first`` to before ``last``; batches depend on seed and step only."""
        in_backward = self.method.config.update_in_backward
        for step in range(first, last):
            self.optimizer.begin_step(step)  # as the engine's loop does
            self.method.on_step_begin(step, self.optimizer)
            hooks = self._hooks() if in_backward else []
            ids = self.batch(step)
            with self.context.seed_globally(f"forward/{step}"):
                loss = self.model(input_ids=ids, labels=ids).loss
                loss.backward()
            self.losses.append(float(loss.detach()))
            for hook in hooks:
                hook.remove()
            if not in_backward:
                self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    def batch(self, step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.context.seed * 1000 + step)
        return torch.randint(0, 64, (2, 8), generator=generator)

    def _hooks(self) -> list[Any]:
        def update(p: torch.Tensor) -> None:
            self.optimizer.step_parameters([p])
            p.grad = None

        return [p.register_post_accumulate_grad_hook(update) for p in self.model.parameters() if p.requires_grad]

    def weights(self) -> dict[str, torch.Tensor]:
        """Return copies of all weights."""
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def block_weights(self) -> list[list[torch.Tensor]]:
        """Return copies of the weights of each block that may be trained."""
        return [[p.detach().clone() for p in block] for block in self.trained_of_blocks()]

    def trained_of_blocks(self) -> list[list[torch.Tensor]]:
        """Return the parameters of each block that the optimizer holds."""
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return [[p for p in block.parameters() if id(p) in held] for block in self.context.decoder.blocks]


def tiny_model(architecture: str, *, tied: bool = False, dtype: torch.dtype = torch.float32) -> nn.Module:
    shape: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": NUM_BLOCKS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "tie_word_embeddings": tied,
    }
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if architecture == "llama":
            model: nn.Module = LlamaForCausalLM(LlamaConfig(**shape))
        else:
            model = MistralForCausalLM(MistralConfig(**shape, sliding_window=16))
    return model if dtype == torch.float32 else model.to(dtype)  # .to() fails under FakeTensorMode


def decoder_of(model: Any) -> Decoder:
    return Decoder(
        blocks=tuple(model.model.layers),
        block_names=tuple(f"model.layers.{i}" for i in range(len(model.model.layers))),
        embedding=model.model.embed_tokens,
        final_norm=model.model.norm,
        head=model.lm_head,
        tied_head=model.lm_head.weight is model.model.embed_tokens.weight,
        names={id(p): name for name, p in model.named_parameters()},
    )


def method_of(label: str) -> type[Method]:
    return METHODS.get(LABELS[label].method if label in LABELS else label)


def settings_of(label: str, *, dtype: str = "fp32", **changes: Any) -> tuple[type[Method], dict[str, Any]]:
    """Return the method and settings of a label, or of a plug-in by its name, small enough for the tiny models.

    Masters of fp32 weights are refused, so there a label has none.
    """
    method = method_of(label)
    if label in LABELS:
        values = {key: value for key, value in LABELS[label].values().items() if key in method.Config.model_fields}
    else:
        values = method.Config().model_dump()
    values |= {key: value for key, value in SMALL.items() if key in values}
    if dtype == "fp32" and "master_weights" in values:
        values["master_weights"] = False
    return method, values | changes


def held(label: str) -> dict[str, Any]:
    """Return in which form a label holds the base weights, as settings of training."""
    values = LABELS[label].values() if label in LABELS else {}
    return {key: value for key, value in values.items() if key in ("quantization", "double_quantization")}


def train_settings(**changes: Any) -> TrainSettings:
    values: dict[str, Any] = {
        "data": "tiny",
        "prompt": "plain",
        "loss_on": "all",
        "packing": True,
        "sequence_length": 8,
        "batch_size": 2,
        "num_steps": 8,
        "learning_rate": 1e-2,
        "lr_scheduler": "constant",
        "dtype": "fp32",
    }
    return TrainSettings(**(values | changes))


def start(
    label: str,
    architecture: str = "llama",
    *,
    seed: int = 1,
    tied: bool = False,
    dtype: str = "fp32",
    scores: Sequence[float] = (0.5, 0.1, 0.2, 0.4),
    **changes: Any,
) -> Run:
    """Return a run of a label on a tiny model, as far as before step 0."""
    method_class, values = settings_of(label, dtype=dtype, **changes)
    train = train_settings(dtype=dtype, **held(label))
    config = method_class.Config.model_validate(values)
    check_run(method_class, config, train)
    base = tiny_model(architecture, tied=tied, dtype=torch.float32 if dtype == "fp32" else torch.bfloat16)
    if train.quantized is not None:
        quantize(base, train.quantized, dtype)
    context = FakeContext(seed, 8, train, decoder_of(base), scores)
    method = method_class(config)
    model = context.model = method.prepare(base, context)
    optimizer = method.build_optimizer(model, context) if method.trains else None
    return Run(method, base, model, optimizer, context)


def resumed(run: Run, label: str, architecture: str, step: int, **changes: Any) -> Run:
    """Return a fresh run brought to the state of ``run`` before ``step``, through JSON and copies of the tensors."""
    other = start(label, architecture, **changes)
    own = json.loads(json.dumps(run.method.state_dict()))
    saved = run.optimizer.state_dict()
    state = {
        index: {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in entry.items()}
        for index, entry in saved["state"].items()
    }
    packed = {key: json.loads(json.dumps(value)) for key, value in saved.items() if key != "state"} | {"state": state}
    with torch.no_grad():
        for p, trained in zip(other.model.parameters(), run.model.parameters(), strict=True):
            p.copy_(trained)
    other.method.load_state_dict(own)
    other.optimizer.load_state_dict(packed)
    other.method.on_resume(other.model, other.optimizer, step)
    return other


@dataclass(frozen=True)
class Tiny:
    """The functions above, for tests."""

    start: Callable[..., Run] = start
    resumed: Callable[..., Run] = resumed
    model: Callable[..., Any] = tiny_model
    decoder_of: Callable[..., Decoder] = decoder_of
    settings_of: Callable[..., tuple[type[Method], dict[str, Any]]] = settings_of
    train_settings: Callable[..., TrainSettings] = train_settings
    context: type[FakeContext] = FakeContext
    num_blocks: int = NUM_BLOCKS


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise over named configurations and plug-ins, each test over those whose methods declare what it needs.

    ``label``: all; ``named``: those of methods.toml; ``trained``: those that train; ``with_adamw``: of these the ones
    with our AdamW's settings; ``sampled``: those that draw blocks; ``whole``: of these the ones without adapters. A
    plug-in goes by its name, with the defaults of its settings, which it must have all.
    """
    shown = {LABELS[label].method for label in LABELS}
    labels = [*LABELS, *(name for name in METHODS.names() if name not in shown)]
    trained = [label for label in labels if method_of(label).trains]
    shares = {
        "label": labels,
        "named": list(LABELS),
        "trained": trained,
        "with_adamw": [label for label in trained if "moment_dtype" in method_of(label).Config.model_fields],
        "sampled": [label for label in labels if method_of(label).samples_blocks],
        "whole": [label for label in labels if method_of(label).samples_blocks and not method_of(label).has_adapter],
        "architecture": list(MODELS),
    }
    for name, values in shares.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values)
