"""Robust_adv on scikit-learn's digits, 90% of them noised at sigma 0.2.

  python -m rad_jax.main --config=configs/digits.py --mode=prepare_data
  python -m rad_jax.main --config=configs/digits.py
  python -m rad_jax.main --config=configs/digits.py --mode=evaluate

The set is projected on its 16 leading principal components, so that its true
subspace is known; --config.data.linear_rank=0 takes the digits as they are,
--config.model.name=unet the small U-Net. clip_x_0 is off: noised and projected
images leave [-1, 1].

Expected: support_rms 0.65 (DDPM 1.20), support_psnr_db 27.8 (22.5), over three
seeds of the demo, on 2 CPU cores; about a minute.
"""

from rad_jax import config as schema


def get_config(variant: str = ""):
  config = schema.default()
  config.data.update(
    name="digits", image_size=8, num_channels=1, flip=False, linear_rank=16
  )
  config.data.corruption.update(fraction=0.9, sigma=0.2)
  config.model.name = "mlp"
  config.model.mlp.update(width=256, depth=3)
  config.model.unet.update(
    channels=32, channel_multipliers=(1, 2), attention_resolutions=(4,)
  )
  config.objective.lam = 3.0
  config.optimizer.update(
    learning_rate=1e-3, warmup_steps=100, decay="cosine", ema_decay=0.999
  )
  config.train.update(num_steps=3000, batch_size=128)
  config.checkpoint.every_steps = 1500
  config.sampling.update(
    clip_x_0=0.0, num_samples=64, batch_size=512, num_steps=100
  )
  config.evaluation.num_samples = 2000
  return schema.variant(config, variant)
