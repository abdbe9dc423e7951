"""What the networks of `lmser.models` are measured against."""

from lmser.baselines.audio_cnn import AudioCNN
from lmser.baselines.classifiers import CNN, FCN
from lmser.baselines.denoising_vae import DenoisingVAE
from lmser.baselines.eager import EagerCLmser, EagerLmser
from lmser.baselines.ebgan import EBGAN
from lmser.baselines.inpainting_loss import InpaintingLoss
from lmser.baselines.pconv import PConvUNet
from lmser.baselines.pennet import PENNet
from lmser.baselines.picnet import PICNet
from lmser.baselines.residual import InhibitorConv2d, ResidualBlock
from lmser.baselines.topologies import TOPOLOGIES, LargeCNN, ResNet, SmallCNN
from lmser.baselines.unet import UNet

__all__ = [
    "CNN",
    "EBGAN",
    "FCN",
    "TOPOLOGIES",
    "AudioCNN",
    "DenoisingVAE",
    "EagerCLmser",
    "EagerLmser",
    "InhibitorConv2d",
    "InpaintingLoss",
    "LargeCNN",
    "PConvUNet",
    "PENNet",
    "PICNet",
    "ResNet",
    "ResidualBlock",
    "SmallCNN",
    "UNet",
]
