"""Robust_adv on ImageNet at 64 x 64, streamed from the disk.

  python -m rad_jax.main --config=configs/imagenet64.py --mode=prepare_data
  python -m rad_jax.main --config=configs/imagenet64.py \
    --config.data.corruption.fraction=0.9

Width, depth, attention and the cosine schedule follow the ImageNet 64 setting
of Nichol & Dhariwal 2021, with T = 1000 and one class-free network: ours. The
paper reports FID 80.3 at 90% and sigma 0.2 (DDPM: 129.4); its own settings
are not public in full.

Expected result and time: not run here.
"""

from rad_jax import config as schema


def get_config(variant: str = ""):
  config = schema.default()
  config.data.update(
    name="downsampled_imagenet/64x64", image_size=64, loading="stream"
  )
  config.diffusion.schedule = "cosine"
  config.model.unet.update(
    channel_multipliers=(1, 2, 3, 4),
    num_res_blocks=3,
    attention_resolutions=(16, 8),
    dropout=0.0,
  )
  config.optimizer.learning_rate = 1e-4
  config.train.num_steps = 1_500_000
  return schema.variant(config, variant)
