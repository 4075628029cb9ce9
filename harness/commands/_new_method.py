"""What ``harness new method`` writes: a distribution of a module around an optimizer of ``torch.optim``, and a test."""

from __future__ import annotations

PROJECT = """# Install it with: python -m pip install -e .   (no network: add --no-build-isolation --no-deps)
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "NAME"
version = "0.1.0"
description = "The fine-tuning method NAME, for the harness"
dependencies = ["finetune-harness"]

[project.entry-points."finetune_harness.methods"]
NAME = "MODULE:METHOD"

[tool.setuptools]
py-modules = ["MODULE"]
"""
MODULE = '''"""The fine-tuning method NAME: what it is, and its paper."""

from harness.plugin import MethodConfig, OptimizerMethod


class CONFIG(MethodConfig):
    """Settings of NAME. A suite sets them in [settings.NAME]; update_in_backward is there already."""

    weight_decay: float = 0.0
    """Applied to every trained parameter."""
    train_embedding: bool = True
    """False: the embedding stays as it is."""


class METHOD(OptimizerMethod):
    """Every parameter is trained, with an optimizer of torch.optim."""

    Config = CONFIG
    config: CONFIG
    summary = "NAME: a line for harness list methods"

    def trains_parameter(self, name, parameter):
        """Return whether a parameter is trained; its name is the base model's."""
        return self.config.train_embedding or "embed_tokens" not in name

    def optimizer(self, named, learning_rate, context):
        """Return the optimizer over the trained parameters; it may be a class of your own (see below)."""
        import torch  # inside: listing and checking methods works without torch

        parameters = [parameter for _, parameter in named]
        return torch.optim.RMSprop(parameters, lr=learning_rate, weight_decay=self.config.weight_decay)


# An optimizer of your own is a torch.optim.Optimizer whose step updates each p of self.param_groups that has a p.grad
# and keeps its state, tensors and numbers, in self.state[p]. Several that divide the parameters: return a list.
# A method that samples layers, wraps the model or looks at gradients overrides more hooks: docs/adding-a-method.md.
'''
TEST = '''"""The contract of a method, held by NAME on a tiny model: pytest, after python -m pip install -e ."""

import pytest

from harness.checking import CHECKS, check_method


@pytest.mark.parametrize("check", CHECKS)
def test_it_holds_the_contract(check):
    (result,) = check_method("NAME", only=[check])
    assert result.ok, result.reason
'''
