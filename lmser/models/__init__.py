"""The reflection networks of 000 and 001 on fully connected (`Lmser`) and convolutional (`CLmser`) layers, and the
attractor networks of 004 (`FBAN`, `CBAN`)."""

from lmser.models.attractor import AttractorNetwork
from lmser.models.attractor_loss import attractor_loss, delta_e
from lmser.models.cban import CBAN
from lmser.models.clmser import CLmser
from lmser.models.fban import FBAN
from lmser.models.lmser import Lmser
from lmser.models.reflection import Reflected, ReflectionNetwork, reflection_loss

__all__ = [
    "CBAN",
    "FBAN",
    "AttractorNetwork",
    "CLmser",
    "Lmser",
    "Reflected",
    "ReflectionNetwork",
    "attractor_loss",
    "delta_e",
    "reflection_loss",
]
