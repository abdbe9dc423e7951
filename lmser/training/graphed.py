"""A training step as one CUDA graph: recorded once, replayed for every batch of the same shape.

A step of a small network is a few hundred kernels, and launching them takes the host longer than the device needs to
run them. A recorded step, forward and backward passes and updates together, is one launch.

    steps 1 ... 3 of a shape   taken as they always are, watched for what cannot be recorded (`obstacles`); the last one
                               reads its batch where the recorded step will
    step 4                     recorded, which runs nothing, and replayed
    from then on               the batch is copied to where the recorded step reads it, and the step replayed
    batches of another shape   (an epoch's shorter last one) taken as they always are

Steps before the recording are steps of the run like all others, each on its own batch, so that there is nothing to
undo, and a run with the graph gives the bits of a run without: the same kernels, the same learning rates (tensors in
both, see `Rates`), the same random numbers, as a replay moves the generators on by what the recorded step drew.
Checkpoints hold the same, so a run may be begun without the graph and continued with it.

Recorded are also the gradients, whose memory is the same in every replay; losses are copied out, since the next
replay overwrites them. A recorded step keeps all memory that it works in, and batches of another shape take theirs
beside it: `drop_last` leaves those out.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from lmser.training.obstacles import Watch

_log = logging.getLogger(__name__)

WARM_UP = 3
"""Steps of a shape before it is recorded: libraries choose their algorithms, optimisers make their state."""

Form = tuple[tuple[torch.Size, torch.dtype, tuple[int, ...]], ...]


class NotCapturable(RuntimeError):
    """``cuda_graph=True`` was asked for a step that cannot be recorded; the message says why."""


class Recorder(Protocol):
    """What a device gives for recording a stretch of work and doing it again."""

    def aside(self) -> AbstractContextManager[None]:
        """Around the steps before the recording: where what they make can be used by it."""

    def record(self, work: Callable[[], list[Tensor]], generators: Sequence[torch.Generator]) -> list[Tensor]:
        """Note down what `work` does, without doing it, and return its tensors; `generators` draw in it besides
        the device's default one. RuntimeError where it cannot be recorded."""

    def replay(self) -> None:
        """Do it: every tensor that `work` read or wrote is read or written again."""


class CudaGraph:
    """A `torch.cuda.CUDAGraph` and the stream that it is captured on."""

    def __init__(self, device: torch.device) -> None:
        self._device = torch.device(
            "cuda", torch.cuda.current_device() if device.index is None else device.index
        )
        self._graph = torch.cuda.CUDAGraph()
        self._stream = torch.cuda.Stream(self._device)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        before = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(before)
        with torch.cuda.stream(self._stream):
            yield
        before.wait_stream(self._stream)

    def record(self, work: Callable[[], list[Tensor]], generators: Sequence[torch.Generator]) -> list[Tensor]:
        for generator in generators:
            self._graph.register_generator_state(generator)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            # As torch.cuda.graph, which does not come back to the stream before where a capture has failed.
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            pool = torch.cuda.graph_pool_handle()
            # Only what this thread does has to be of the kind that can be captured: a loader's thread, which
            # pins the next batches' memory meanwhile, goes on.
            self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                made = work()
                self._graph.capture_end()
            except BaseException:
                self._give_up(pool, generators)
                raise
        return made

    def _give_up(self, pool: tuple[int, int], generators: Sequence[torch.Generator]) -> None:
        """Leave torch as it was before the capture, which it does not do itself where one breaks off."""
        with contextlib.suppress(RuntimeError):
            self._graph.capture_end()
        # Where the capture could be ended, that is done; and the names are torch's own, which it may change.
        with contextlib.suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(self._device.index, pool)
            torch._C._cuda_releasePool(self._device.index, pool)
        for generator in (torch.cuda.default_generators[self._device.index], *generators):
            _renew(generator)

    def replay(self) -> None:
        self._graph.replay()


def _renew(generator: torch.Generator) -> None:
    """Give the generator a new state of the same numbers: one that a capture broke off in refuses to draw."""
    fresh = torch.Generator(generator.device)
    fresh.set_state(generator.get_state())
    generator.graphsafe_set_state(fresh.graphsafe_get_state())


def recorder_for(device: torch.device) -> Callable[[], Recorder] | None:
    """What makes a recorder for work on `device`; None where there is none."""
    return (lambda: CudaGraph(device)) if device.type == "cuda" else None


class GraphedStep:
    """Takes steps by `work`, and by replaying it once that has been recorded.

    work:     ``work(batch)`` takes a step and returns the losses, 0-d
    model:    whose memory the recorded step uses
    recorder: makes what records
    obstacle: a reason not to record, known beforehand
    required: raise `NotCapturable` for such a reason, in place of saying it once (as a warning of this module's
              logger) and going on without
    watched:  whether the steps before the recording may be watched: torch.compile does not compile under a watch
    """

    def __init__(
        self,
        work: Callable[[Sequence[Tensor]], list[Tensor]],
        model: nn.Module,
        recorder: Callable[[], Recorder],
        *,
        obstacle: str | None = None,
        required: bool = False,
        watched: bool = True,
    ) -> None:
        self._work, self._model, self._new_recorder = work, model, recorder
        self._required, self._watched = required, watched
        self._obstacle: str | None = None
        self._odd_said = False
        self._begin()
        if obstacle is not None:
            self._refuse(obstacle)

    @property
    def recorded(self) -> bool:
        """The next batch of the recorded shape is a replay."""
        return self._losses is not None

    @property
    def obstacle(self) -> str | None:
        """Why no step is recorded, or None."""
        return self._obstacle

    def take(self, batch: Sequence[Tensor]) -> list[Tensor]:
        """A step on `batch`; the losses are the caller's own."""
        if self._obstacle is not None:
            return self._work(batch)
        form = _form(batch)
        if self._losses is not None:
            return self._replay(batch) if form == self._form else self._odd(batch)
        seen = self._seen[form] = self._seen.get(form, 0) + 1
        if seen <= WARM_UP:
            return self._warm_up(batch, form)
        if self._record(form):
            return self._replay(batch)
        return self._work(batch)

    def check(self) -> None:
        """To be called after code that may have given the model other tensors: those are then recorded anew."""
        if self._memory and self._memory != _memory(self._model):
            _log.info("the model has other parameters or buffers than before: its step is recorded anew")
            self._begin()

    def _begin(self) -> None:
        self._recorder: Recorder | None = None
        self._watch: Watch | None = None
        self._seen: dict[Form, int] = {}
        self._memory: list[tuple[str, int]] = []
        self._form: Form = ()
        self._inputs: dict[Form, list[_Input]] = {}
        self._losses: list[Tensor] | None = None
        self._gradients: list[tuple[nn.Parameter, Tensor | None]] = []
        self._written: list[Tensor] = []

    def _warm_up(self, batch: Sequence[Tensor], form: Form) -> list[Tensor]:
        if self._recorder is None:
            self._recorder = self._new_recorder()
            self._watch = Watch(next(self._model.parameters()).device)
            self._memory = _memory(self._model)
        assert self._watch is not None
        with self._recorder.aside(), self._watch if self._watched else contextlib.nullcontext():
            losses = self._work(self._held(batch, form) if self._seen[form] == WARM_UP else batch)
        found = self._watch.obstacle
        if found is None:
            found = _moved(self._memory, _memory(self._model))
        if found is not None:
            self._refuse(found)
        return losses

    def _held(self, batch: Sequence[Tensor], form: Form) -> list[Tensor]:
        """The batch, copied to where the recorded step reads it."""
        inputs = self._inputs.get(form)
        if inputs is None:
            inputs = self._inputs[form] = [_Input(tensor) for tensor in batch]
        return [held.take(tensor) for held, tensor in zip(inputs, batch, strict=True)]

    def _record(self, form: Form) -> bool:
        assert self._recorder is not None
        assert self._watch is not None
        inputs = self._inputs[form]
        try:
            losses = self._recorder.record(
                lambda: self._work([held.tensor for held in inputs]), self._watch.generators
            )
        except RuntimeError as error:
            # What the capture's end says about a broken capture comes after what broke it.
            first = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            self._refuse(
                f"the capture failed: {str(first).splitlines()[0] if str(first) else first!r}", error
            )
            return False
        self._form, self._inputs, self._losses = form, {form: inputs}, losses
        self._gradients = [(p, p.grad) for p in self._model.parameters()]
        self._written = [*self._model.parameters(), *self._model.buffers()]
        return True

    def _replay(self, batch: Sequence[Tensor]) -> list[Tensor]:
        assert self._recorder is not None
        assert self._losses is not None
        self._held(batch, self._form)
        self._recorder.replay()
        # What autograd, or a cache, keeps of the values before can tell that they are not these any more.
        increment_version(self._written)
        for parameter, gradient in self._gradients:
            parameter.grad = gradient  # a step in between that was no replay has put its own there
        return [loss.clone() for loss in self._losses]

    def _odd(self, batch: Sequence[Tensor]) -> list[Tensor]:
        if not self._odd_said:
            self._odd_said = True
            _log.info(
                "batches of %s are taken without the CUDA graph, which was recorded of %s",
                _described(_form(batch)),
                _described(self._form),
            )
        return self._work(batch)

    def _refuse(self, obstacle: str, cause: Exception | None = None) -> None:
        if self._required:
            raise NotCapturable(f"cuda_graph: this step cannot be captured: {obstacle}") from cause
        _log.warning("training without a CUDA graph: %s", obstacle)
        self._begin()
        self._obstacle = obstacle


class _Input:
    """Memory of one of a batch's tensors, of its strides: another layout may mean other kernels, and other bits."""

    def __init__(self, like: Tensor) -> None:
        self._repeated = [
            d for d, (n, s) in enumerate(zip(like.shape, like.stride(), strict=True)) if n > 1 and s == 0
        ]
        once = self._once(like)
        self._memory = torch.empty_strided(once.shape, once.stride(), dtype=like.dtype, device=like.device)
        self.tensor = self._memory.expand(like.shape)

    def take(self, values: Tensor) -> Tensor:
        """`tensor`, now of these values."""
        self._memory.copy_(self._once(values), non_blocking=True)
        return self.tensor

    def _once(self, tensor: Tensor) -> Tensor:
        """Without the repetitions of an expanded tensor."""
        for dimension in self._repeated:
            tensor = tensor.narrow(dimension, 0, 1)
        return tensor


class Rates:
    """Learning rates where the kernels of a recorded update read them: 0-d float32 tensors on the device."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._tensors = [torch.zeros((), dtype=torch.float32, device=device) for _ in range(count)]
        self._values: list[float | None] = [None] * count

    def set(self, position: int, rate: float) -> Tensor:
        """The tensor at `position`, now of value `rate`; the host does not wait."""
        if self._values[position] != rate:
            self._tensors[position].fill_(rate)
            self._values[position] = rate
        return self._tensors[position]


def _form(batch: Sequence[Tensor]) -> Form:
    return tuple((tensor.shape, tensor.dtype, tensor.stride()) for tensor in batch)


def _described(form: Form) -> str:
    return " and ".join(str(tuple(shape)) for shape, _, _ in form)


def _memory(model: nn.Module) -> list[tuple[str, int]]:
    """Where the model's tensors lie."""
    named = (*model.named_parameters(), *model.named_buffers())
    return [(name, tensor.data_ptr()) for name, tensor in named]


def _moved(before: list[tuple[str, int]], after: list[tuple[str, int]]) -> str | None:
    if before == after:
        return None
    name = next(
        (name for (name, at), now in zip(before, after, strict=False) if (name, at) != now), "a tensor"
    )
    return f"{name} of the model is another tensor after a step"
