"""The learning rate of a step: a pure function of the configuration and the step."""

from __future__ import annotations

import math

from lmser.training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of a step, the first being 0 (the formulas stand at `TrainConfig`)."""
    fallen = sum(at <= step for at in config.milestones) if config.schedule == "step" else step
    rate = config.lr * config.gamma**fallen
    if config.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / config.steps))
    if step < config.warmup:
        rate *= (step + 1) / config.warmup
    return float(rate)
