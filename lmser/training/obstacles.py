"""What stands in the way of recording a training step once and replaying it: said beforehand, or seen in a step.

A replayed step runs no Python: it does on the device what the recorded one did, with other numbers in the same
memory. So a step may not look at a value of a tensor, draw from a generator of the host, or copy between host and
device, and nothing in it may hang on Python that changes from step to step. The first three are seen by watching
steps; the last one has to be said, by an attribute ``not_capturable`` of the loss or of a module of the model (a
clause that says why, or None), or by the decorator `not_capturable`.
"""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

F = TypeVar("F", bound=Callable[..., Any])

# What gives the host a value, or a size that hangs on values.
_READING = {
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::unique_dim_consecutive",
    "aten::bincount",
    "aten::repeat_interleave",
}
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_COPYING = {"aten::_to_copy", "aten::copy_"}
_HERE = (str(Path(__file__)), str(Path(torch.__file__).parent))


def not_capturable(reason: str) -> Callable[[F], F]:
    """Say of a loss function that its steps cannot be recorded and replayed as one CUDA graph.

        @not_capturable("its weight grows with the number of calls")
        def loss(model, x): ...

    reason: a clause for the message that a run without a graph gives.
    """

    def mark(function: F) -> F:
        function.not_capturable = reason  # type: ignore[attr-defined]
        return function

    return mark


def declared(model: nn.Module, losses: Iterable[Callable[..., Any]]) -> str | None:
    """What the losses and the modules of `model` say against it themselves; None: nothing."""
    for loss in losses:
        while isinstance(loss, functools.partial):
            loss = loss.func
        said = getattr(loss, "not_capturable", None)
        if said is not None:
            return f"{getattr(loss, '__name__', type(loss).__name__)}: {said}"
    for module in model.modules():
        said = getattr(module, "not_capturable", None)
        if isinstance(said, str):
            return f"{type(module).__name__}: {said}"
    return None


class Watch(TorchDispatchMode):
    """Around steps that are taken anyway: notes the first thing in them that a replay could not do.

    obstacle:   that, as a clause, or None
    generators: what drew on `device`, but for the device's default generator, in the order of appearance
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.obstacle: str | None = None
        self.generators: list[torch.Generator] = []
        self._watched = 0
        self._host: Any = None

    def __enter__(self) -> Watch:
        self._watched += 1
        self._host = self._host_generators()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self._host != self._host_generators():
            self._note("it draws from a generator of the host")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if self.obstacle is None:
            self._look(name, func, args, kwargs)
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Generator):
                self._drawn(value)
        return func(*args, **kwargs)

    def _look(self, name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        if name in _READING and not _size_is_given(name, func, kwargs):
            self._note(f"it reads values from the device ({name}{_where()})")
        elif name in _INDEXING and _by_mask(args):
            self._note(f"it counts what a mask selects ({name}{_where()})")
        elif name in _COPYING:
            ends = {value.device.type for value in args if isinstance(value, Tensor)}
            target = kwargs.get("device")
            ends |= {torch.device(target).type} if target is not None else set()
            if len(ends) > 1:
                self._note(f"it copies between {' and '.join(sorted(ends))} ({name}{_where()})")

    def _drawn(self, generator: torch.Generator) -> None:
        if generator.device.type != self._device.type or generator.device.type == "cpu":
            return
        if any(generator is known for known in (*torch.cuda.default_generators, *self.generators)):
            return
        if self._watched > 1:
            self._note("it makes a generator of its own in every step")
        self.generators.append(generator)

    def _note(self, obstacle: str) -> None:
        if self.obstacle is None:
            self.obstacle = obstacle

    def _host_generators(self) -> Any:
        # On the CPU itself, torch's generator is the device's.
        own = b"" if self._device.type == "cpu" else bytes(torch.get_rng_state().tolist())
        name, keys, *rest = np.random.get_state(legacy=True)
        return own, random.getstate(), (name, np.asarray(keys).tobytes(), *rest)


def _size_is_given(name: str, func: Any, kwargs: dict[str, Any]) -> bool:
    return name == "aten::repeat_interleave" and (
        func._overloadname != "Tensor" or kwargs.get("output_size") is not None
    )


def _by_mask(args: Sequence[Any]) -> bool:
    """Whether an index is a mask; one number put where a mask is true needs no count."""
    masks = any(
        isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1] if i is not None
    )
    one = len(args) > 2 and isinstance(args[2], Tensor) and args[2].dim() == 0
    return masks and not one


def _where() -> str:
    """Of the calling code outside of torch: ``", file.py:12"``, or nothing on autograd's own threads."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_HERE) and "lmser_kernels" not in file and Path(file).is_file():
            return f", {Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
