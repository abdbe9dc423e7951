"""How steps are timed, captured and weighed: on a GPU, and on a CPU for the tests of everything around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from bench.gpu_entrants import Step

SAMPLE = 2e-3  # seconds that one measurement lasts at least, by calls one after the other
MOST_CALLS = 64


class Clock(Protocol):
    """A device's."""

    device: str

    def seconds(self, step: Step, calls: int) -> float:
        """Seconds of one of `calls` calls in a row."""

    def captured(self, step: Step) -> tuple[Step, int]:
        """The step as a CUDA graph, whose results stay in place, and the bytes that it keeps."""

    def peak(self, step: Step) -> int:
        """Bytes that a call takes beyond what is there before."""


class CudaClock:
    """CUDA events around calls on the current stream. Calls that the host makes slower than the GPU works show it."""

    device = "cuda"

    def seconds(self, step: Step, calls: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            step()
        end.record()
        end.synchronize()
        return 1e-3 * start.elapsed_time(end) / calls

    def captured(self, step: Step) -> tuple[Step, int]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):  # the stream that cuBLAS has its workspace for by now
            # Detached: the autograd graph would keep its AccumulateGrad nodes, of the capture's stream, for the calls
            # that are not captured, and those would wait between streams.
            results = [result.detach() for result in step()]
        torch.cuda.synchronize()
        kept = torch.cuda.memory_reserved() - before

        def replay() -> Sequence[Tensor]:
            graph.replay()
            return results

        return replay, max(kept, 0)

    def peak(self, step: Step) -> int:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        found = step()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del found
        return max(peak, 0)


class CpuClock:
    """Stands for the GPU's where only the logic is of interest: nothing is captured, nothing weighed."""

    device = "cpu"

    def seconds(self, step: Step, calls: int) -> float:
        start = perf_counter()
        for _ in range(calls):
            step()
        return (perf_counter() - start) / calls

    def captured(self, step: Step) -> tuple[Step, int]:
        return step, 0

    def peak(self, step: Step) -> int:
        step()
        return 0


def calls_for(clock: Clock, step: Step) -> int:
    """How many calls in a row last `SAMPLE`."""
    one = clock.seconds(step, 1)
    return max(1, min(MOST_CALLS, math.ceil(SAMPLE / max(one, 1e-9))))
