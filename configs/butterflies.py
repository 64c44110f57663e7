"""Robust_adv on the Smithsonian's butterflies, 90% noised at sigma 0.2.

  pip install datasets
  python -m rad_jax.main --config=configs/butterflies.py --mode=prepare_data
  python -m rad_jax.main --config=configs/butterflies.py
  python -m rad_jax.main --config=configs/butterflies.py --mode=evaluate

The set is Hugging Face's huggan/smithsonian_butterflies_subset, at 32 x 32 in
colour. Any folder of images works as well, and needs no preparation:

  python -m rad_jax.main --config=configs/butterflies.py \
    --config.data.name=image_folder --config.data.path=DIR

The set is projected on its 32 leading principal components, so that its true
subspace is known. clip_x_0 is off: noised and projected images leave [-1, 1].
--config.data.linear_rank=0 --config.data.corruption.fraction=0 takes the images
as they are.

Expected: the butterflies were not run here. On a folder of 3,534 colour images
(emoji), with all else as here: support_rms 6.00 (DDPM 10.00), support_psnr_db
25.3 (20.9), spread_ratio 0.83 (0.81), frechet 36.2 (40.8), one seed; 5 minutes
(DDPM 3.5) on 2 CPU cores.
"""

from rad_jax import config as schema


def get_config(variant: str = ""):
  config = schema.default()
  config.data.update(
    name="huggingface:huggan__smithsonian_butterflies_subset",
    # The MLP's size goes with the image's.
    image_size=16 if variant else 32,
    linear_rank=32,
  )
  config.data.corruption.update(fraction=0.9, sigma=0.2)
  config.model.name = "mlp"
  config.model.mlp.update(width=512, depth=3)
  config.model.unet.update(
    channels=32, channel_multipliers=(1, 2), attention_resolutions=(16,)
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
