"""The batches of a run, in the order that the sampler gives, each process's own slice of them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from lmser.training.beside import Beside
from lmser.training.config import TrainConfig
from lmser.training.distributed import rank, share
from lmser.training.randomness import generators_kept, seed_generators
from lmser.training.sampler import Sampler

Batch = tuple[Tensor, ...]
Transform = Callable[..., Tensor | Sequence[Tensor]]

_CPU = torch.device("cpu")


@runtime_checkable
class Dataset(Protocol):
    """Samples that are read when they are needed, as in `torch.utils.data.Dataset`.

    ``dataset[i]`` is a tensor or a tuple of tensors, of one shape for all i. It may draw from the global
    generators: those are seeded before each batch is read. ``fingerprint()`` is a word that is another one
    when the samples are others (a checksum of the files): a run is only continued on the same.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor | tuple[Tensor, ...]: ...

    def fingerprint(self) -> str: ...


Data = Tensor | Sequence[Tensor] | Dataset


class StepSampler(Protocol):
    """Which samples a step sees, as a pure function of the step."""

    def indices(self, step: int, /) -> Tensor: ...


class Batches:
    """This process's batches on the device, and how long was waited for them.

    Raises TypeError or ValueError where `data` is none of `Data`, or does not make one batch.
    """

    def __init__(
        self,
        data: Data,
        config: TrainConfig,
        device: torch.device,
        transform: Transform | None,
        sampler: StepSampler | None = None,
    ) -> None:
        self._data = _checked(data)
        self._given = sampler
        self._config, self._device, self._transform = config, device, transform
        self._sampler = self._new_sampler()
        self._read: Iterator[Batch] | None = None
        self._next = -1
        self._beside = Beside(device)
        self.seconds_waiting = 0.0

    @property
    def fingerprinted(self) -> tuple[Tensor, ...] | str:
        """The tensors, or the data set's own word for what it holds."""
        return self._data if isinstance(self._data, tuple) else self._data.fingerprint()

    def take(self, step: int) -> tuple[Batch, float]:
        """This process's slice of the batch of a step, and its part of the whole batch's samples."""
        weight = 1.0

        def work() -> Batch:
            nonlocal weight
            start = perf_counter()
            indices, weight = share(self._sampler.indices(step))
            if isinstance(self._data, tuple):
                found = tuple(self._gathered(tensor, indices) for tensor in self._data)
            else:
                found = self._from_loader(self._data, step)
            self.seconds_waiting += perf_counter() - start
            batch = tuple(tensor.to(self._device, non_blocking=True) for tensor in found)
            return batch if self._transform is None else self._transformed(batch)

        return self._beside.make(work), weight

    def follow(self) -> None:
        """To be called after code that may have put data on the device that `transform` uses."""
        self._beside.follow()

    def _gathered(self, tensor: Tensor, indices: Tensor) -> Tensor:
        indices = indices.to(tensor.device)
        if self._device.type != "cuda" or tensor.is_cuda:
            return tensor.index_select(0, indices)
        # Memory that a copy to the device can be made from while the host goes on.
        shape = (len(indices), *tensor.shape[1:])
        pinned = torch.empty(shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        return torch.index_select(tensor, 0, indices, out=pinned)

    def _new_sampler(self) -> StepSampler:
        if self._given is not None:
            return self._given
        data, config = self._data, self._config
        samples, device = (len(data[0]), data[0].device) if isinstance(data, tuple) else (len(data), _CPU)
        return Sampler(samples, config.batch_size, config.seed, drop_last=config.drop_last, device=device)

    def close(self) -> None:
        """End the processes that read."""
        # They would end with the iterator, which the traceback of an error can keep for long.
        shutdown = getattr(self._read, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()
        self._read = None

    def _from_loader(self, data: Dataset, step: int) -> Batch:
        if self._read is None or step != self._next:
            loader: DataLoader[Any] = DataLoader(
                _Reader(data, self._config.seed),  # type: ignore[arg-type]
                batch_size=None,
                sampler=_Slices(self._new_sampler(), step, self._config.steps),
                num_workers=self._config.workers,
                pin_memory=self._device.type == "cuda",
                worker_init_fn=_ignore_signals,
                generator=torch.Generator(),  # the global one is the model's
            )
            self._read = iter(loader)
        self._next = step + 1
        return next(self._read)

    def _transformed(self, batch: Batch) -> Batch:
        assert self._transform is not None
        with torch.no_grad():
            result = self._transform(*batch)
        found = (result,) if isinstance(result, Tensor) else tuple(result)
        if not found or not all(isinstance(tensor, Tensor) for tensor in found):
            raise TypeError("transform: expected it to return a tensor or several")
        return found


class _Slices:
    """``(step, indices)`` of this process from a step on: what a reader is asked for."""

    def __init__(self, sampler: StepSampler, start: int, steps: int) -> None:
        self._sampler, self._start, self._steps = sampler, start, steps

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        for step in range(self._start, self._steps):
            yield step, share(self._sampler.indices(step))[0].tolist()


class _Reader:
    """Reads a batch in a worker or in the process that trains, with the same outcome."""

    def __init__(self, data: Dataset, seed: int) -> None:
        self._data, self._seed, self._rank = data, seed, rank()

    def __getitem__(self, asked: tuple[int, list[int]]) -> Batch:
        step, indices = asked
        with generators_kept(_CPU):
            seed_generators(self._seed, _CPU, f"reading {step} process {self._rank}")
            samples = [self._data[index] for index in indices]
        if isinstance(samples[0], Tensor):
            return (torch.stack(samples),)  # type: ignore[arg-type]
        return tuple(torch.stack(column) for column in zip(*samples, strict=True))


def _ignore_signals(_worker: int) -> None:
    # Ctrl-C and torchrun's signals go to all processes of a group. The one that trains decides what to do,
    # and needs its readers for the step that it is in; they end with it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _checked(data: Any) -> tuple[Tensor, ...] | Dataset:
    if isinstance(data, Dataset):
        return data
    if isinstance(data, TorchDataset):
        raise TypeError(f"data: {type(data).__name__} needs __len__, __getitem__ and fingerprint()")
    tensors = (data,) if isinstance(data, Tensor) else tuple(data)
    if not tensors or not all(isinstance(tensor, Tensor) and tensor.dim() > 0 for tensor in tensors):
        raise TypeError("data: expected a tensor (n, ...) or a non-empty sequence of such")
    if len({len(tensor) for tensor in tensors}) > 1 or len({tensor.device for tensor in tensors}) > 1:
        described = ", ".join(f"{len(tensor)} on {tensor.device}" for tensor in tensors)
        raise ValueError(f"data: expected tensors of one length on one device, got {described}")
    return tensors
