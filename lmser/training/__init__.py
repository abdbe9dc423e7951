"""Training: one plain loop that can be stopped at any moment and continued to the same bits.

    from lmser.training import TrainConfig, train

    config = TrainConfig(steps=20_000, batch_size=50, lr=0.001, gamma=0.9999, seed=0)
    result = train(
        model,
        lambda model, x, y: model.loss(x, y),      # loss_fn(model, *batch) -> 0-d tensor
        (x_train, y_train),                        # one tensor, or a tuple of tensors of equal length
        config,
        run_dir=Path("runs/mnist/un/seed-0"),      # None: nothing is written, nothing can be resumed
        resume=True,
        eval_at=(500, 5000, 20_000),
        evaluate=lambda model: {"mse": test_mse(model), "images": model(x_shown).reconstruction},
        identity={"experiment": "mnist-reconstruction", "variant": "un", "init": "default"},
    )
    result.curve                # [(step, loss), ...], step counts from 1
    result.evaluations[500]     # {"mse": 0.0045, "images": tensor}
    result.seconds_per_step     # median
    result.seconds_waiting      # of result.seconds: until the next batch was read
    result.peak_memory_bytes    # above what the process held before, or None where it cannot be known

A run is a pure function of (initial weights, data, configuration, number of processes): the order of the
samples is a pure function of (seed, epoch), and the torch, numpy and python generators are seeded for the run
and given back as they were afterwards. What is in a run directory:

``checkpoint.pt``   the newest complete state (`load_checkpoint` reads it with ``weights_only=True``)
``log.jsonl``       one line per recorded step and per evaluation, for whoever wants to look; holds nothing
                    that depends on the clock, so that a resumed run's log equals an uninterrupted run's byte
                    for byte

A checkpoint appears by rename, so none is ever half written. The log grows by lines and is written anew from
the checkpoint when a run is resumed. Weights for other programs: `save_weights(model, path)` writes
safetensors.

Adversaries train as `Objective`: several losses in each step, each with its own parameters and optimiser.
Data that does not fit into memory is a `Dataset`, read by ``TrainConfig.workers`` processes. Under torchrun,
`lmser.training.distributed.joined` makes one run of all processes: each computes its slice of every batch,
and the gradients, losses and metrics are those of one process, up to rounding and to noise that a model
draws.

On a CUDA device a step is recorded as one CUDA graph and replayed, with the same numbers as without
(`lmser.training.graphed`); `not_capturable` says of a loss that it cannot be.
"""

from lmser.training.batches import Dataset
from lmser.training.checkpoint import ConfigMismatch, load_checkpoint
from lmser.training.config import TrainConfig
from lmser.training.graphed import NotCapturable
from lmser.training.loop import train
from lmser.training.normalised_sgd import SGDL2, SGDLinf, normalise_gradients
from lmser.training.objectives import Objective
from lmser.training.obstacles import not_capturable
from lmser.training.records import Diverged
from lmser.training.result import Run, TrainResult
from lmser.training.sampler import Sampler, steps_per_epoch
from lmser.training.schedules import learning_rate
from lmser.training.signals import Interrupted
from lmser.training.two_streams import TwoStreamSampler
from lmser.training.weights import load_weights, save_weights

__all__ = [
    "SGDL2",
    "ConfigMismatch",
    "Dataset",
    "Diverged",
    "Interrupted",
    "NotCapturable",
    "Objective",
    "Run",
    "SGDLinf",
    "Sampler",
    "TrainConfig",
    "TrainResult",
    "TwoStreamSampler",
    "learning_rate",
    "load_checkpoint",
    "load_weights",
    "normalise_gradients",
    "not_capturable",
    "save_weights",
    "steps_per_epoch",
    "train",
]
