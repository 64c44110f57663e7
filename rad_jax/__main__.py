"""`python -m rad_jax` is `python -m rad_jax.main`."""

from rad_jax import main

if __name__ == "__main__":
  main.run()
