"""Robust_adv fine-tuning of a DDPM that was trained elsewhere, on CIFAR-10.

  hf download google/ddpm-cifar10-32 --local-dir pretrained/ddpm-cifar10-32
  python -m rad_jax.main --config=configs/cifar10.py --mode=prepare_data
  python -m rad_jax.main --config=configs/cifar10_finetune.py \
    --config.data.corruption.fraction=0.9
  python -m rad_jax.main --config=configs/cifar10_finetune.py \
    --config.data.corruption.fraction=0.9 --mode=export

--config.train.init_from=PATH starts from another network: a run's workdir, a
diffusers folder, a .safetensors or .pt file (docs/interop.md). lambda rises
from 0 while the optimiser is new. The numbers are ours: a tenth of the
learning rate, 20,000 steps, and a moving average short enough for them.

:smoke starts from random parameters, unless init_from says otherwise: no
published network is as small.

Expected result and time: not run here (it needs an accelerator and the
download).
"""

from rad_jax import config as schema


def get_config(variant: str = ""):
  config = schema.default()
  config.train.update(
    init_from="" if variant else "pretrained/ddpm-cifar10-32", num_steps=20_000
  )
  config.regulariser.warmup_steps = 2000
  config.sampling.variance = "large"
  config.optimizer.update(learning_rate=2e-5, warmup_steps=500, ema_decay=0.999)
  return schema.variant(config, variant)
