"""Robust_adv on CelebA at 64 x 64: the central 140 pixels, resized.

  python -m rad_jax.main --config=configs/celeba64.py --mode=prepare_data
  python -m rad_jax.main --config=configs/celeba64.py \
    --config.data.corruption.fraction=0.9

The crop is the one usual since DDIM. The paper reports FID 16.5 at 90% and
sigma 0.2 (DDPM: 96.0); its own settings are not public in full.

Expected result and time: not run here. The set needs about 2.5 GB of memory.
"""

from rad_jax import config as schema


def get_config(variant: str = ""):
  config = schema.default()
  config.data.update(name="celeb_a", crop_size=140, image_size=64)
  config.model.unet.channel_multipliers = (1, 2, 2, 2, 4)
  config.train.num_steps = 500_000
  return schema.variant(config, variant)
