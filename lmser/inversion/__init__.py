"""Networks sent back through their own transpose, and learning with few labels (003)."""

from lmser.inversion.gated import Activation, Gated, Step, conv_down, conv_step, gated, has_rules
from lmser.inversion.invert import Inverted, invert, inverted
from lmser.inversion.learned_weights import LearnedWeights
from lmser.inversion.losses import UNLABELLED, cross_entropy, entropy, reconstruction_error
from lmser.inversion.semi_supervised import SemiSupervised, Terms

__all__ = [
    "UNLABELLED",
    "Activation",
    "Gated",
    "Inverted",
    "LearnedWeights",
    "SemiSupervised",
    "Step",
    "Terms",
    "conv_down",
    "conv_step",
    "cross_entropy",
    "entropy",
    "gated",
    "has_rules",
    "invert",
    "inverted",
    "reconstruction_error",
]
