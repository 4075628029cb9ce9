"""LoRA, with rsLoRA, DoRA, LoRA-FA, LoRA+, PiSSA and OLoRA: low-rank adapters beside frozen weights, through peft.

Papers: LoRA (arXiv 2106.09685), rsLoRA (arXiv 2312.03732), DoRA (arXiv 2402.09353), LoRA-FA (arXiv 2308.03303); LoRA+:
``_lora_plus.py``; PiSSA and OLoRA: ``_lora_start.py``. On quantized base weights it is QLoRA (arXiv 2305.14314):
``harness.tensors.quantized``.
Reference: the peft 0.21.2 distribution: LoraConfig and get_peft_model, used as they are; for LoRA-FA
peft/optimizers/lorafa.py.

Deliberate differences from the reference:
- settings have peft's names, but ``rank`` is peft's ``r``, as for every method here;
- adapters have the dtype that ``adapter_dtype`` says, in both directions;
- initial values draw from a named stream; dropout draws from the global generators, which the loop seeds at each step;
- LoRA-FA's correction of the gradient of B is computed in fp32, where peft multiplies in bf16, and the matrix it needs
  once, since A never changes, where peft inverts at every step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, JsonValue, PositiveInt, model_validator

from harness.declaration import Declaration
from harness.errors import Refused
from harness.method import METHODS, MethodConfig, RunContext, StepOptimizer
from harness.methods._lora_variants import LoraVariants, excluded
from harness.methods._settings import Dtype
from harness.methods._trained import TrainedMethod
from harness.settings import TrainSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn
    from torch.nn import Parameter

    from harness.methods._declared import Trained
    from harness.methods._lora_start import Start
    from harness.methods._optimizers import AdamW, Group


class LoraConfig(LoraVariants):
    """Settings of LoRA and its variants."""

    rank: PositiveInt
    """Of every adapter."""
    lora_alpha: PositiveInt
    """An adapter's output is scaled by it, divided by the rank."""
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)]
    """Of an adapter's input."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)]
    """Ends of the names of the linear layers that get an adapter."""
    use_rslora: bool
    """Divide by the root of the rank in place of the rank."""
    use_dora: bool
    """Train directions by the adapter and magnitudes apart."""
    lora_fa: bool
    """Freeze A and correct the gradient of B for it."""
    adapter_dtype: Dtype
    """Of the adapters' weights."""

    @model_validator(mode="after")
    def _one_variant(self) -> LoraConfig:
        if (reason := excluded(self)) is not None:
            raise ValueError(reason)
        return self


@METHODS.register("lora")
class Lora(TrainedMethod):
    """Low-rank adapters."""

    Config = LoraConfig
    config: LoraConfig
    has_adapter = True
    summary = "low-rank adapters beside frozen weights (peft)"
    _wrapped: nn.Module | None = None
    _start: Start | None = None
    """Of adapters that began as a part of the base weights."""
    _rates: dict[str, float] | None = None
    """By kind of matrix, where they differ."""

    @classmethod
    def check(cls, config: MethodConfig, train: TrainSettings | None) -> None:
        """Refuse what every method of ours does, and on quantized weights what reads or changes them."""
        super().check(config, train)
        assert isinstance(config, LoraConfig)
        if train is None or train.quantized is None:
            return
        if config.begins_in_weights:
            raise Refused(
                f"init_lora_weights = '{config.init_lora_weights}' takes a part out of the base weights, which is not "
                "at hand of quantized ones: set init_lora_weights = 'kaiming' or quantization = 'none'"
            )
        if config.use_dora:
            raise Refused(
                "use_dora divides by the lengths of a weight's rows, which are not at hand of quantized weights: set "
                "use_dora = false or quantization = 'none'"
            )

    def prepare(self, model: nn.Module, context: RunContext) -> nn.Module:
        """Wrap the model; only adapters require gradients, of LoRA-FA only the B matrices.

        Raises:
            Refused: one of ``target_modules`` is the end of no layer's name or of that of a module which takes no
                adapter, LoRA-FA is to adapt an embedding, DoRA a weight with a row of zeros, or PiSSA or OLoRA a weight
                that can give nothing away.
        """
        import peft
        from torch import nn

        from harness.methods._targets import refuse_rows_of_zeros, target_layers

        config = self.config
        adapter = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=list(config.target_modules),
            use_rslora=config.use_rslora,
            use_dora=config.use_dora,
            init_lora_weights="gaussian" if config.init_lora_weights == "gaussian" else True,
            bias="none",
            task_type="CAUSAL_LM",
        )
        targets = target_layers(model, config.target_modules)
        embeddings = [name for name, module in targets.items() if isinstance(module, nn.Embedding)]
        if config.lora_fa and embeddings:
            raise Refused(
                f"lora_fa corrects gradients by an adapter's input, and {embeddings[0]}, an embedding, has none"
            )
        ends = (context.decoder.embedding, context.decoder.head)
        if config.use_dora and context.num_ranks > 1 and (reached := [n for n, m in targets.items() if m in ends]):
            raise Refused(
                f"DoRA takes the norm of {reached[0]} outside of the model's own pass, in which alone its parts are "
                f"gathered from {context.num_ranks} devices: leave it out of target_modules, or run on one device"
            )
        if config.begins_in_weights:
            from harness.methods._lora_start import Start, begin_in_weights, output_compared, refuse_unsuitable

            refuse_unsuitable(model, targets, config.init_lora_weights)
            facts: dict[str, JsonValue] = {}
            with output_compared(model, context, facts):
                self._wrapped = self._wrap(model, adapter, context)
                start = begin_in_weights(self._wrapped, config, context)
            self._start = Start(start.initial, {**start.facts, **facts})
            return self._wrapped
        self._wrapped = self._wrap(model, adapter, context)
        refuse_rows_of_zeros(self._wrapped)
        return self._wrapped

    def _wrap(self, model: nn.Module, adapter: Any, context: RunContext) -> nn.Module:
        """Return the model with peft's adapters, in their dtype, drawn from the run's stream."""
        import peft

        from harness.tensors.dtypes import DTYPES

        try:
            with context.seed_globally("lora_init"):
                wrapped: nn.Module = peft.get_peft_model(model, adapter, autocast_adapter_dtype=False)  # type: ignore[arg-type]
        except ValueError as error:  # layers of a kind of model whose forward pass takes their weights past them
            reason = " ".join(str(error).split())
            raise Refused(f"peft puts no adapter beside these target_modules: {reason}") from error
        config, dtype = self.config, DTYPES[self.config.adapter_dtype]
        for name, p in wrapped.named_parameters():
            if p.requires_grad:
                p.data = p.data.to(dtype)
                p.requires_grad_(not (config.lora_fa and ".lora_A." in name))
        return wrapped

    def trained_parameters(self, model: nn.Module, context: RunContext) -> list[tuple[str, torch.nn.Parameter]]:
        """Return the adapters' trained parameters."""
        return [(_base_name(name), p) for name, p in model.named_parameters() if p.requires_grad]

    def declare(self, model: nn.Module, context: RunContext) -> Declaration | None:
        """Return what the settings and the base model's shapes say of the adapters, peft not asked."""
        from harness.methods._declared import declared_parts

        adapters, trained, full_rank = self._wanted(model, context)
        blocks, others = declared_parts(
            trained, len(context.decoder.blocks), self.config, None, num_ranks=context.num_ranks
        )
        return Declaration(
            blocks=blocks,
            others=others,
            adapters=tuple(adapters),
            full_rank=tuple(full_rank),
            damping=self.config.damping,
            adapters_begin_at_zero=not self.config.begins_in_weights,
        )

    def _wanted(self, model: nn.Module, context: RunContext) -> tuple[list[str], list[Trained], list[str]]:
        """Return the modules that must get an adapter, what is trained, and the modules that the rank does not reduce.

        A target that no module has is among the first.

        Beside a weight (out, in) stand A (rank, in) and B (out, rank), with DoRA a magnitude for each output. An
        embedding's outputs are its columns, and so are those of the transposed layers of GPT-2.
        """
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        from harness.methods._declared import Trained, part_by_id
        from harness.tensors.linear import shape_of

        config, parts = self.config, part_by_id(context.decoder)
        matrices: dict[str, tuple[str | int, tuple[int, ...]]] = {}
        by_columns: set[str] = set()
        for path, module in model.named_modules():
            weight: Any = getattr(module, "weight", None)
            if id(weight) in parts and weight.dim() == 2:
                name = _base_name(path.removesuffix(".base_layer"))
                matrices[name] = parts[id(weight)], shape_of(module)
                by_columns |= {name} if isinstance(module, (nn.Embedding, Conv1D)) else set()
        dtype = "float32" if config.adapter_dtype == "fp32" else "bfloat16"
        wanted: dict[str, None] = {}
        trained: list[Trained] = []
        full_rank: list[str] = []
        for target in config.target_modules:
            found = [name for name in matrices if f".{name}".endswith(f".{target}")]
            wanted |= dict.fromkeys(found or [target])
        for name in wanted:
            if name not in matrices:
                continue
            part, (rows, columns) = matrices[name]
            outputs, inputs = (columns, rows) if name in by_columns else (rows, columns)
            full_rank += [name] if min(rows, columns) <= config.rank else []
            # LoRA-FA holds one fp32 correction (rank, rank) for each B.
            B = Trained(name, part, (outputs, config.rank), dtype, extra_bytes=4 * config.rank**2 * config.lora_fa)
            A = Trained(name, part, (config.rank, inputs), dtype)
            magnitude = Trained(name, part, (outputs,), dtype)
            trained += [B, *([] if config.lora_fa else [A]), *([magnitude] if config.use_dora else [])]
        return list(wanted), trained, full_rank

    def proof(self) -> dict[str, JsonValue]:
        """Return the modules with an adapter, how many are called what, where it moved, and how it began.

        B begins at zero, beside an embedding A; of an adapter that began as a part of its weight the start is known.
        """
        if self._wrapped is None:
            return {}
        from harness.methods._targets import kinds
        from harness.tensors.sharded import whole

        found: list[str] = []
        moved: list[str] = []
        for path, module in self._wrapped.named_modules():
            matrices: Any = getattr(module, "lora_B", None) or getattr(module, "lora_embedding_A", None)
            if matrices:
                name = _base_name(path)
                found.append(name)
                left = any(bool(whole(p.detach()).any()) for p in matrices.parameters())
                moved += [name] if (left if self._start is None else self._start.moved(path, module)) else []
        began: dict[str, JsonValue] = {} if self._start is None else {"start": {**self._start.facts}}
        rates: dict[str, JsonValue] = {} if self._rates is None else {"learning_rates": {**self._rates}}
        return {"adapters": {"found": [*found], "moved": [*moved], "wrapped": {**kinds(found)}, **began}, **rates}

    def groups(self, named: Sequence[tuple[str, Parameter]], context: RunContext) -> list[Group]:
        """Return one group of all, with LoRA+ one for each kind of matrix: A, B, and those beside embeddings.

        Raises:
            Refused: an embedding has an adapter and no learning rate is given for it.
        """
        if self.config.loraplus_lr_ratio is None:
            return super().groups(named, context)
        from harness.methods import _lora_plus

        found = _lora_plus.groups(named, self.config, context.train.learning_rate)
        self._rates = {kind: group.learning_rate for kind, group in found.items() if group.learning_rate is not None}
        return list(found.values())

    def optimizer_class(self) -> type[AdamW]:
        """Return AdamW, for LoRA-FA the one that corrects gradients."""
        if not self.config.lora_fa:
            return super().optimizer_class()
        from harness.methods._lora_fa import LoraFaAdamW

        return LoraFaAdamW

    def build_optimizer(self, model: nn.Module, context: RunContext) -> StepOptimizer:
        """Return the optimizer over the adapters; LoRA-FA's is told which A belongs to which B."""
        optimizer = super().build_optimizer(model, context)
        if self.config.lora_fa:
            from harness.methods._lora_fa import LoraFaAdamW

            assert isinstance(optimizer, LoraFaAdamW)
            optimizer.pair_adapters(model)
        return optimizer

    def finalize(self, model: nn.Module) -> nn.Module:
        """Return the wrapped model: evaluated unmerged, since merging into bf16 rounds part of it away."""
        return model

    def export(self, model: nn.Module) -> nn.Module:
        """Merge the adapters and return the base model's own class; a head that was its embedding no longer is it.

        The base weights that PiSSA and OLoRA took a part of are merged with the adapter that holds it. Of quantized
        weights adapters are merged into what these stand for, in the precision of the other weights.
        """
        from harness.methods._quantized import on_plain_weights
        from harness.methods._targets import untie_targets

        merged: Any = on_plain_weights(model)
        untie_targets(merged)
        exported: nn.Module = merged.merge_and_unload()
        return exported

    def adapter(self, model: nn.Module) -> nn.Module | None:
        """Return peft's model, of PiSSA and OLoRA the adapter of twice the rank on the base weights as they were."""
        if not self.config.begins_in_weights:
            return model
        from harness.methods._lora_start import OnUnchangedWeights

        assert self._start is not None, "the adapter of a model that this method did not prepare"
        return OnUnchangedWeights(model, self._start)


def _base_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".default.", ".")
