"""Gradients renormalised tensor by tensor before a step of SGD (004 Appendix D: SGD-L2 and SGD-Linf).

    g ← g / ‖g‖,   ‖·‖ the Euclidean norm or the largest absolute value

of each parameter's gradient over a whole batch, so that the step of every layer has the length of the learning
rate, whatever the loss and the depth. 004 speaks of "the gradients in a given layer of weights"; biases are
treated as tensors of their own here, since beside weights whose gradients are fixed to 1 theirs would else have
another scale. A gradient of zeros stays zero, one that is not finite does not become so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

Norm = Literal["l2", "linf"]
_ORDERS = {"l2": 2.0, "linf": float("inf")}


def normalise_gradients(parameters: nn.Module | Iterable[Tensor], norm: str) -> None:
    """Divide each parameter's ``grad`` by its own norm, ``"l2"`` or ``"linf"``, in place.

    parameters: a module, or parameters; those without a gradient are passed over. Norms of half precision are
    taken in float32. Raises ValueError for another norm.
    """
    if norm not in _ORDERS:
        raise ValueError(f"norm: expected 'l2' or 'linf', got {norm!r}")
    found = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
    with torch.no_grad():
        for parameter in found:
            grad = parameter.grad
            if grad is None or grad.numel() == 0:
                continue
            wide = torch.promote_types(grad.dtype, torch.float32)
            if _ORDERS[norm] == 2:
                # scaled by the largest value first: squares of small or large gradients leave float32's range
                largest = grad.abs().amax().to(wide)
                by = torch.where(largest > 0, largest, 1)
                scaled = grad.to(wide) / by
                length = torch.linalg.vector_norm(scaled)
                grad.copy_(scaled / torch.where(largest > 0, length, 1))
            else:
                largest = grad.abs().amax()
                grad.div_(torch.where(largest == 0, 1, largest))


class _NormalisedSGD(torch.optim.SGD):
    """`torch.optim.SGD` on renormalised gradients: momentum and weight decay come after it.

    Arguments are `torch.optim.SGD`'s. A step leaves the renormalised gradients in ``grad``.
    """

    norm: Norm

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Any = None) -> Any:
        """One step; `closure`, if given, computes the loss and its gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            normalise_gradients(group["params"], self.norm)
        super().step()
        return loss


class SGDL2(_NormalisedSGD):
    """SGD with each parameter's gradient scaled to Euclidean norm 1 (SGD-L2, 004 Appendix D.1)."""

    norm = "l2"


class SGDLinf(_NormalisedSGD):
    """SGD with each parameter's gradient scaled to largest absolute value 1 (SGD-Linf, 004 Appendix D.2)."""

    norm = "linf"
