"""The eager oracle of every public operation under its public name: the specification in code."""

from lmser_kernels.add_act.reference import add_act
from lmser_kernels.settle.reference import settle, settle_step
from lmser_kernels.tied_conv.reference import conv2d_add_act, conv_transpose2d_add_act, tied_conv2d

__all__ = ["add_act", "conv2d_add_act", "conv_transpose2d_add_act", "settle", "settle_step", "tied_conv2d"]
