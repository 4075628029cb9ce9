"""Any registered label inside the ``Trainer`` of transformers, and in what is built on it, as the SFTTrainer of TRL.

The method, its optimizer and its draws are those of the engine's own loop; the Trainer keeps what is the Trainer's:
rows, forward and backward pass, clipping, schedule, logs, checkpoints. A run of either ends in the same weights
(docs/in-your-own-trainer.md says to which bound)::

    prepared = prepare("owlore", model, args, calibration=samples)
    trainer = Trainer(
        model=prepared.model,
        args=args,
        train_dataset=rows,
        optimizers=(prepared.optimizer, None),
        callbacks=[prepared.callback],
    )
    trainer.train()
    prepared.finish().save_pretrained("trained")

What cannot be right in a Trainer is refused, here or before the first step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from harness.catalogue.labels import LabelEntry
from harness.catalogue.models import PARTS, USUAL_ARCHITECTURES, USUAL_PLACES
from harness.catalogue.resolved import packaged_catalogue
from harness.engine import block_scores as scoring
from harness.engine.activation_checkpointing import disable_checkpointing, enable_checkpointing
from harness.engine.context import EngineContext
from harness.engine.stepwise import refuse_other_optimizers
from harness.errors import HarnessError, Refused, near_miss
from harness.integrations.trainer_callback import MethodCallback
from harness.integrations.trainer_checks import check_arguments, train_settings
from harness.integrations.trainer_run import TrainerRun
from harness.method import METHODS, BlockScoreRequest, Decoder, Method, check_run
from harness.settings import CalibrationSettings, Dtype, TrainSettings, no_seed, with_implied
from harness.tensors.decoder import decoder_at
from harness.tensors.parts import PartsUnknown, find_parts
from harness.tensors.quantized import quantize
from harness.toml_files import validate

__all__ = ["Prepared", "calibration_samples", "prepare"]

QUANTIZATION = ("quantization", "double_quantization")
"""Settings of training that a label, or the caller, may give: the Trainer has none of them."""


@dataclass(frozen=True)
class Prepared:
    """What a Trainer is given."""

    model: nn.Module
    """To be trained: the model itself, or wrapped in an adapter."""
    optimizer: Any
    """The method's, over all that may ever be trained: for ``optimizers=(prepared.optimizer, None)``."""
    callback: MethodCallback
    """Draws blocks, updates in backward, saves and resumes; refuses what cannot be right."""
    run: TrainerRun
    """What was prepared; ``run.method.proof()`` shows that the method was on."""

    def adapter(self) -> nn.Module:
        """Return the module whose ``save_pretrained`` writes the adapter for the base weights as they were.

        Of PiSSA and OLoRA, which take a part of these, it is another than that of the Trainer's checkpoints.

        Raises:
            Refused: the label has no adapter.
        """
        found = self.run.method.adapter(self.model)
        if found is None:
            raise Refused(f"label '{self.run.label}' has no adapter: take what finish() returns")
        return found

    def finish(self) -> nn.Module:
        """Return the trained model in its own class, adapters merged; :meth:`adapter` is to be asked before.

        Nothing of the method's stays on it. Merging fp32 adapters into bf16 weights rounds part of the update away.
        """
        run = self.run
        self.callback.close()
        _uncover_forward(self.model)
        trained = run.method.finalize(self.model)
        disable_checkpointing(run.base, run.context.decoder, run.context.train)
        return run.method.export(trained)


def prepare(
    label: str,
    model: nn.Module,
    args: Any,
    *,
    num_steps: int | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    calibration: Sequence[torch.Tensor] | None = None,
    parts: Mapping[str, str] | None = None,
) -> Prepared:
    """Return a model under a label's method, with optimizer and callback for a Trainer.

    Args:
        label: Of ``harness list methods``, or the name of a registered method, plug-ins among them.
        model: A plain causal language model of transformers, every weight in fp32 or every weight in bf16; it is moved
            to the device of ``args`` and changed in place.
        args: The ``TrainingArguments`` that the Trainer will have; learning rate, schedule, clipping and accumulation
            are theirs. The learning rate that a label was published with is not taken.
        num_steps: Optimizer steps of the whole training; None: ``args.max_steps``.
        seed: Of the method's draws, first weights and dropout; None: ``args.seed``.
        settings: Of the method, over the label's.
        calibration: Sequences for block scores, each (1, tokens) int64, as :func:`calibration_samples` gives them.
        parts: Where blocks, embedding, final_norm and head are in the model, where that cannot be told.

    Raises:
        Refused: the label cannot be right in a Trainer, or not under these arguments.
        HarnessError: there is no such label or setting, or the settings are not valid.
    """
    if seed is not None and (wrong := no_seed(seed)) is not None:
        raise HarnessError(f"prepare: {wrong}")
    if settings is not None and not isinstance(settings, Mapping):
        raise HarnessError(f"prepare: settings takes names with their values, not {settings!r}")
    method_class, values, training = _settings_of(label, settings or {})
    if not method_class.trains:
        raise Refused(f"label '{label}' trains nothing, so there is no Trainer to give it to")
    config = validate(method_class.Config, values, f"label '{label}':")
    check_arguments(args, config)
    positions = getattr(model.config, "max_position_embeddings", None)
    train = train_settings(args, num_steps, dtype=_dtype_of(model), positions=positions, **training)
    check_run(method_class, config, train)
    method = method_class(config)

    decoder = _decoder_of(model, parts)
    model.to(args.device)
    if train.quantized is not None:
        if method.block_scores_needed() is not None:
            raise Refused("block scores are computed from weights, which are packed here: set quantization = 'none'")
        quantize(model, train.quantized, train.dtype)
    context = EngineContext(
        seed=args.seed if seed is None else seed,
        num_steps=train.num_steps or 0,
        train=train,
        decoder=decoder,
        block_scores=_scores(label, method, model, decoder, () if calibration is None else calibration),
    )
    enable_checkpointing(model, decoder, train)
    trained = method.prepare(model, context)
    optimizer = method.build_optimizer(trained, context)
    refuse_other_optimizers(method, optimizer)
    run = TrainerRun(label, method, model, trained, optimizer, context)
    return Prepared(trained, optimizer, MethodCallback(run), run)


def calibration_samples(
    texts: Sequence[str], tokenizer: Any, *, num_samples: int, sequence_length: int
) -> list[torch.Tensor]:
    """Return sequences for block scores, (1, sequence_length) int64 each, cut from texts in their order.

    Raises:
        HarnessError: the texts do not hold enough tokens.
    """
    wanted = {"data": "calibration", "num_samples": num_samples, "sequence_length": sequence_length}
    return scoring.calibration_samples(texts, tokenizer, validate(CalibrationSettings, wanted, "calibration_samples:"))


def _uncover_forward(model: nn.Module) -> None:
    """Take back what accelerate does to a model under autocast: it covers its forward."""
    covered = vars(model).pop("_original_forward", None)
    if covered is None:
        return
    del model.forward
    if getattr(covered, "__func__", None) is not type(model).forward:  # covered before by somebody else
        model.forward = covered


def _settings_of(label: str, given: Mapping[str, Any]) -> tuple[type[Method], dict[str, Any], dict[str, Any]]:
    """Return a label's method, the method's settings, and those of training that a Trainer does not have.

    Raises:
        HarnessError: there is no such label or setting.
    """
    labels = packaged_catalogue().labels
    if not isinstance(label, str):
        raise HarnessError(f"prepare: a label is a name, not {label!r}")
    if label not in labels and label not in (*METHODS.names(), *METHODS.broken()):
        raise HarnessError(f"there is no label '{label}'{near_miss(label, [*labels, *METHODS.names()])}")
    entry = labels.get(label) or LabelEntry(method=label)
    method = METHODS.get(entry.method)
    keys = set(method.Config.model_fields)
    implied = {**TrainSettings.implied, **method.Config.implied}
    for key in given:
        if key not in keys and key in TrainSettings.model_fields and key not in QUANTIZATION:
            raise HarnessError(f"'{key}' is no setting of a method in a Trainer: give it in its TrainingArguments")
        if key not in keys and key not in QUANTIZATION:
            known = near_miss(key, [*keys, *QUANTIZATION])
            raise HarnessError(f"label '{label}' (method {entry.method}) has no setting '{key}'{known}")
    values = with_implied(entry.values(), implied) | with_implied(given, implied)
    training = {key: value for key, value in values.items() if key in QUANTIZATION}
    return method, {key: value for key, value in values.items() if key in keys}, training


def _dtype_of(model: Any) -> Dtype:
    """Return the one dtype of a model's weights.

    Raises:
        Refused: they have several or another, or the model is wrapped or quantized already.
    """
    if hasattr(model, "peft_config"):
        raise Refused("the model has an adapter already: give the plain model, a label brings its own adapter")
    if getattr(model, "is_quantized", False) or getattr(model, "is_loaded_in_4bit", False):
        raise Refused(
            "the model is quantized already: load it in bf16 and give quantization = 'nf4' in settings, or a label "
            "that has it"
        )
    found = {parameter.dtype for parameter in model.parameters()}
    names: dict[torch.dtype, Dtype] = {torch.float32: "fp32", torch.bfloat16: "bf16"}
    if len(found) > 1 or not found <= set(names):
        there = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found)) or "none"
        raise Refused(f"the model's weights are {there}, and nothing is cast silently: load it in float32 or bfloat16")
    return names[found.pop()]


def _decoder_of(model: Any, given: Mapping[str, str] | None) -> Decoder:
    """Return where the parts of a model are.

    Raises:
        HarnessError: that cannot be told; the sentence names the argument to give.
    """
    name = type(model).__name__
    said = dict(given or {})
    if unknown := [part for part in said if part not in PARTS]:
        raise HarnessError(f"parts: there is no part '{unknown[0]}' of a decoder{near_miss(unknown[0], PARTS)}")
    if name in USUAL_ARCHITECTURES:
        return decoder_at(model, {**USUAL_PLACES, **said}, name)
    try:
        with torch.device("meta"):
            blank = type(model)(copy.deepcopy(model.config))
        places = find_parts(blank.eval(), said)
    except PartsUnknown as error:
        raise PartsUnknown(f"{name}: {error}; the entry of this model is the argument parts of prepare") from error
    return decoder_at(model, places, name)


def _scores(
    label: str, method: Method, model: nn.Module, decoder: Decoder, samples: Sequence[torch.Tensor]
) -> dict[BlockScoreRequest, list[float]]:
    """Return the block scores that a method asks for.

    Raises:
        Refused: they are of calibration text, and none is given.
    """
    request = method.block_scores_needed()
    if request is None:
        return {}
    asked = "calibration = calibration_samples(texts, tokenizer, num_samples=..., sequence_length=...)"
    if request.kind == "outlier" and not len(samples):
        raise Refused(f"label '{label}' draws blocks by their outliers on calibration text: give {asked}")
    for sample in samples:
        if not (isinstance(sample, torch.Tensor) and sample.dtype == torch.int64 and sample.shape[:-1] == (1,)):
            raise Refused(f"calibration takes tensors of token ids, each (1, tokens) int64: give {asked}")
    return {request: scoring.block_scores(request, model, decoder, samples)}
