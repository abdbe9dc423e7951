"""The settling kernels of `csrc/cuda` compiled for the host and run by an emulator of CUDA, called through ctypes."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lmser_kernels  # noqa: F401  (registers the operators)

ACTIVATIONS = ("identity", "relu", "leaky_relu", "sigmoid", "tanh", "leaky_sigmoid")
_HERE = Path(__file__).parent
_LAYERS = 8


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++").split()[0])


def compiled(source: Path, target: Path, *flags: str) -> ctypes.CDLL:
    """A source of the emulator as a shared library; its own directory's headers come first."""
    # The fibers leave one stack for another by longjmp, which a fortified one takes for an error.
    command = (
        f"{compiler()} -std=c++20 -O1 -U_FORTIFY_SOURCE -fPIC -shared -Wall -Werror -Wno-unknown-pragmas"
    )
    include = ["-I", str(source.parent), "-I", str(_HERE / "cuda_emulator")]
    done = subprocess.run(
        [*command.split(), *flags, *include, str(source), "-o", str(target)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(target))


class _Settings(ctypes.Structure):
    _fields_ = (
        *[
            (n, ctypes.c_int)
            for n in ("layers", "up_down", "per_sample", "keep", "half", "every", "activation")
        ],
        *[(n, ctypes.c_int) for n in ("adjoint", "cluster", "group", "groups", "threads")],
        *[(n, ctypes.c_int64) for n in ("samples", "max_steps", "shared_bytes", "seed")],
        *[(n, ctypes.c_double) for n in ("slope", "theta")],
    )


class _Pointers(ctypes.Structure):
    _fields_ = (
        *[
            (n, ctypes.c_void_p * _LAYERS)
            for n in ("states", "weights", "reverse", "biases", "grads", "results")
        ],
        *[(n, ctypes.c_void_p) for n in ("evidence", "hold", "external", "grad_readout", "readouts")],
        *[(n, ctypes.c_void_p) for n in ("trajectory", "change", "steps")],
        *[(n, ctypes.c_void_p * _LAYERS) for n in ("up", "down")],
        *[(n, ctypes.c_void_p) for n in ("visible", "evidence_grad")],
    )


@dataclass
class Network:
    """A fully connected network and what holds it; tensors `(N, C)` and `(C_above, C_below)`."""

    states: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor | None]
    reverse: list[Tensor] = field(default_factory=list)
    evidence: Tensor | None = None
    hold: Tensor | None = None
    external: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Network:
        def cast(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(dtype)

        lists = ([cast(t) for t in part] for part in (self.states, self.weights, self.biases, self.reverse))
        return Network(*lists, cast(self.evidence), cast(self.hold), cast(self.external))


def network(
    sizes: tuple[int, ...], samples: int, *, reverse: bool = False, evidence: str = "none", strength: float = 1.0,
    external: bool = False, biases: bool = True, gain: float = 0.6,
) -> Network:  # fmt: skip
    """Random, float64; `evidence`: "none", "some" or "all"."""
    states = [0.3 * torch.randn(samples, c, dtype=torch.float64) for c in sizes]
    weights = [
        torch.randn(above, below, dtype=torch.float64) * gain / max(above, below) ** 0.5
        for below, above in itertools.pairwise(sizes)
    ]
    found = Network(
        states,
        weights,
        [torch.randn(c, dtype=torch.float64) * 0.1 if biases else None for c in sizes],
    )
    if reverse:
        found.reverse = [w + 0.05 * torch.randn_like(w) for w in weights]
    if evidence != "none":
        found.evidence = 0.5 * torch.randn_like(states[0])
        found.hold = torch.full_like(states[0], strength)
        if evidence == "some":
            found.hold *= torch.rand_like(states[0]) > 0.5
    if external:
        found.external = 0.1 * torch.randn_like(states[0])
    return found


@dataclass
class Solve:
    """How a network is settled."""

    activation: str = "tanh"
    slope: float = 0.2
    order: str = "up_down"
    theta: float = 0.0
    max_steps: int = 4
    per_sample: bool = False
    keep: bool = False
    half: bool = False
    readouts: bool = False


@dataclass
class Found:
    states: list[Tensor]
    readouts: Tensor
    trajectory: Tensor
    steps: Tensor
    change: Tensor


def image(t: Tensor) -> Tensor:
    """`(N, C)` as `(N, C, 1, 1)`; nothing stays nothing."""
    return t[:, :, None, None] if t.numel() else t


def arguments(net: Network, how: Solve) -> list[Any]:
    """Those of `torch.ops.lmser.settle`."""
    held = [None if t is None else image(t) for t in (net.evidence, net.hold, net.external)]
    first = net.states[0]
    return [
        [image(h) for h in net.states], [image(w) for w in net.weights], [image(w) for w in net.reverse],
        [first.new_empty(0) if b is None else b for b in net.biases], *held,
        [1] * (2 * len(net.weights)), [0] * (2 * len(net.weights)), how.activation, how.slope, how.order, how.theta,
        how.max_steps, how.per_sample, how.keep, how.half, how.readouts, 0.0, 0, "ignore",
    ]  # fmt: skip


def native(net: Network, how: Solve) -> Found:
    """By the compiled operator of this processor."""
    states, readouts, trajectory, steps, change = torch.ops.lmser.settle(*arguments(net, how))
    return Found([h[:, :, 0, 0] for h in states], readouts[..., 0, 0], trajectory, steps, change)


@dataclass
class Back:
    """Gradients of the states begun with, of the drives (`up (T, N, C)`, `down (T + 1, N, C)`) and of the evidence."""

    states: list[Tensor]
    up: list[Tensor]
    down: list[Tensor]
    visible: Tensor
    evidence: Tensor


@dataclass
class Device:
    """How the emulated device is used: the layout by hand, or planned where `cluster` is 0."""

    cluster: int = 1
    group: int = 2
    groups: int = 4
    threads: int = 64
    shared_bytes: int = 48 * 1024
    seed: int = 0


class Emulator:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._call, self._call_back = library.settle, library.settle_back
        self._call.restype = self._call_back.restype = ctypes.c_char_p
        self.plan: dict[str, int] = {}

    def settle(self, net: Network, how: Solve, device: Device) -> Found:
        """What `lmser::settle_persistent` would return."""
        first = net.states[0]
        samples, visible = first.shape
        every = how.keep or how.readouts
        kept = sum(
            self._updates(len(net.states), how.order, layer) * h.numel() for layer, h in enumerate(net.states)
        )
        readouts = first.new_full((how.max_steps if every else 1, samples, visible), torch.nan)
        trajectory = torch.full(
            (kept * how.max_steps if how.keep else 0,), torch.nan,
            dtype=torch.bfloat16 if how.half else first.dtype,
        )  # fmt: skip
        tensors = {
            "evidence": net.evidence,
            "hold": net.hold,
            "external": net.external,
            "trajectory": trajectory,
        }
        count = (samples,) if how.per_sample else ()
        found = self._run(
            net, how, device, first.new_zeros(count), readouts, tensors, [], every, adjoint=False
        )
        made = int(found.steps.max())
        if every:
            found.readouts, found.trajectory = (
                found.readouts[:made],
                trajectory[: kept * made if how.keep else 0],
            )
        return found

    def adjoint(
        self,
        net: Network,
        how: Solve,
        device: Device,
        grads: list[Tensor],
        grad_readout: Tensor | None,
        readout: Tensor,
    ) -> Found:
        """What `lmser::settle_adjoint_persistent` would return; `net.states` are the states found."""
        first = net.states[0]
        fixed = Network([readout, *net.states[1:]], net.weights, [None] * len(net.states), net.reverse)
        tensors = {"hold": net.hold, "grad_readout": grad_readout}
        drive = first.new_full((1, *first.shape), torch.nan)
        return self._run(fixed, how, device, first.new_zeros(()), drive, tensors, grads, False, adjoint=True)

    @staticmethod
    def _updates(layers: int, order: str, layer: int) -> int:
        return 0 if layer == 0 else 2 if order == "up_down" and layer < layers - 1 else 1

    def back(
        self, net: Network, how: Solve, device: Device, found: Found, grads: list[Tensor], grad_readouts: Tensor | None,
    ) -> Back:  # fmt: skip
        """What `lmser::settle_backward_persistent` would return; `net.states` are those that the solve began with."""
        sweeps, samples, visible = found.readouts.shape
        first, top = net.states[0], len(net.states) - 1
        back = Back(
            [torch.full_like(h, torch.nan) for h in net.states],
            [first.new_zeros(sweeps, *h.shape) if i > 0 else first.new_empty(0) for i, h in enumerate(net.states)],
            [first.new_zeros(sweeps + 1, *h.shape) if i < top else first.new_empty(0) for i, h in enumerate(net.states)],
            first.new_full((sweeps, samples, visible), torch.nan),
            first.new_zeros(samples, visible),
        )  # fmt: skip
        half = found.trajectory.dtype == torch.bfloat16
        how = dataclasses.replace(how, max_steps=sweeps, half=half, per_sample=False)
        lists = {
            "states": net.states, "weights": net.weights, "reverse": net.reverse, "grads": grads,
            "results": back.states, "up": back.up, "down": back.down,
        }  # fmt: skip
        tensors = {
            "evidence": net.evidence, "hold": net.hold, "grad_readout": grad_readouts, "readouts": found.readouts,
            "trajectory": found.trajectory, "visible": back.visible, "evidence_grad": back.evidence,
        }  # fmt: skip
        self._launch(self._call_back, how, device, net.states, lists, tensors, every=False, adjoint=False)
        return back

    def _run(
        self, net: Network, how: Solve, device: Device, change: Tensor, readouts: Tensor,
        tensors: dict[str, Tensor | None], grads: list[Tensor], every: bool, *, adjoint: bool,
    ) -> Found:  # fmt: skip
        first = net.states[0]
        results = [torch.full_like(h, torch.nan) for h in net.states]
        steps = torch.full(change.shape, -1, dtype=torch.int64)
        lists = {
            "states": net.states, "weights": net.weights, "reverse": net.reverse, "biases": net.biases,
            "grads": grads, "results": results,
        }  # fmt: skip
        tensors = {**tensors, "readouts": readouts, "change": change, "steps": steps}
        self._launch(self._call, how, device, net.states, lists, tensors, every=every, adjoint=adjoint)
        return Found(results, readouts, tensors.get("trajectory", first.new_empty(0)), steps, change)

    def _launch(
        self, call: Any, how: Solve, device: Device, states: Sequence[Tensor], lists: Mapping[str, Sequence[Tensor | None]],
        tensors: Mapping[str, Tensor | None], *, every: bool, adjoint: bool,
    ) -> None:  # fmt: skip
        settings = _Settings(
            len(states), how.order == "up_down", how.per_sample, how.keep, how.half, every,
            ACTIVATIONS.index(how.activation), adjoint, device.cluster, device.group, device.groups, device.threads,
            states[0].shape[0], how.max_steps, device.shared_bytes, device.seed, how.slope, how.theta,
        )  # fmt: skip
        pointers = _Pointers()
        alive = []  # until the call returns
        for name, part in lists.items():
            for i, tensor in enumerate(part):
                if tensor is not None and tensor.numel():
                    alive.append(tensor.contiguous())
                    getattr(pointers, name)[i] = alive[-1].data_ptr()
        for name, tensor in tensors.items():
            if tensor is not None and tensor.numel():
                alive.append(tensor.contiguous())
                setattr(pointers, name, alive[-1].data_ptr())
        sizes = (ctypes.c_int64 * len(states))(*(h.shape[1] for h in states))
        plan = (ctypes.c_int64 * 6)()
        wide = int(states[0].dtype == torch.float64)
        problem = call(wide, sizes, ctypes.byref(settings), ctypes.byref(pointers), plan)
        if problem:
            raise RuntimeError(problem.decode())
        names = ("cluster", "group", "tile", "groups", "resident_bytes", "streamed_bytes")
        self.plan = dict(zip(names, plan, strict=True))


@functools.cache
def settle_emulator(folder: Path) -> Emulator:
    """The settling kernels compiled for the host, in `folder`: once for all tests of a session."""
    return Emulator(compiled(_HERE / "cuda_emulator" / "settle.cpp", folder / "settle_emulator.so"))
