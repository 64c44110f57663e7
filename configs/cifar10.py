"""Robust_adv on CIFAR-10, with DDPM's network and optimiser.

  python -m rad_jax.main --config=configs/cifar10.py --mode=prepare_data
  python -m rad_jax.main --config=configs/cifar10.py \
    --config.data.corruption.fraction=0.9

The network is the 35.75 M parameter U-Net of Ho et al. 2020, sampled with the
large variance, as theirs on CIFAR-10. The paper's own settings are not public
in full; 90% of the images noised at sigma 0.2 is its central experiment,
reported there with FID 24.8 (DDPM: 102.7).

Expected result and time: not run here (800,000 steps need an accelerator).
"""

from rad_jax import config as schema


def get_config(variant: str = ""):
  config = schema.default()
  config.sampling.variance = "large"
  return schema.variant(config, variant)
