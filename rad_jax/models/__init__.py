"""Noise-prediction networks; the only package that knows flax.linen."""
