"""Robust diffusion training in JAX: adversarial training that is equivariant.

After "Why Adversarially Train Diffusion Models?" (Briglia et al., ICLR 2026,
arXiv 2505.21742).
"""

__version__ = "0.1.0"
