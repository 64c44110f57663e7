"""Every method with its knobs tuned, compared on ten other seeds.

  python -m rad_jax --config=configs/compare.py --mode=compare

trains ten methods on scikit-learn's digits and on the oblique plane, 90% of the
examples noised at sigma 0.2: with each of their knobs on three tuning seeds,
then with the best on seeds 0 to 9. Every model is sampled in each way of
evaluation.stop_sigmas. rad_jax/experiments/compare.py has the methods, their
knobs and the rule of the choice.

Interrupted, it goes on where it was.
"""

import os

from rad_jax import config as schema
from rad_jax.config import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
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
  # Heun's method has converged at 50 steps: docs/study.md.
  config.sampling.update(
    clip_x_0=0.0,
    num_samples=64,
    batch_size=2000,
    sampler="heun",
    num_steps=50,
  )
  config.evaluation.update(
    protocols=("steps",),
    samplers=("heun",),
    step_counts=(50,),
    stop_sigmas=(0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4),
    num_step_samples=2000,
  )
  config.study.update(
    data=("digits", "oblique_plane"),
    seeds=10,
    tuning_seeds=3,
    processes=os.cpu_count() or 1,
  )
  return schema.variant(config, variant)
