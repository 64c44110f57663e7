"""Robust_adv on a folder of images of your own.

  python -m rad_jax --config=configs/my_images.py --config.data.path=DIR

The fields that are open here, such as the network's width and the number of
steps, are chosen by rad_jax/choices.py: by the number of images, their size and
the machine. Each choice is printed with its reason, and a flag overrides it, as
--config.data.image_size=64 does. The run keeps them: later commands need its
folder alone.

  python -m rad_jax --workdir=runs/my_images --mode=sample

Nothing is made dirty: the images are taken as they are.

Expected: it depends on the images. Few steps on a CPU give a first look.
"""

from ml_collections.config_dict import placeholder

from rad_jax import config as schema


def get_config(variant: str = ""):
  config = schema.default()
  config.data.update(
    name="image_folder",
    image_size=16 if variant else placeholder(int),
    num_channels=placeholder(int),
    loading=placeholder(str),
  )
  config.model.dtype = placeholder(str)
  config.model.unet.update(
    channels=placeholder(int),
    channel_multipliers=placeholder(tuple),
    attention_resolutions=placeholder(tuple),
  )
  config.objective.lam = placeholder(float)
  config.optimizer.update(
    learning_rate=placeholder(float),
    warmup_steps=5 if variant else placeholder(int),
    decay="cosine",
    ema_decay=placeholder(float),
  )
  config.train.update(
    num_steps=placeholder(int),
    batch_size=placeholder(int),
    micro_batches=placeholder(int),
    sample_every_steps=1000,
  )
  config.checkpoint.every_steps = 1000
  config.sampling.update(num_steps=250, clip_x_0=placeholder(float))
  config.evaluation.num_samples = 1000
  return schema.variant(config, variant)
