"""Adversarial training of the noise predictor: the paper's ideas."""
