"""The loss: cross-entropy summed over the trained tokens, plain or over slices of the vocabulary.

The plain way holds the logits of all tokens and fp32 copies of them, for LLaMA-3's vocabulary at 16x512 tokens 4.2 GB
each. The sliced way (``loss_chunk_columns``) never holds more than one slice: forward, each slice of the head's rows
gives its logits, which enter a running sum of exponentials; backward, the slice is computed again, turned into its
gradient and used up. What is rounded is what the plain way rounds: logits in the dtype of the weights, the loss in
fp32, the gradient of the head in one product over all tokens. The gradient of the hidden states is summed over slices
in fp32 and rounded once. Positions without a label enter no product at all. The held-out loss goes the same way, which
took 0.5 to 1.2 times as long as the plain one on a CPU (512 tokens, 49,152 words) and never holds the logits either.

The plain way of a CPU (:class:`ShiftedCrossEntropy`) gives the plain way's bits from half the tensors as large as the
logits, as it waits for memory above all there; elsewhere, and of other than fp32 logits, it is the library's own calls.

No paper is followed; Cut Cross-Entropy (arXiv 2411.09009) has the same idea in one fused kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from harness.data.batches import IGNORED, MicroBatch
from harness.errors import Refused
from harness.method import RunContext
from harness.tensors.placement import computed_on_cpu
from harness.tensors.sharded import class_of, is_sharded

SummedLoss = Callable[[nn.Module, MicroBatch], torch.Tensor]


def loss_function(model: nn.Module, context: RunContext) -> SummedLoss:
    """Return what gives the summed loss of a micro-batch in this run.

    Raises:
        Refused: ``loss_chunk_columns`` is set and the head is not a plain linear layer.
    """
    columns = context.train.loss_chunk_columns
    if columns is None:
        return summed_loss
    head = context.decoder.head
    own = model.get_output_embeddings()  # type: ignore[operator]
    if class_of(head) is not nn.Linear or head.bias is not None or own is not head:
        raise Refused(
            "loss_chunk_columns needs a head that is one linear layer without bias and without an adapter: leave it out"
        )
    return partial(sliced_summed_loss, head=head, columns=columns)


def summed_loss(model: nn.Module, batch: MicroBatch) -> torch.Tensor:
    """Return the cross-entropy summed over the trained tokens of a micro-batch: (), fp32, nats."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    if computed_on_cpu(logits) and logits.dtype == torch.float32 and logits.is_contiguous() and not is_sharded(logits):
        loss: torch.Tensor = ShiftedCrossEntropy.apply(logits, batch.labels)  # type: ignore[no-untyped-call]
        return loss
    predictions = logits[:, :-1].flatten(0, 1).float()  # (rows * (length - 1), vocabulary)
    targets = batch.labels[:, 1:].flatten()
    return functional.cross_entropy(predictions, targets, ignore_index=IGNORED, reduction="sum")


def sliced_summed_loss(model: nn.Module, batch: MicroBatch, *, head: nn.Linear, columns: int) -> torch.Tensor:
    """Return what :func:`summed_loss` returns, from slices of ``columns`` of the vocabulary.

    A head whose weight is shared out over processes has all of it only within its own forward pass, and again when
    gradients pass it: there the loss is taken.

    Raises:
        Refused: the model changes what its head returns, by a scale or a cap.
    """

    def loss_of(hidden: torch.Tensor) -> torch.Tensor:
        states, targets = _scored(hidden, batch)
        loss: torch.Tensor = SlicedCrossEntropy.apply(states, head.weight, targets, columns)  # type: ignore[no-untyped-call]
        return loss

    inside = is_sharded(head.weight)
    with passed_through(head, loss_of if inside else None) as passed:
        output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    if output is not passed[0]:
        raise Refused("the model changes the logits after its head, which loss_chunk_columns leaves out: leave it out")
    if inside:
        return passed.pop()
    del output
    states, targets = _scored(passed.pop(), batch)
    loss: torch.Tensor = SlicedCrossEntropy.apply(states, head.weight, targets, columns)  # type: ignore[no-untyped-call]
    return loss


def _scored(hidden: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the hidden states (tokens, width) that a token with a loss follows, of (rows, length, width), and it."""
    if batch.trained_positions is None:
        assert batch.num_trained_tokens == batch.labels[:, 1:].numel(), "trained_positions are missing"
        return hidden[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten()
    states = hidden.flatten(0, 1).index_select(0, batch.trained_positions)
    return states, batch.labels.flatten().index_select(0, batch.trained_positions + 1)


@contextmanager
def passed_through(
    head: nn.Module, function: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> Iterator[list[torch.Tensor]]:
    """Let ``head`` return its input, or what a function makes of it, inside the ``with``; yield the list of it."""
    passed: list[torch.Tensor] = []

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        passed.append(hidden if function is None else function(hidden))
        return passed[-1]

    head.forward = forward  # type: ignore[method-assign]
    try:
        yield passed
    finally:
        del head.forward


class ShiftedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of the logits of each token but a row's last against the label that follows, summed.

    Formula: S = log softmax(z), loss = -Σ_tokens S_target; dz = exp(S) - onehot, 0 at a row's last token. The kernels
    are those that ``functional.cross_entropy`` of ``logits[:, :-1]`` calls, on the rows of the batch one by one, which
    need no copy; the gradient is made where it is handed on, in the place of three others and a copy.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss: (), fp32.

        Args:
            ctx: Autograd's.
            logits: z, (rows, length, vocabulary), fp32, contiguous.
            labels: (rows, length), int64, each below vocabulary or ``IGNORED``.
        """
        rows, length, vocabulary = logits.shape
        S = logits.new_empty(rows, length - 1, vocabulary)
        for z, s in zip(logits, S, strict=True):
            torch.ops.aten._log_softmax.out(z[:-1], -1, False, out=s)
        targets = labels[:, 1:].contiguous()
        ctx.save_for_backward(S, targets)
        return functional.nll_loss(S.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        """Return the gradient of ``logits``.

        Args:
            ctx: Autograd's.
            grad: (), fp32.
        """
        S, targets = ctx.saved_tensors
        dz = S.new_zeros(len(S), S.shape[1] + 1, S.shape[2])
        trained = targets != IGNORED
        index, sources = torch.where(trained, targets, 0), torch.where(trained, -grad, 0.0)
        dz[:, :-1].scatter_(2, index[..., None], sources[..., None])
        for d, s in zip(dz, S, strict=True):
            torch.ops.aten._log_softmax_backward_data.out(d[:-1], s, -1, torch.float32, out=d[:-1])
        return dz, None


class SlicedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of ``states @ weight.T`` against ``targets``, summed, one slice of the vocabulary at a time.

    Formula: z = h Wᵀ, loss = Σ_tokens log Σ_v exp z_v - z_target; dz = softmax(z) - onehot, dW = dzᵀ h, dh = dz W.
    """

    @staticmethod
    def forward(ctx: Any, h: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, columns: int) -> torch.Tensor:
        """Return the loss: (), fp32, or fp64 of fp64.

        Args:
            ctx: Autograd's.
            h: (tokens, width), any float dtype.
            weight: W, (vocabulary, width), the same dtype.
            targets: (tokens,) int64, each below vocabulary.
            columns: Of one slice.
        """
        W, wide = weight, torch.promote_types(h.dtype, torch.float32)
        largest = torch.full((len(h),), float("-inf"), dtype=wide, device=h.device)
        total = torch.zeros((len(h),), dtype=wide, device=h.device)  # of exp(z - largest)
        chosen = torch.zeros((len(h),), dtype=wide, device=h.device)
        for start in range(0, len(W), columns):
            z = (h @ W[start : start + columns].t()).to(wide)  # (tokens, columns)
            index, inside = _within(targets, start, z.shape[1])
            chosen += torch.where(inside, z.gather(1, index[:, None])[:, 0], 0.0)
            before, largest = largest, torch.maximum(largest, z.amax(1))
            total = total * (before - largest).exp_() + z.sub_(largest[:, None]).exp_().sum(1)
            del z
        ctx.save_for_backward(h, W, targets, largest, total)
        ctx.columns = columns
        return (largest - chosen + total.log()).sum()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        """Return the gradients of ``h`` and ``W``, in their dtypes.

        Args:
            ctx: Autograd's.
            grad: (), fp32 or fp64.
        """
        h, W, targets, largest, total = ctx.saved_tensors
        wants_h, wants_W = ctx.needs_input_grad[:2]
        dh = torch.zeros_like(h, dtype=total.dtype) if wants_h else None
        dW = torch.empty_like(W) if wants_W else None
        for start in range(0, len(W), ctx.columns):
            rows = slice(start, start + ctx.columns)
            z = (h @ W[rows].t()).to(total.dtype)
            index, inside = _within(targets, start, z.shape[1])
            p = z.sub_(largest[:, None]).exp_().mul_((grad / total)[:, None])
            p.scatter_add_(1, index[:, None], torch.where(inside, -grad, 0.0)[:, None])
            dz = p.to(h.dtype)
            del z, p
            if dW is not None:
                torch.mm(dz.t(), h, out=dW[rows])
            if dh is not None:
                dh += dz @ W[rows]
            del dz
        return None if dh is None else dh.to(h.dtype), dW, None, None


def _within(targets: torch.Tensor, start: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the targets' columns inside a slice, 0 where they are outside, and whether they are inside."""
    index = targets - start
    inside = (index >= 0) & (index < columns)
    return torch.where(inside, index, 0), inside
