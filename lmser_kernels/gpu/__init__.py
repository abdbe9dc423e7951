"""What the Triton kernels of every operation share, and `tune`, which measures their tiles. Imports Triton."""

from lmser_kernels.gpu.tuning import tune

__all__ = ["tune"]
