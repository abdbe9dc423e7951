"""The fused operations as layers, with `torch.nn`'s argument names, initialisation and `state_dict` keys.

A `Conv2dAddAct` loads an `nn.Conv2d`'s state, a `ConvTranspose2dAddAct` an `nn.ConvTranspose2d`'s, a
`TiedLinear` an `nn.Linear`'s; with the same seed they also start from the same values. What the kernels do
not have (dilation, groups, a padding mode other than zeros) is refused by the constructor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmser_kernels.add_act.api import add_act
from lmser_kernels.arguments import Pair, pair
from lmser_kernels.layer import Activated, Convolution, Weighted
from lmser_kernels.max_pool.api import max_pool2d_act
from lmser_kernels.max_pool.reference import windows
from lmser_kernels.settle.module import Settle
from lmser_kernels.tied_conv.api import conv2d_add_act, conv_transpose2d_add_act, tied_conv2d

__all__ = [
    "AddAct",
    "Conv2dAddAct",
    "ConvTranspose2dAddAct",
    "MaxPool2dAct",
    "Settle",
    "TiedConv2d",
    "TiedLinear",
]


class Conv2dAddAct(Convolution):
    """`h = f(conv(avg_pool(x)) + bias + add)`; see `lmser_kernels.conv2d_add_act`.

    Arguments are `nn.Conv2d`'s, in its order, then `activation`, `slope`, `device`, `dtype`, and by keyword
    `pool` (the average pool before the convolution) and `impl`. `state_dict` keys `weight (C_out, C_in, kh,
    kw)` and `bias`.
    """

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
        pool: Pair = 1,
        impl: str = "auto",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            activation,
            slope,
            device,
            dtype,
            impl=impl,
        )
        self.pool = pair("pool", pool, 1)

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        return conv2d_add_act(
            x,
            self.weight,
            add,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            pool=self.pool,
            activation=self.activation,
            slope=self.slope,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        pool = "" if self.pool == (1, 1) else f", pool={self.pool}"
        return super().extra_repr() + pool


class ConvTranspose2dAddAct(Convolution):
    """`h = f(up(convᵀ(z)) + bias + add) · [gate > 0]`; see `lmser_kernels.conv_transpose2d_add_act`.

    Arguments as `Conv2dAddAct`'s, where `in_channels` are `z`'s; by keyword `output_padding` (what the
    output size has beyond the smallest possible, when `forward` is not given one), `upsample` and `impl`.
    `weight` is that of the convolution whose other direction this is, `(in_channels, out_channels, kh,
    kw)`, which is `nn.ConvTranspose2d`'s layout too.
    """

    transposed = True

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
        output_padding: Pair = 0,
        upsample: Pair = 1,
        impl: str = "auto",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            activation,
            slope,
            device,
            dtype,
            impl=impl,
        )
        self.output_padding = pair("output_padding", output_padding, 0)
        if self.output_padding[0] >= self.stride[0] or self.output_padding[1] >= self.stride[1]:
            raise ValueError(
                f"output_padding must be less than the stride {self.stride}; got {output_padding!r}"
            )
        self.upsample = pair("upsample", upsample, 1)

    def forward(
        self,
        z: Tensor,
        add: Tensor | None = None,
        output_size: Pair | None = None,
        gate: Tensor | None = None,
        gate_slope: float = 0.0,
    ) -> Tensor:
        if output_size is None and self.output_padding != (0, 0) and z.dim() == 4:
            output_size = tuple(
                (z.shape[2 + i] - 1) * self.stride[i]
                - 2 * self.padding[i]
                + self.kernel_size[i]
                + self.output_padding[i]
                for i in (0, 1)
            )
        return conv_transpose2d_add_act(
            z,
            self.weight,
            add,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            output_size=output_size,
            upsample=self.upsample,
            gate=gate,
            gate_slope=gate_slope,
            activation=self.activation,
            slope=self.slope,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.output_padding != (0, 0):
            text += f", output_padding={self.output_padding}"
        return text if self.upsample == (1, 1) else f"{text}, upsample={self.upsample}"


class TiedConv2d(Convolution):
    """One weight, both directions: an edge between two layers.

        up     forward(x, add)                    h = f(conv(x) + bias + add)
        down   transpose(z, add, output_size)     h = f(convᵀ(z) + bias_below + add) [· gate > 0]
        both   drives(x, z)                       (conv(x), convᵀ(z)), with one weight gradient

    Arguments are `nn.Conv2d`'s, in its order, then `activation`, `slope`, `device`, `dtype`. `bias` belongs
    to the layer above, so only `forward` adds it. The layer below has its own, one per channel, shared with
    the edge beneath it: hand it to `transpose` as `bias`. So the `state_dict` has `weight` and `bias` and
    nothing else.
    """

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        return conv2d_add_act(
            x,
            self.weight,
            add,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            activation=self.activation,
            slope=self.slope,
            impl=self.impl,
        )

    def transpose(
        self,
        z: Tensor,
        add: Tensor | None = None,
        output_size: Pair | None = None,
        *,
        bias: Tensor | None = None,
        gate: Tensor | None = None,
        gate_slope: float = 0.0,
    ) -> Tensor:
        """`f(convᵀ(z) + bias + add)`, of `output_size` (None: the smallest one possible)."""
        return conv_transpose2d_add_act(
            z,
            self.weight,
            add,
            bias,
            stride=self.stride,
            padding=self.padding,
            output_size=output_size,
            gate=gate,
            gate_slope=gate_slope,
            activation=self.activation,
            slope=self.slope,
            impl=self.impl,
        )

    def drives(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The bare drives `(conv(x), convᵀ(z))`; see `lmser_kernels.tied_conv2d`."""
        return tied_conv2d(x, z, self.weight, stride=self.stride, padding=self.padding, impl=self.impl)


class TiedLinear(Weighted):
    """One weight `(out_features, in_features)`, both directions, on `(N, features)` input.

        up     forward(x, add)       h = f(x Wᵀ + bias + add)
        down   transpose(z, add)     h = f(z W + bias_below + add)

    The bias belongs to the layer above, as in `TiedConv2d`. Runs on the convolution's kernels,
    as one pixel.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str = "identity",
        slope: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        impl: str = "auto",
    ) -> None:
        super().__init__(activation, slope, impl)
        for name, count in (("in_features", in_features), ("out_features", out_features)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name} must be a positive int; got {count!r}")
        self.in_features, self.out_features = in_features, out_features
        self._make_parameters((out_features, in_features), out_features, bias, device, dtype)

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        return _rows(
            conv2d_add_act(
                _pixels("x", x),
                _pixels("weight", self.weight),
                None if add is None else _pixels("add", add),
                self.bias,
                activation=self.activation,
                slope=self.slope,
                impl=self.impl,
            )
        )

    def transpose(self, z: Tensor, add: Tensor | None = None, *, bias: Tensor | None = None) -> Tensor:
        """`f(z W + bias + add)`."""
        return _rows(
            conv_transpose2d_add_act(
                _pixels("z", z),
                _pixels("weight", self.weight),
                None if add is None else _pixels("add", add),
                bias,
                activation=self.activation,
                slope=self.slope,
                impl=self.impl,
            )
        )

    def extra_repr(self) -> str:
        bias = "" if self.bias is not None else ", bias=False"
        return f"{self.in_features}, {self.out_features}{bias}, {self._activation_repr()}"


class AddAct(Activated):
    """`h = f(y + u + bias)`; see `lmser_kernels.add_act`. With `channels`, a bias for each, zero at first."""

    bias: nn.Parameter | None

    def __init__(
        self,
        activation: str = "relu",
        slope: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        channels: int | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__(activation, slope, impl)
        if channels is None:
            self.register_parameter("bias", None)
        else:
            self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))

    def forward(self, y: Tensor, u: Tensor | None = None) -> Tensor:
        return add_act(y, u, self.bias, activation=self.activation, slope=self.slope, impl=self.impl)

    def extra_repr(self) -> str:
        channels = "" if self.bias is None else f", channels={self.bias.shape[0]}"
        return self._activation_repr() + channels


class MaxPool2dAct(Activated):
    """`h = f(max_pool(x))`; see `lmser_kernels.max_pool2d_act`. Arguments as `nn.MaxPool2d`'s, then `activation`
    and `slope`."""

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Pair = 0,
        activation: str = "identity",
        slope: float | None = None,
        *,
        impl: str = "auto",
    ) -> None:
        super().__init__(activation, slope, impl)
        self.kernel_size, self.stride, self.padding = windows(kernel_size, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return max_pool2d_act(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            activation=self.activation,
            slope=self.slope,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        padding = "" if self.padding == (0, 0) else f", padding={self.padding}"
        return f"{self.kernel_size}, stride={self.stride}{padding}, {self._activation_repr()}"


def _pixels(name: str, rows: Tensor) -> Tensor:
    """`(N, F)` as `(N, F, 1, 1)`."""
    if not isinstance(rows, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(rows).__name__}")
    if rows.dim() != 2:
        raise ValueError(f"{name} must be 2-D, (N, features); got shape {tuple(rows.shape)}")
    return rows.view(rows.shape[0], rows.shape[1], 1, 1)


def _rows(pixels: Tensor) -> Tensor:
    return pixels.view(pixels.shape[0], pixels.shape[1])
