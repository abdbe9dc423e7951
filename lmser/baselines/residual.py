"""The residual block that 003 writes down, and a convolution with inhibitor connections."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lmser.baselines.residual_passes import Blocks, operators_for, residual_down, residual_up
from lmser.inversion.gated import Activation, Step, conv_down, conv_step
from lmser.inversion.step import laid_out_as
from lmser_kernels import conv2d_add_act
from lmser_kernels.nn import Conv2dAddAct

__all__ = ["InhibitorConv2d", "ResidualBlock"]


class InhibitorConv2d(Conv2dAddAct):
    """A convolution without biases whose units inhibit each other:

        h_c = f(v_c - mean_c' v_c'),    v = conv(avg_pool(x), W)

    Each unit receives, through inhibitor connections, the mean drive of all units of its position: those above the
    mean share the activity, the others are silent, and no bias is needed as a threshold. It is a convolution with the
    weight `W - mean over output channels of W`, and runs as one.

    003 names "inhibitor DNN ... which remove biases units via introduction of winner-share-all connections" and leaves
    the rule to a manuscript that is not public: this subtraction is our reading of it. It is linear in `v`, so that
    003's Eq. (6) applies as it stands.

    Arguments as `Conv2dAddAct`'s, but for `bias`, which there is none of.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        activation: str = "identity",
        slope: float | None = None,
        *,
        pool: int | tuple[int, int] = 1,
        impl: str = "auto",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding,
            bias=False, activation=activation, slope=slope, pool=pool, impl=impl,
        )  # fmt: skip

    def inhibited_weight(self) -> Tensor:
        """`W - mean_c W_c`, of the shape of `weight`."""
        return self.weight - self.weight.mean(0, keepdim=True)

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        return self._up(x, self.inhibited_weight(), add)

    def _up(self, x: Tensor, weight: Tensor, add: Tensor | None = None) -> Tensor:
        return conv2d_add_act(
            x,
            weight,
            add,
            stride=self.stride,
            padding=self.padding,
            pool=self.pool,
            activation=self.activation,
            slope=self.slope,
            impl=self.impl,
        )

    def gated(self, x: Tensor, f: Activation | None) -> Step:
        weight = self.inhibited_weight()
        own = None if self.activation == "identity" else Activation(self.activation, self.slope)
        return conv_step(
            x, f, self._up(x, weight), weight, own,
            stride=self.stride, padding=self.padding, pool=self.pool, impl=self.impl,
        )  # fmt: skip


class ResidualBlock(nn.Module):
    """`h = f(C_in x + b_in) + C_out x + b_out` (003 Eq. 3), with an average pool before both.

    in_channels, out_channels: of the block
    pool:       of the average pool
    activation, slope: `f`
    inhibitor:  `C_in` is an `InhibitorConv2d`, and there are no biases

    `C_in` is a 3x3 convolution and `C_out` a 1x1 one, both with stride 1 and the size kept; the sum is formed where
    `C_out` is written.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        pool: int = 1,
        activation: str = "relu",
        slope: float | None = None,
        inhibitor: bool = False,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        self.inner: Conv2dAddAct = (InhibitorConv2d if inhibitor else Conv2dAddAct)(
            in_channels, out_channels, 3, 1, 1, activation=activation, slope=slope, pool=pool, impl=impl
        )
        self.outer = Conv2dAddAct(in_channels, out_channels, 1, bias=not inhibitor, pool=pool, impl=impl)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.outer(x, self.inner(x))
        return h

    def gated(self, x: Tensor, f: Activation | None) -> Step:
        step, _ = self.gated_in_turn([self], x, f)
        return step

    @staticmethod
    def gated_in_turn(blocks: Sequence[ResidualBlock], x: Tensor, f: Activation | None) -> tuple[Step, int]:
        """As many of `blocks` as can go up in one call and down in another, one at least, and how many."""
        first = blocks[0]
        activation, impl = Activation(first.inner.activation, first.inner.slope), first.inner.impl
        # The leaks of what can be told by a sign.
        leak, slope = activation.gate_slope, 0.0 if f is None else f.gate_slope
        # Asked before the weights, some of which are made for the call.
        ops = None if leak is None or slope is None else operators_for(x, impl)
        passed = None if ops is None else _alike(blocks, x, activation, impl)
        if ops is None or passed is None:
            return first._gated_by_layers(x, f, _weight(first.inner), activation), 1
        gate, size = (None if f is None else x, slope or 0.0), (x.shape[2], x.shape[3])
        output, opened = residual_up(ops, x, passed)

        def pull(g: Tensor) -> Tensor:
            u = residual_down(ops, laid_out_as(g, output), passed, opened=opened, gate=gate, size=size)
            return laid_out_as(u, x)

        return Step(output, None, pull), len(passed.inner)

    def _gated_by_layers(
        self, x: Tensor, f: Activation | None, weight: Tensor, activation: Activation
    ) -> Step:
        inner = self.inner
        r = inner._up(x, weight) if isinstance(inner, InhibitorConv2d) else inner(x)
        output = self.outer(x, r)

        def pull(g: Tensor) -> Tensor:
            by_outer = conv_down(g, x, None, self.outer.weight, pool=self.outer.pool, impl=inner.impl)
            height, width = (x.shape[i] // inner.pool[i - 2] * inner.pool[i - 2] for i in (2, 3))
            if (height, width) != tuple(x.shape[2:]):  # what no window takes in
                by_outer = by_outer[:, :, :height, :width]
            return conv_down(
                g, x, f, weight, by_outer, (activation, r),
                padding=inner.padding, pool=inner.pool, impl=inner.impl,
            )  # fmt: skip

        return Step(output, None, pull)


def _weight(inner: Conv2dAddAct) -> Tensor:
    return inner.inhibited_weight() if isinstance(inner, InhibitorConv2d) else inner.weight


def _alike(blocks: Sequence[ResidualBlock], x: Tensor, activation: Activation, impl: str) -> Blocks | None:
    """The first of `blocks`, as far as one call takes them all: of `x`'s dtype, with the same activation and kernels,
    biases or none, channels that go together and windows that take in all of what is pooled; None where that is not
    one, and the layers say what does not fit."""
    found = Blocks([], [], [], [], [], [], activation.name, activation.gate_slope or 0.0)
    has_biases = blocks[0].outer.bias is not None
    dtype, device, (channels, height, width) = x.dtype, x.device, x.shape[1:]
    for block in blocks:
        inner, outer, pool = block.inner, block.outer, block.inner.pool
        biases = [layer.bias for layer in (inner, outer) if layer.bias is not None]
        if (
            Activation(inner.activation, inner.slope) != activation
            or (inner.impl, outer.impl) != (impl, impl)
            or len(biases) != 2 * has_biases
            or any(w.dtype != dtype or w.device != device for w in (inner.weight, outer.weight))
            or (inner.in_channels, outer.in_channels) != (channels, channels)
            or height % pool[0]
            or width % pool[1]
        ):
            break
        channels, height, width = outer.out_channels, height // pool[0], width // pool[1]
        found.inner.append(_weight(inner))
        found.outer.append(outer.weight)
        if has_biases:
            found.inner_bias.append(biases[0])
            found.outer_bias.append(biases[1])
        found.padding.append(inner.padding)
        found.pool.append(pool)
    return found if found.inner else None
