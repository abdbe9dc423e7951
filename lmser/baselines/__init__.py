"""What the networks of `lmser.models` are measured against."""

from lmser.baselines.classifiers import CNN, FCN
from lmser.baselines.denoising_vae import DenoisingVAE
from lmser.baselines.eager import EagerCLmser, EagerLmser
from lmser.baselines.inpainting_loss import InpaintingLoss
from lmser.baselines.pconv import PConvUNet
from lmser.baselines.pennet import PENNet
from lmser.baselines.picnet import PICNet
from lmser.baselines.unet import UNet

__all__ = [
    "CNN",
    "FCN",
    "DenoisingVAE",
    "EagerCLmser",
    "EagerLmser",
    "InpaintingLoss",
    "PConvUNet",
    "PENNet",
    "PICNet",
    "UNet",
]
