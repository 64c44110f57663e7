"""Robust_adv on LSUN Bedroom at 256 x 256, streamed from the disk.

  python -m rad_jax.main --config=configs/lsun_bedroom.py --mode=prepare_data
  python -m rad_jax.main --config=configs/lsun_bedroom.py \
    --config.data.corruption.fraction=0.9

The network is the LSUN one of Ho et al. 2020, appendix B (114 M parameters).
The paper reports FID 44.3 at 90% and sigma 0.2 (DDPM: 95.9); its own settings
are not public in full. Preparing needs
`pip install "rad_jax[lsun]"`.

Expected result and time: not run here.
"""

from rad_jax import config as schema


def get_config(variant: str = ""):
  config = schema.default()
  config.data.update(name="lsun/bedroom", image_size=256, loading="stream")
  config.model.dtype = "bfloat16"
  config.model.unet.update(
    channel_multipliers=(1, 1, 2, 2, 4, 4), dropout=0.0, remat=True
  )
  config.optimizer.learning_rate = 2e-5
  config.train.update(batch_size=64, num_steps=2_400_000)
  config.sampling.update(num_samples=16, batch_size=16)
  return schema.variant(config, variant)
