"""What the networks of `lmser.models` are measured against, in plain PyTorch."""

from lmser.baselines.eager import EagerCLmser, EagerLmser
from lmser.baselines.unet import UNet

__all__ = ["EagerCLmser", "EagerLmser", "UNet"]
