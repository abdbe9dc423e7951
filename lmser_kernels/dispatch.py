"""Which implementation a call takes, and the shortest way into an operator from eager mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lmser_kernels import _library

IMPLEMENTATIONS = ("auto", "native", "triton", "reference")


def native(operation: str, impl: str, tensor: Tensor) -> bool:
    """True if this call takes the compiled operator, False if the reference.

    "auto" takes the compiled one where it can run; an explicit choice never falls back: `RuntimeError`
    where it cannot run, `ValueError` for an unknown name.
    """
    if impl == "auto":
        return _library.available and (tensor.is_cpu or _on_cuda(operation, tensor))
    if impl == "reference":
        return False
    if impl == "native":
        if not _library.available:
            raise RuntimeError(f'impl="native": {_library.error}')
        if not (tensor.is_cpu or _on_cuda(operation, tensor)):
            raise RuntimeError(
                f'impl="native": no compiled kernel of {operation} for {tensor.device.type} tensors'
            )
        return True
    if impl == "triton":
        raise RuntimeError(f'impl="triton": this version has no Triton kernel of {operation}')
    raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")


def _on_cuda(operation: str, tensor: Tensor) -> bool:
    return tensor.is_cuda and operation in _library.cuda_operators


def reason(operation: str, impl: str, tensor: Tensor) -> str:
    """Why `native` decided as it did, for a call that it accepts."""
    if impl != "auto":
        return f'impl="{impl}" was asked for'
    if not _library.available:
        return str(_library.error)
    if not native(operation, impl, tensor):
        return f"the compiled library has no kernel of {operation} for {tensor.device.type} tensors"
    return f"compiled kernel for {tensor.device.type} tensors"


def differentiable(
    name: str, setup_context: Callable[..., None], backward: Callable[..., tuple[Any, ...]]
) -> Callable[..., Any]:
    """Registers the derivative of the operator `lmser::name` and returns the callable to use for it.

    `torch.compile` and `torch.export` go through the registered operator. In eager mode the callable
    reaches the same kernel with the same two functions through `autograd.Function`, or with nothing in
    between where no gradient is asked for: the registered path costs a small layer more than its arithmetic.
    `torch.func`'s transforms, which refuse the registered path, take an `autograd.Function` as well.
    """
    operator = getattr(torch.ops.lmser, name).default
    torch.library.register_autograd(f"lmser::{name}", backward, setup_context=setup_context)

    def kernel(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    def forward(ctx: Any, *args: Any) -> Any:
        output = kernel(*args)
        setup_context(ctx, args, output)
        return output

    # With `forward` and `setup_context` apart, as `torch.func` needs them, `apply` inspects the signature at
    # every call; together they take a third of the time.
    eager = _function(f"{name}_eager", forward=forward, backward=backward)
    functional = _function(
        f"{name}_functional", forward=kernel, setup_context=setup_context, backward=backward
    )

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return operator(*args)
        if torch._C._are_functorch_transforms_active():
            return functional.apply(*args)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return eager.apply(*args)
        return kernel(*args)

    return call


def _function(name: str, **methods: Callable[..., Any]) -> Any:
    return type(name, (torch.autograd.Function,), {key: staticmethod(f) for key, f in methods.items()})
