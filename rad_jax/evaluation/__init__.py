"""Evaluation: samples, and how far they are from the truth."""
