"""LoRA, and with it rsLoRA, DoRA and LoRA-FA: low-rank adapters beside frozen weights, through peft.

Papers: LoRA (arXiv 2106.09685), rsLoRA (arXiv 2312.03732), DoRA (arXiv 2402.09353), LoRA-FA (arXiv 2308.03303).
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

from pydantic import Field, PositiveInt, model_validator

from harness.errors import Refused
from harness.method import METHODS, RunContext, StepOptimizer
from harness.methods._settings import AdamWSettings, Dtype
from harness.methods._trained import TrainedMethod

if TYPE_CHECKING:
    import torch
    from torch import nn

    from harness.methods._optimizers import AdamW


class LoraConfig(AdamWSettings):
    """Settings of LoRA and its variants."""

    rank: PositiveInt
    lora_alpha: PositiveInt
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)]
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)]
    """Ends of the names of the linear layers that get an adapter."""
    use_rslora: bool
    use_dora: bool
    lora_fa: bool
    """Freeze A and correct the gradient of B for it."""
    adapter_dtype: Dtype

    @model_validator(mode="after")
    def _one_variant(self) -> LoraConfig:
        if self.lora_fa and self.use_dora:
            raise ValueError("lora_fa and use_dora exclude each other: the gradient correction is not defined for DoRA")
        return self


@METHODS.register("lora")
class Lora(TrainedMethod):
    """Low-rank adapters."""

    Config = LoraConfig
    config: LoraConfig
    has_adapter = True
    summary = "low-rank adapters beside frozen weights (peft)"

    def prepare(self, model: nn.Module, context: RunContext) -> nn.Module:
        """Wrap the model; only adapters require gradients, of LoRA-FA only the B matrices.

        Raises:
            Refused: no layer's name ends in one of ``target_modules``.
        """
        import peft
        import torch

        config = self.config
        adapter = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=list(config.target_modules),
            use_rslora=config.use_rslora,
            use_dora=config.use_dora,
            bias="none",
            task_type="CAUSAL_LM",
        )
        ends = tuple(f".{name}" for name in config.target_modules)
        if not any(f".{name}".endswith(ends) for name, _ in model.named_modules()):
            raise Refused(f"the model has no layer called {', '.join(config.target_modules)} for target_modules")
        with context.seed_globally("lora_init"):
            wrapped: nn.Module = peft.get_peft_model(model, adapter, autocast_adapter_dtype=False)
        dtype = torch.float32 if config.adapter_dtype == "fp32" else torch.bfloat16
        for name, p in wrapped.named_parameters():
            if p.requires_grad:
                p.data = p.data.to(dtype)
                p.requires_grad_(not (config.lora_fa and ".lora_A." in name))
        return wrapped

    def trained_parameters(self, model: nn.Module, context: RunContext) -> list[tuple[str, torch.nn.Parameter]]:
        """Return the adapters' trained parameters."""
        return [(_base_name(name), p) for name, p in model.named_parameters() if p.requires_grad]

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
        """Merge the adapters and return the base model's own class."""
        merged: Any = model
        exported: nn.Module = merged.merge_and_unload()
        return exported

    def adapter(self, model: nn.Module) -> nn.Module | None:
        """Return peft's model."""
        return model


def _base_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".default.", ".")
