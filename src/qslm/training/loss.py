"""Next-token loss without the table of all logits: the head and its gradient, a few rows at a time."""

import torch
from torch import Tensor

ROWS = 512  # tokens whose logits exist at once


class NextTokenLoss(torch.autograd.Function):
    """The mean cross entropy of `x @ weight.T` against targets; both gradients are computed in the forward pass.

    x (tokens, width), weight (vocabulary, width), targets (tokens,). Products run in bfloat16, sums in float32.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        """The mean loss in nats per token."""
        low_x, low_weight = x.to(torch.bfloat16), weight.to(torch.bfloat16)
        gradient_x = torch.empty_like(low_x)
        gradient_weight = torch.zeros_like(weight)
        total = x.new_zeros(())
        for start in range(0, len(x), ROWS):
            rows, labels = low_x[start : start + ROWS], targets[start : start + ROWS, None]
            logits = (rows @ low_weight.T).float()
            normalizer = torch.logsumexp(logits, 1, keepdim=True)
            total += (normalizer - logits.gather(1, labels)).sum()
            error = logits.sub_(normalizer).exp_()
            error.scatter_add_(1, labels, torch.full_like(labels, -1, dtype=error.dtype))
            low_error = (error / len(x)).to(torch.bfloat16)
            gradient_x[start : start + ROWS] = low_error @ low_weight
            gradient_weight += low_error.T @ rows
        ctx.save_for_backward(gradient_x, gradient_weight)
        return total / len(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[no-untyped-def]
        """The gradients of x and weight."""
        gradient_x, gradient_weight = ctx.saved_tensors
        return gradient_x.float() * gradient, gradient_weight * gradient, None


def next_token_loss(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The mean cross entropy in nats per token of the head `weight` (vocabulary, width) on x (tokens, width)."""
    loss: Tensor = NextTokenLoss.apply(x, weight, targets)
    return loss
