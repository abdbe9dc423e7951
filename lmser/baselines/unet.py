"""U-Net, modified for the reconstruction of images (001 Table 4)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lmser.models.reflection import Reflected, channels_last, reflection_loss, whole
from lmser_kernels.nn import Conv2dAddAct, ConvTranspose2dAddAct


class UNet(nn.Module):
    """The U-Net that 001 compares CLmser-w with: skip connections without shared weights.

        up        h_l = relu(conv(h_{l-1}))                                l = 1 ... L, stride s_l
        down      h_l ← relu(conv(cat(h_l, relu(conv_transpose(h_{l+1})))))    l = L-1 ... 1
        readout   reconstruction = conv_transpose(h_1), no activation

    001 says only that U-Net (Ronneberger et al. 2015) was "modified for image reconstruction" and that its
    two signals "are concatenated first and then the neuron values are calculated via a convolution" (4.1).
    The choices made here:

    - the ladder of channels and strides is CLmser's, so that the code has the same size; strided convolutions
      take the place of pooling, and there is one convolution per level on the way up, as in CLmser
    - on the way down a transposed convolution to the channels and the size of the level below, concatenation,
      and one 3x3 convolution back to that level's channels; the concatenation makes it about three times
      CLmser-w's decoder
    - padded convolutions and pinned sizes, so that the output has the size of the input whatever its parity
      (the original crops); no dropout, no normalisation; nn.Conv2d's default initialisation

    Its layers are those of `lmser_kernels`, as CLmser's are, so that times compare the networks; its
    ``state_dict`` is that of `nn.Conv2d` and `nn.ConvTranspose2d` layers.

    in_channels, channels, strides, kernel_size: as in `lmser.CLmser` (`kernel_size` odd). Input ``(N,
    in_channels, H, W)``; returns `Reflected` with the deepest state as code and no logits. Raises TypeError
    or ValueError naming the argument.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        kernel_size: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        channels, strides = tuple(channels), tuple(strides)
        whole("in_channels", in_channels)
        if not channels:
            raise ValueError("channels: expected at least one layer, got none")
        if len(strides) != len(channels):
            raise ValueError(
                f"strides: expected one for each of the {len(channels)} layers, got {len(strides)}"
            )
        for name, values in (("channels", channels), ("strides", strides), ("kernel_size", (kernel_size,))):
            for value in values:
                whole(name, value)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        self.in_channels = in_channels
        widths, padding = (in_channels, *channels), kernel_size // 2

        def convolution(below: int, above: int, stride: int) -> Conv2dAddAct:
            return Conv2dAddAct(
                below, above, kernel_size, stride, padding, activation="relu", device=device, dtype=dtype
            )

        def transposed(above: int, below: int, stride: int, activation: str) -> ConvTranspose2dAddAct:
            return ConvTranspose2dAddAct(
                above, below, kernel_size, stride, padding, activation=activation, device=device, dtype=dtype
            )

        edges = list(zip(pairwise(widths), strides, strict=True))
        activations = ["identity"] + ["relu"] * (len(edges) - 1)
        self.down = nn.ModuleList([convolution(low, high, stride) for (low, high), stride in edges])
        self.up = nn.ModuleList(
            [
                transposed(high, low, stride, activation)
                for ((low, high), stride), activation in zip(edges, activations, strict=True)
            ]
        )
        self.fuse = nn.ModuleList([convolution(2 * width, width, 1) for width in channels[:-1]])

    def forward(self, x: Tensor) -> Reflected:
        """Reconstruct images ``(N, in_channels, H, W)``."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x: expected shape (N, {self.in_channels}, H, W), got {tuple(x.shape)}")
        states = [channels_last(x)]
        for contract in self.down:
            states.append(channels_last(contract(states[-1])))
        state = code = states[-1]
        for level in range(len(states) - 2, 0, -1):
            skip = states[level]
            rising = self.up[level](state, output_size=tuple(skip.shape[2:]))
            state = channels_last(self.fuse[level - 1](torch.cat((skip, rising), dim=1)))
        return Reflected(self.up[0](state, output_size=tuple(x.shape[2:])), code, None)

    def loss(self, x: Tensor) -> Tensor:
        """`lmser.models.reflection_loss` of the output for `x`."""
        return reflection_loss(self(x), channels_last(x))
