"""How fast rad_jax is, beside what its users would pick instead."""
