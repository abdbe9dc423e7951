"""One step: the objectives in turn, each with forward pass, backward pass and update."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lmser.training.config import TrainConfig
from lmser.training.distributed import gradient_group, world_size
from lmser.training.graphed import GraphedStep, Rates, recorder_for
from lmser.training.objectives import Part
from lmser.training.obstacles import declared
from lmser.training.schedules import learning_rate


class Step:
    """What is done with a batch, in this process and with the others.

    On a CUDA device it is recorded and replayed as one graph (`lmser.training.graphed`) unless `config.cuda_graph` is
    False. Raises ValueError where that is True and there is no such device, `NotCapturable` where it is True and the
    step is not to be recorded.
    """

    def __init__(self, model: nn.Module, parts: Sequence[Part], config: TrainConfig) -> None:
        self._parts = parts
        self._device = parts[0].parameters[0].device
        self._bfloat16 = config.precision == "bfloat16"
        every = dict.fromkeys(p for part in parts for p in part.parameters)
        self._others = [[p for p in every if p not in set(part.parameters)] for part in parts]
        self._processes = world_size()
        group = gradient_group(self._device) if self._processes > 1 else None
        self._compute: list[Callable[..., Any]] = []
        for part, others in zip(parts, self._others, strict=True):
            # One program per shape: which one serves a batch must not hang on those that came before it, or
            # a resumed run could meet its first short batch with another one than an uninterrupted run.
            loss_fn = torch.compile(part.loss, dynamic=False) if config.compile else part.loss
            loss = _Loss(model, loss_fn)
            with _without_gradients(others):  # what requires none at this moment is not waited for later
                self._compute.append(loss if self._processes == 1 else _averaging(loss, group))
        recorder = recorder_for(self._device)
        if recorder is None and config.cuda_graph:
            raise ValueError(f"cuda_graph: expected a model on a CUDA device, got {self._device}")
        # Tensors with the graph and without it, so that both round alike.
        self._rates = None if recorder is None else Rates(len(parts), self._device)
        self._graphed: GraphedStep | None = None
        if recorder is not None and config.cuda_graph is not False:
            obstacle = declared(model, [part.declared for part in parts])
            if self._processes > 1:
                obstacle = "gradients are averaged between processes"
            self._graphed = GraphedStep(
                self._work, model, recorder,
                obstacle=obstacle, required=config.cuda_graph is True, watched=not config.compile,
            )  # fmt: skip

    def take(self, step: int, batch: Sequence[Tensor], weight: float = 1.0) -> list[Tensor]:
        """Take a step, the first being 0, and return the objectives' losses, detached, on the device.

        `weight` is this process's part of the samples: the gradients are the sums over the processes of
        their own times that weight. They stay where they are until the next step.
        """
        self._set_rates(step)
        if self._graphed is not None:
            return self._graphed.take(batch)
        return self._work(batch, weight)

    def check(self) -> None:
        """To be called after code that may have given the model other tensors."""
        if self._graphed is not None:
            self._graphed.check()

    def optimizer_states(self) -> dict[str, Any]:
        """For a checkpoint: of each objective's optimiser, learning rates as plain numbers."""
        states = {part.name: part.optimizer.state_dict() for part in self._parts}
        for state in states.values():
            for group in state["param_groups"]:
                group["lr"] = float(group["lr"])
        return states

    def load_optimizer_states(self, states: Mapping[str, Any]) -> None:
        """Take up what `optimizer_states` gave, on whatever device that was."""
        for part in self._parts:
            own = [group.get("capturable") for group in part.optimizer.param_groups]
            part.optimizer.load_state_dict(states[part.name])
            for group, capturable in zip(part.optimizer.param_groups, own, strict=True):
                if capturable is not None:
                    group["capturable"] = capturable

    def _set_rates(self, step: int) -> None:
        for position, part in enumerate(self._parts):
            rate = learning_rate(part.config, step)
            for group in part.optimizer.param_groups:
                group["lr"] = rate if self._rates is None else self._rates.set(position, rate)

    def _work(self, batch: Sequence[Tensor], weight: float = 1.0) -> list[Tensor]:
        shared: dict[str, Any] = {}
        losses = []
        for part, others, compute in zip(self._parts, self._others, self._compute, strict=True):
            with _without_gradients(others):
                for parameter in part.parameters:
                    parameter.grad = None
                with self._autocast():
                    loss = compute(batch, shared)
                if not isinstance(loss, Tensor) or loss.dim() != 0:
                    what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                    raise ValueError(f"{part.label}: expected a 0-d tensor, got {what}")
                share = weight * self._processes  # the processes' gradients are averaged
                (loss if share == 1 else loss * share).backward()
                part.optimizer.step()
            losses.append(loss.detach())
        return losses

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if not self._bfloat16:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)


class _Loss(nn.Module):
    """The loss as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, model: nn.Module, loss_fn: Callable[..., Any]) -> None:
        super().__init__()
        self._model, self._loss_fn = model, loss_fn

    def forward(self, batch: Sequence[Tensor], shared: dict[str, Any]) -> Any:
        return self._loss_fn(self._model, *batch, shared=shared)


def _averaging(loss: _Loss, group: Any) -> DistributedDataParallel:
    # A loss may leave parameters out (the classifier's, where there are no labels). Looking for those also
    # keeps the gradients in the same buckets from the first step on, so that the order of summation, and
    # with it the bits, is the same after a resumption.
    return DistributedDataParallel(loss, process_group=group, find_unused_parameters=True)


@contextmanager
def _without_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
