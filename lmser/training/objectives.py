"""What is minimised: one loss, or several of which each trains its own part of the network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmser.training.config import TrainConfig, checked_betas
from lmser.training.normalised_sgd import SGDL2, SGDLinf

LossFn = Callable[..., Tensor]


@dataclass(frozen=True)
class Objective:
    """One of the losses that a step minimises in turn, on the same batch, each with its own optimiser.

        generator = Objective("generator", lambda m: m.generator.parameters(), generator_loss)
        critic = Objective("critic", lambda m: m.critic.parameters(), critic_loss, lr=4e-4, betas=(0.5, 0.9))
        train(model, None, images, config, objectives=(generator, critic))

    name:       of its loss in the log
    parameters: ``parameters(model)``: what it trains. While it is computed no other parameter requires a
                gradient. One may be in several objectives; a frozen one is left out
    loss:       ``loss(model, *batch, shared=shared) -> 0-d tensor``; `shared` is a dict that is empty before
                the first objective of a step and gone after the last one: the generator's objective leaves
                ``shared["fake"] = fake.detach()`` there for the critic's
    lr:         stands in place of the configuration's, under the same schedule; None: the configuration's
    betas:      of its Adam; None: the configuration's

    Raises TypeError or ValueError naming the field that is wrong.
    """

    name: str
    parameters: Callable[..., Iterable[nn.Parameter]]
    loss: LossFn
    lr: float | None = None
    betas: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"name: expected a word, got {self.name!r}")
        for name in ("parameters", "loss"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name}: expected a function, got {getattr(self, name)!r}")
        if self.lr is not None:
            if not isinstance(self.lr, (int, float)) or isinstance(self.lr, bool):
                raise TypeError(f"lr: expected a number or None, got {self.lr!r}")
            if not math.isfinite(self.lr) or self.lr <= 0:
                raise ValueError(f"lr: expected a finite number of more than 0, got {self.lr}")
        if self.betas is not None:
            object.__setattr__(self, "betas", checked_betas(self.betas))


@dataclass(frozen=True)
class Part:
    """An objective within one run.

    label:     for error messages.  loss: ``loss(model, *batch, shared)``.  declared: as it was given to `train`.
    config:    the run's, with this objective's learning rate and betas.
    names:     of `parameters`, as the model calls them.
    """

    name: str
    label: str
    loss: LossFn
    declared: LossFn
    parameters: list[nn.Parameter]
    names: list[str]
    config: TrainConfig
    optimizer: torch.optim.Optimizer

    def described(self) -> dict[str, Any]:
        """What of it decides a run's numbers, as plain values."""
        betas = list(self.config.betas)
        return {"name": self.name, "lr": self.config.lr, "betas": betas, "parameters": self.names}


def resolve(
    model: nn.Module, loss_fn: LossFn | None, objectives: Sequence[Objective] | None, config: TrainConfig
) -> list[Part]:
    """The objectives of a run, in order; `loss_fn` alone is one that trains everything.

    Raises TypeError or ValueError where both or neither are given, two have one name, one has nothing to
    train or what is not the model's, or a parameter that requires a gradient is in none.
    """
    names = {p: name for name, p in model.named_parameters() if p.requires_grad}
    if not names:
        raise ValueError("model: it has no parameter to train")
    if objectives is None:
        if not callable(loss_fn):
            raise TypeError(f"loss_fn: expected a function, got {loss_fn!r}; or give objectives")
        return [_part("loss", "loss_fn", loss_fn, list(names), names, config, shares=False)]
    if loss_fn is not None:
        raise ValueError("loss_fn: expected None beside objectives, which have their own losses")
    objectives = tuple(objectives)
    if not objectives or not all(isinstance(objective, Objective) for objective in objectives):
        raise TypeError(f"objectives: expected a non-empty sequence of Objective, got {objectives!r}")
    if len({objective.name for objective in objectives}) < len(objectives):
        called = ", ".join(objective.name for objective in objectives)
        raise ValueError(f"objectives: expected different names, got {called}")
    every = set(model.parameters())
    parts = []
    for objective in objectives:
        label = f"objectives: {objective.name}"
        # A parameter that is tied, or met on two ways, counts once, as in nn.Module.parameters.
        given = dict.fromkeys(objective.parameters(model))
        foreign = [p for p in given if p not in every]
        if foreign:
            raise ValueError(f"{label}: a parameter of shape {tuple(foreign[0].shape)} is not the model's")
        chosen = [p for p in given if p in names]
        if not chosen:
            raise ValueError(f"{label} has no parameter to train")
        own = dataclasses.replace(
            config,
            lr=config.lr if objective.lr is None else objective.lr,
            betas=config.betas if objective.betas is None else objective.betas,
        )
        parts.append(_part(objective.name, label, objective.loss, chosen, names, own))
    left = names.keys() - {p for part in parts for p in part.parameters}
    if left:
        first = next(name for p, name in names.items() if p in left)
        raise ValueError(f"objectives: none trains {first}; freeze it with requires_grad_(False)")
    return parts


def _part(
    name: str,
    label: str,
    loss: LossFn,
    parameters: list[nn.Parameter],
    names: dict[nn.Parameter, str],
    config: TrainConfig,
    *,
    shares: bool = True,
) -> Part:
    called = [names[p] for p in parameters]
    computed = loss if shares else _without_shared(loss)
    return Part(name, label, computed, loss, parameters, called, config, _optimizer(parameters, config))


def _without_shared(loss_fn: LossFn) -> LossFn:
    def loss(model: nn.Module, *batch: Tensor, shared: dict[str, Any]) -> Tensor:
        return loss_fn(model, *batch)

    return loss


def _optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    # One kernel for all parameters instead of several per parameter, where torch has it.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    decay = config.weight_decay
    if config.optimizer == "adam":
        # Its count of steps lies on the device either way; so named, an update may be captured in a graph.
        capturable = all(p.device.type == "cuda" for p in parameters)
        return torch.optim.Adam(
            parameters,
            lr=config.lr,
            betas=config.betas,
            weight_decay=decay,
            fused=fused,
            capturable=capturable,
        )
    descent = {"sgd": torch.optim.SGD, "sgd-l2": SGDL2, "sgd-linf": SGDLinf}[config.optimizer]
    return descent(parameters, lr=config.lr, momentum=config.momentum, weight_decay=decay, fused=fused)
