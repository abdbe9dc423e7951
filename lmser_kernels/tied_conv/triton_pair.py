"""Both directions of one tied weight in one launch."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from lmser_kernels.tied_conv.triton_down import down_tile
from lmser_kernels.tied_conv.triton_up import up_tile


@triton.jit
def conv_pair(
    x, x_n, x_h, x_w, weight_up, up_k, up_n, up_h, up_w, y, y_n, y_c, y_h, y_w,
    z, z_n, z_h, z_w, weight_down, down_k, down_n, down_h, down_w, u, u_n, u_c, u_h, u_w,
    images, c_in, height, width, c_out, out_height, out_width,
    taps_h, taps_w, stride_h, stride_w, padding_h, padding_w, up_tiles, down_tiles,
    UP_OUT_ALIGN: tl.constexpr, UP_FLAT: tl.constexpr, UP_ALIGN: tl.constexpr, UP_K_ALIGN: tl.constexpr,
    UP_N_ALIGN: tl.constexpr, UP_WIDE: tl.constexpr, UP_BLOCK_M: tl.constexpr, UP_BLOCK_N: tl.constexpr,
    UP_BLOCK_K: tl.constexpr,
    DOWN_OUT_ALIGN: tl.constexpr, DOWN_FLAT: tl.constexpr, DOWN_ALIGN: tl.constexpr, DOWN_K_ALIGN: tl.constexpr,
    DOWN_N_ALIGN: tl.constexpr, DOWN_WIDE: tl.constexpr, DOWN_BLOCK_M: tl.constexpr, DOWN_BLOCK_N: tl.constexpr,
    DOWN_BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`y = conv(x)` in the first `up_tiles` blocks, `u = convᵀ(z)` in the others, `down_tiles` of each phase."""
    tile = tl.program_id(0)
    if tile < up_tiles:
        up_tile(
            tile, 0,
            x, x_n, x_h, x_w, None, None, None, None, None, None, None, None, None, None, None, None,
            weight_up, up_k, up_n, up_h, up_w,
            y, None, y_n, y_c, y_h, y_w, None, 0, 0, 0, 0, None, 0, 0, 0, 0, None, 0, None,
            images, c_in, height, width, c_out, out_height, out_width,
            taps_h, taps_w, stride_h, stride_w, padding_h, padding_w,
            1, 1, 1, False, "identity", 0.0, 0.0, "identity", 0.0, 0.0, UP_OUT_ALIGN,
            UP_FLAT, UP_ALIGN, UP_K_ALIGN, UP_N_ALIGN, UP_WIDE, PRECISION, UP_BLOCK_M, UP_BLOCK_N, UP_BLOCK_K,
        )  # fmt: skip
    else:
        tile -= up_tiles
        down_tile(
            tile % down_tiles, tile // down_tiles, 0,
            z, z_n, z_h, z_w, None, None, None, None, None, None, None, None, None, None, None, None,
            weight_down, down_k, down_n, down_h, down_w,
            u, None, u_n, u_c, u_h, u_w, None, 0, 0, 0, 0, None, 0, 0, 0, 0, None, 0, None,
            images, c_out, out_height, out_width, c_in, height, width, height, width,
            taps_h, taps_w, stride_h, stride_w, padding_h, padding_w,
            1, 1, 1, False, "identity", 0.0, 0.0, "identity", 0.0, 0.0, DOWN_OUT_ALIGN,
            DOWN_FLAT, DOWN_ALIGN, DOWN_K_ALIGN, DOWN_N_ALIGN, DOWN_WIDE, PRECISION,
            DOWN_BLOCK_M, DOWN_BLOCK_N, DOWN_BLOCK_K,
        )  # fmt: skip
