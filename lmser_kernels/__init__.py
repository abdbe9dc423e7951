"""Fused operations on one convolution weight used in both directions. See each function for its equation."""

from lmser_kernels import nn, reference
from lmser_kernels._library import empty_cache
from lmser_kernels.add_act.api import add_act, pull_back
from lmser_kernels.explain import explain
from lmser_kernels.max_pool.api import max_pool2d_act, max_unpool2d
from lmser_kernels.reflect.api import Reflection, reflect
from lmser_kernels.reflect.loss import reflect_loss
from lmser_kernels.settle.api import settle, settle_step
from lmser_kernels.settle.result import Settled
from lmser_kernels.tied_conv.api import conv2d_add_act, conv_transpose2d_add_act, tied_conv2d

__all__ = [
    "Reflection",
    "Settled",
    "add_act",
    "conv2d_add_act",
    "conv_transpose2d_add_act",
    "empty_cache",
    "explain",
    "max_pool2d_act",
    "max_unpool2d",
    "nn",
    "pull_back",
    "reference",
    "reflect",
    "reflect_loss",
    "settle",
    "settle_step",
    "tied_conv2d",
]
