"""Robust_adv on CIFAR-10 with EDM's process, preconditioning and sampler.

  python -m rad_jax.main --config=configs/cifar10_edm.py --mode=prepare_data
  python -m rad_jax.main --config=configs/cifar10_edm.py \
    --config.data.corruption.fraction=0.9

ln sigma normal (-1.2, 1.2), the network's output F preconditioned, 18 Heun
steps (35 network evaluations), as in table 1 of Karras et al. 2022 (arXiv
2206.00364). The network is DDPM's U-Net, as in configs/cifar10.py, so that
the two differ only in the process; EDM's own is larger. The radius follows
the signal-to-noise ratio, sigma_t = sigma / sqrt(1 + sigma^2): a reading of
ours, as the paper trains DDPM.

Expected result and time: not run here (it needs an accelerator).
"""

from rad_jax import config as schema


def get_config(variant: str = ""):
  config = schema.default()
  config.diffusion.update(process="edm", prediction="edm")
  config.sampling.update(sampler="heun", num_steps=18)
  return schema.variant(config, variant)
