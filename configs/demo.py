"""The paper's effect in minutes: four objectives on two noised sets.

  python -m rad_jax.main --config=configs/demo.py --mode=demo

trains DDPM, invariance, Robust_ran and Robust_adv on scikit-learn's digits and
on the oblique plane, 90% of the examples noised at sigma 0.2, three seeds each.
Other tables of schemes on the same sets, and purification of attacked digits:

  python -m rad_jax.main --config=configs/demo.py --mode=schemes \
    --config.study.schemes=cheap --workdir=runs/cheap
  python -m benchmarks.purified_digits

Interrupted, they go on where they were. The fields are those of
configs/oblique_plane.py; rad_jax/experiments/schemes.py has what differs for
digits (as configs/digits.py) and for each scheme.
"""

import os

from rad_jax import config as schema


def get_config(variant: str = ""):
  config = schema.default()
  config.data.name = "oblique_plane"
  config.data.corruption.update(fraction=0.9, sigma=0.2)
  config.model.name = "mlp"
  config.objective.lam = 3.0
  config.optimizer.update(
    learning_rate=1e-3, warmup_steps=100, decay="cosine", ema_decay=0.999
  )
  config.train.update(num_steps=3000, batch_size=256)
  config.checkpoint.every_steps = 1500
  config.sampling.update(
    clip_x_0=0.0, num_samples=2000, batch_size=4000, num_steps=100
  )
  config.evaluation.update(num_samples=4000, attack_steps=20)
  config.purify.update(t_star=0.3, num_steps=100, num_examples=256)
  config.study.update(
    data=("digits", "oblique_plane"), processes=os.cpu_count() or 1
  )
  return schema.variant(config, variant)
