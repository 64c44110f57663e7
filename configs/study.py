"""The paper's controlled study: three data sets, six corruptions, six methods.

  python -m rad_jax.main --config=configs/digits.py --mode=prepare_data
  python -m rad_jax.main --config=configs/study.py --mode=study

Colour images, projected on their principal components, from any folder of
images:

  python -m rad_jax.main --config=configs/study.py --mode=study \
    --config.study.data="('colour',)" --config.data.path=DIR

Interrupted, it goes on where it was. Data, corruptions and methods are
names in rad_jax/experiments/study.py; all other fields are those of every
run. Expected: 306 runs; docs/study.md has their numbers.
"""

from rad_jax import config as schema


def get_config(variant: str = ""):
  config = schema.default()
  config.data.name = "oblique_plane"
  config.model.name = "mlp"
  config.objective.lam = 3.0
  config.optimizer.update(
    learning_rate=1e-3, warmup_steps=100, decay="cosine", ema_decay=0.999
  )
  config.train.update(num_steps=1500, batch_size=64)
  config.checkpoint.every_steps = 500
  config.sampling.update(
    clip_x_0=0.0, num_samples=400, batch_size=2000, num_steps=100
  )
  config.evaluation.update(
    protocols=("truth", "reconstruction", "flow", "score"),
    num_samples=2000,
    num_levels=6,
  )
  config.purify.num_steps = 100
  config.study.processes = 2
  if variant:
    config.study.update(
      data=("oblique_plane", "digits"),
      corruptions=("clean", "p90-s0.2"),
      seeds=2,
    )
  return schema.variant(config, variant)
