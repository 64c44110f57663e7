"""The optimiser: Adam with clipping, warm-up and decay, all of it optax's."""

import optax


def learning_rate_schedule(
  peak: float, warmup_steps: int, decay: str, num_steps: int
) -> optax.Schedule:
  """Linear warm-up from 0, then "constant", or "cosine" or "linear" to 0."""
  after = max(num_steps - warmup_steps, 1)
  decayed = {
    "constant": optax.constant_schedule(peak),
    "cosine": optax.cosine_decay_schedule(peak, after),
    "linear": optax.linear_schedule(peak, 0.0, after),
  }[decay]
  if warmup_steps == 0:
    return decayed
  warmup = optax.linear_schedule(0.0, peak, warmup_steps)
  return optax.join_schedules([warmup, decayed], [warmup_steps])


def adam(
  schedule: optax.Schedule, b1: float, b2: float, max_grad_norm: float
) -> optax.GradientTransformation:
  """Adam after clipping the gradient's global norm (0 does not clip)."""
  clip = optax.identity()
  if max_grad_norm > 0:
    clip = optax.clip_by_global_norm(max_grad_norm)
  return optax.chain(clip, optax.adam(schedule, b1=b1, b2=b2))
