"""The eager oracle of every public operation under its public name: the specification in code."""

from lmser_kernels.add_act.reference import add_act, pull_back
from lmser_kernels.max_pool.reference import max_pool2d_act, max_unpool2d
from lmser_kernels.reflect.reference import reflect, reflect_loss
from lmser_kernels.settle.reference import settle, settle_step
from lmser_kernels.tied_conv.reference import conv2d_add_act, conv_transpose2d_add_act, tied_conv2d

__all__ = [
    "add_act",
    "conv2d_add_act",
    "conv_transpose2d_add_act",
    "max_pool2d_act",
    "max_unpool2d",
    "pull_back",
    "reflect",
    "reflect_loss",
    "settle",
    "settle_step",
    "tied_conv2d",
]
