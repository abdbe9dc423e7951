"""The reflection networks of 000 and 001 on fully connected (`Lmser`) and convolutional (`CLmser`) layers."""

from lmser.models.clmser import CLmser
from lmser.models.lmser import Lmser
from lmser.models.reflection import Reflected, ReflectionNetwork, reflection_loss

__all__ = ["CLmser", "Lmser", "Reflected", "ReflectionNetwork", "reflection_loss"]
