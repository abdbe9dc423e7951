"""Settling to a fixed point: the update of one layer from both neighbours, and the whole loop."""
