"""Which implementation a call takes, and the shortest way into an operator from eager mode."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lmser_kernels import _library

IMPLEMENTATIONS = ("auto", "native", "triton", "reference")


class Operators:
    """The operators of one namespace with their derivatives, as attributes (`differentiable` puts them there)."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def raw(self, name: str) -> Any:
        """The registered operator itself."""
        return getattr(getattr(torch.ops, self.namespace), name).default

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(f"no operator {self.namespace}::{name} with a derivative")


compiled = Operators("lmser")
# Of the operators with a kernel that can be called without PyTorch's dispatcher: what `at_once` calls.
_immediate: dict[str, Callable[..., Any]] = {}
triton = Operators(_library.TRITON)
_FAMILIES = (compiled, triton) if _library.triton_error is None else (compiled,)


def immediate(name: str, function: Callable[..., Any]) -> None:
    """Has `at_once` call `function` for `name`."""
    _immediate[name] = function


def at_once(name: str, impl: str, *args: Any) -> Any:
    """What the compiled operator `name` gives for these arguments, taken the shortest way; None where it cannot be.

    That is for plain CPU tensors in eager mode, recording gradients or not, where all arguments are what the operator
    takes as it is: then nothing else has to be checked, and a small layer costs little more than its arithmetic.
    Everything else (autocast, subclasses, modes, transforms, tracing, what does not fit) is None, with
    nothing done.
    """
    if torch.compiler.is_compiling() or impl not in ("auto", "native") or torch._C._is_any_autocast_enabled():
        return None
    function = _immediate.get(name) if _library.available else None
    return None if function is None else function(*args)


def chosen(operation: str, impl: str, tensor: Tensor) -> Operators | None:
    """The operators that this call takes, None for the reference.

    "auto" takes an operator where it can run; an explicit choice never falls back: `RuntimeError` where it
    cannot run, `ValueError` for an unknown name.
    """
    if impl == "auto":
        if not _library.available:
            return None
        if tensor.is_cpu:
            return compiled
        if not tensor.is_cuda or _library.triton_error is not None or _too_old(tensor) is not None:
            return None
        # Of the compiled operator, some calls are CUDA C++ and the others Triton: that is decided when it runs.
        return compiled if operation in _library.cuda_operators else triton
    if impl == "reference":
        return None
    if impl == "native":
        if not _library.available:
            raise RuntimeError(f'impl="native": {_library.error}')
        if not (tensor.is_cpu or (tensor.is_cuda and operation in _library.cuda_operators)):
            raise RuntimeError(
                f'impl="native": no compiled kernel of {operation} for {tensor.device.type} tensors'
            )
        return compiled
    if impl == "triton":
        if not _library.available:
            raise RuntimeError(f'impl="triton": {_library.error}')
        if _library.triton_error is not None:
            raise RuntimeError(f'impl="triton": {_library.triton_error}')
        if not tensor.is_cuda and not (tensor.is_cpu and _interpreting()):
            raise RuntimeError(
                f'impl="triton": Triton kernels take CUDA tensors, and CPU tensors only in Triton\'s interpreter '
                f"(a process started with TRITON_INTERPRET=1); got {tensor.device.type} tensors"
            )
        old = _too_old(tensor)
        if old is not None:
            raise RuntimeError(f'impl="triton": {old}')
        return triton
    raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")


def _too_old(tensor: Tensor) -> str | None:
    """Why this GPU runs none of the kernels, or None. A compiled graph is not asked: it is made for GPUs that do."""
    if not tensor.is_cuda or torch.compiler.is_compiling() or not torch.cuda.is_available():
        return None
    return _before_ampere(torch.cuda.current_device() if tensor.device.index is None else tensor.device.index)


@cache
def _before_ampere(device: int) -> str | None:
    major, minor = torch.cuda.get_device_capability(device)
    if major >= 8:
        return None
    name = torch.cuda.get_device_name(device)
    return f"the kernels are for GPUs of capability 8.0 (Ampere) and later; {name} has {major}.{minor}"


def _interpreting() -> bool:
    from lmser_kernels.gpu.launch import interpreting

    return interpreting()


def name_of(operators: Operators | None) -> str:
    """ "native", "triton" or "reference": the `impl` that takes these operators."""
    if operators is None:
        return "reference"
    return "native" if operators is compiled else "triton"


def reason(operation: str, impl: str, tensor: Tensor) -> str:
    """Why `chosen` decided as it did, for a call that it accepts."""
    if impl != "auto":
        return f'impl="{impl}" was asked for'
    if not _library.available:
        return str(_library.error)
    operators = chosen(operation, impl, tensor)
    if operators is triton:
        return "Triton kernel for CUDA tensors"
    if operators is compiled:
        return f"compiled kernel for {tensor.device.type} tensors"
    if tensor.is_cuda:
        return f"CUDA tensors are Triton's, and {_library.triton_error or _too_old(tensor)}"
    return f"there is no kernel of {operation} for {tensor.device.type} tensors"


def _families(name: str) -> tuple[Operators, ...]:
    return (compiled,) if name in _library.CPU_OPERATORS else _FAMILIES


def fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the decorated function as what the operator `name` gives for tensors without memory."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for operators in _families(name):
            torch.library.register_fake(f"{operators.namespace}::{name}", function)
        return function

    return register


def registered(
    name: str, setup_context: Callable[..., None], backward: Callable[..., tuple[Any, ...]]
) -> None:
    """Registers the derivative of the operator `name`, in every namespace that has it.

    `ctx.ops` of both functions is the `Operators` that the call took: a backward stays with its forward's
    implementation.
    """
    for operators in _families(name):
        torch.library.register_autograd(
            f"{operators.namespace}::{name}", backward, setup_context=_setup_with(operators, setup_context)
        )


def differentiable(
    name: str, setup_context: Callable[..., None], backward: Callable[..., tuple[Any, ...]]
) -> None:
    """Registers the derivative of the operator `name` and makes the callable to use for it, `chosen(...).name`.

    `torch.compile` and `torch.export` go through the registered operator. In eager mode the callable
    reaches the same kernel with the same two functions through `autograd.Function`, or with nothing in
    between where no gradient is asked for: the registered path costs a small layer more than its arithmetic.
    Results that were not asked for are then empty tensors or None.
    `torch.func`'s transforms, which refuse the registered path, take an `autograd.Function` as well.
    """
    registered(name, setup_context, backward)
    for operators in _FAMILIES:
        setattr(operators, name, _callable(operators, name, setup_context, backward))


def _setup_with(operators: Operators, setup_context: Callable[..., None]) -> Callable[..., None]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.ops = operators
        setup_context(ctx, inputs, output)

    return setup


def _callable(
    operators: Operators,
    name: str,
    setup_context: Callable[..., None],
    backward: Callable[..., tuple[Any, ...]],
) -> Callable[..., Any]:
    operator = operators.raw(name)
    setup = _setup_with(operators, setup_context)

    def kernel(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    def forward(ctx: Any, *args: Any) -> Any:
        output = kernel(*args)
        setup(ctx, args, output)
        return output

    # With `forward` and `setup_context` apart, as `torch.func` needs them, `apply` inspects the signature at
    # every call; together they take a third of the time.
    eager = _function(f"{name}_eager", forward=forward, backward=backward)
    functional = _function(f"{name}_functional", forward=kernel, setup_context=setup, backward=backward)

    def dispatched(*args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return functional.apply(*args)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return eager.apply(*args)
        return kernel(*args)

    immediate = _immediate_call(operators, name, setup_context, backward)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return operator(*args)
        output = immediate(*args)
        return dispatched(*args) if output is None else output

    return call


def _immediate_call(
    operators: Operators,
    name: str,
    setup_context: Callable[..., None],
    backward: Callable[..., tuple[Any, ...]],
) -> Callable[..., Any]:
    """The operator without PyTorch's dispatcher, with its derivative; None where a call is not for that.

    What does the work is a function of the compiled module (csrc/direct.cpp), which not every operator has.
    """
    direct = getattr(_library.module, name, None) if operators is compiled else None
    if direct is None:
        return lambda *args: None

    # Only what a gradient may flow to is given to `apply` as arguments of their own, for it looks at each: the tensors
    # that come first. Then all arguments together, and what was computed, which leaves as the output that is
    # differentiated.
    first = _leading_tensors(operators.raw(name))

    def forward(ctx: Any, *args: Any) -> Any:
        given, results = args[-2:]
        output = results[0] if len(results) == 1 else tuple(results)
        ctx.ops = operators
        setup_context(ctx, given, output)
        return output

    def backward_of_all(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return *backward(ctx, *grads)[:first], None, None

    function = _function(f"{name}_immediate", forward=forward, backward=backward_of_all)
    # Without what `Function.apply` does for transforms first, which is as long again: `direct` answers to none.
    record = super(torch.autograd.Function, function).apply

    def call(*args: Any) -> Any:
        results = direct(*args)
        return record(*args[:first], args, results) if type(results) is list else results

    immediate(name, call)
    return call


def _leading_tensors(operator: Any) -> int:
    """How many of an operator's first arguments are tensors, or may be."""
    types = [str(a.type) for a in operator._schema.arguments]
    return next((i for i, kind in enumerate(types) if kind not in ("Tensor", "Optional[Tensor]")), len(types))


def _function(name: str, **methods: Callable[..., Any]) -> Any:
    return type(name, (torch.autograd.Function,), {key: staticmethod(f) for key, f in methods.items()})
