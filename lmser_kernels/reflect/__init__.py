"""Reflection: whole passes up and down through tied weights as one operation."""
