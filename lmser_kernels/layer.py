"""What the layers of `lmser_kernels.nn` share: checked constructor arguments, parameters, representation."""

from __future__ import annotations

import math

import torch
from torch import nn

from lmser_kernels import activation as activations
from lmser_kernels.arguments import Pair, pair
from lmser_kernels.dispatch import IMPLEMENTATIONS


class Activated(nn.Module):
    """A layer that ends in an activation: keeps its name, its slope and the implementation asked for."""

    def __init__(self, activation: str, slope: float | None, impl: str) -> None:
        super().__init__()
        activations.check(activation, slope)
        if impl not in IMPLEMENTATIONS:
            raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")
        self.activation, self.slope, self.impl = activation, slope, impl

    def _activation_repr(self) -> str:
        slope = "" if self.slope is None else f", slope={self.slope}"
        impl = "" if self.impl == "auto" else f", impl={self.impl!r}"
        return f"activation={self.activation!r}{slope}{impl}"


class Weighted(Activated):
    """A layer with one weight and perhaps a bias, initialised as `torch.nn`'s are: U(±1/√fan_in)."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def _make_parameters(
        self,
        shape: tuple[int, ...],
        channels: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weight and bias as `nn.Conv2d` and `nn.Linear` do."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)


class Convolution(Weighted):
    """A layer with `nn.Conv2d`'s arguments; `transposed` says which end of the weight its input is."""

    transposed = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        activation: str = "identity",
        slope: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        impl: str = "auto",
    ) -> None:
        super().__init__(activation, slope, impl)
        for name, count in (("in_channels", in_channels), ("out_channels", out_channels)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be a positive int; got {count!r}")
        if pair("dilation", dilation, 1) != (1, 1):
            raise ValueError(f"dilation must be 1, the kernels have no other; got {dilation!r}")
        if groups != 1:
            raise ValueError(f"groups must be 1, the kernels have no other; got {groups!r}")
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode must be 'zeros', the kernels have no other; got {padding_mode!r}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = pair("kernel_size", kernel_size, 1)
        self.stride = pair("stride", stride, 1)
        self.padding = self._resolve_padding(padding)
        edge = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        self._make_parameters((*edge, *self.kernel_size), out_channels, bias, device, dtype)

    def _resolve_padding(self, padding: Pair | str) -> tuple[int, int]:
        if padding == "valid":
            return 0, 0
        if padding == "same":
            if self.stride != (1, 1):
                raise ValueError(f"padding='same' needs stride 1; got stride {self.stride}")
            if self.kernel_size[0] % 2 == 0 or self.kernel_size[1] % 2 == 0:
                raise ValueError(f"padding='same' needs an odd kernel_size; got {self.kernel_size}")
            return self.kernel_size[0] // 2, self.kernel_size[1] // 2
        if isinstance(padding, str):
            raise ValueError(f"padding must be an int, a pair of ints, 'same' or 'valid'; got {padding!r}")
        return pair("padding", padding, 0)

    def extra_repr(self) -> str:
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )
        if self.padding != (0, 0):
            text += f", padding={self.padding}"
        if self.bias is None:
            text += ", bias=False"
        return f"{text}, {self._activation_repr()}"
