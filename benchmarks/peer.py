"""The peer: PyTorch and diffusers' UNet2DModel, in the same shape.

The same objectives with the same number of parameters and the same data.
Written as its users would, with what is known to be fast there: channels
last, autocast for bfloat16, one kernel for Adam and for the moving average,
TF32 for float32 on a GPU, parameters frozen while the input is attacked.
"""

from collections.abc import Callable

import torch
from diffusers import UNet2DModel
from torch import Tensor

from rad_jax.config import ConfigDict

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_float32_matmul_precision("high")
torch.backends.cudnn.allow_tf32 = True
torch.backends.cudnn.benchmark = True
# Beyond it, a compiled function silently runs uncompiled.
torch._dynamo.config.recompile_limit = 64


def network(config: ConfigDict) -> UNet2DModel:
  """DDPM's U-Net, as diffusers lays it out (google/ddpm-cifar10-32).

  Widths that 32 does not divide into groups of more than one channel have
  groups of four in ours; here all layers have the narrowest layer's.
  """
  fields, data = config.model.unet, config.data
  widths = [fields.channels * m for m in fields.channel_multipliers]
  sides = [data.image_size // 2**level for level in range(len(widths))]
  attend = [side in fields.attention_resolutions for side in sides]
  return UNet2DModel(
    sample_size=data.image_size,
    in_channels=data.num_channels,
    out_channels=data.num_channels,
    block_out_channels=widths,
    layers_per_block=fields.num_res_blocks,
    down_block_types=[
      "AttnDownBlock2D" if here else "DownBlock2D" for here in attend
    ],
    up_block_types=[
      "AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attend)
    ],
    attention_head_dim=None,
    dropout=fields.dropout,
    downsample_padding=0,
    flip_sin_to_cos=False,
    freq_shift=1,
    norm_eps=1e-6,
    norm_num_groups=min(32, fields.channels // 4),
  ).to(DEVICE, memory_format=torch.channels_last)


def num_parameters(model: torch.nn.Module) -> int:
  """How many numbers the network has."""
  return sum(p.numel() for p in model.parameters())


def synchronize() -> None:
  """Waits for the device."""
  if DEVICE == "cuda":
    torch.cuda.synchronize()


def step(
  config: ConfigDict, model: UNet2DModel, predict: Callable[..., tuple[Tensor]]
) -> Callable[[], object]:
  """The training step of ddpm, robust_ran or robust_adv.

  Args:
    config: ours, for its objective and sizes.
    model: whose parameters are trained.
    predict: the model's forward, compiled or not.
  """
  params = list(model.parameters())
  averages = [p.detach().clone() for p in params]
  optimizer = torch.optim.Adam(params, lr=2e-4, fused=True)
  data = torch.randint(
    0,
    256,
    (
      config.train.batch_size,
      config.data.num_channels,
      config.data.image_size,
      config.data.image_size,
    ),
    dtype=torch.uint8,
    device=DEVICE,
  ).to(memory_format=torch.channels_last)
  alpha_bar = torch.cumprod(
    1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0
  ).to(DEVICE, torch.float32)

  def eps_fn(x_t: Tensor, t: Tensor) -> Tensor:
    with torch.autocast(
      DEVICE, torch.bfloat16, enabled=config.model.dtype == "bfloat16"
    ):
      return predict(x_t, t, return_dict=False)[0].float()

  def run() -> Callable[[], None]:
    loss = _loss(config, eps_fn, params, data, alpha_bar)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
    optimizer.step()
    torch._foreach_lerp_(averages, params, 1e-4)
    return synchronize

  return run


def _loss(config: ConfigDict, eps_fn, params, data, alpha_bar) -> Tensor:
  b = len(data)
  flip = torch.rand(b, 1, 1, 1, device=DEVICE) < 0.5
  x_0 = data.float() / 127.5 - 1
  x_0 = torch.where(flip, x_0.flip(-1), x_0)
  t = torch.randint(0, 1000, (b,), device=DEVICE)
  eps = torch.randn_like(x_0)
  sigma_t = (1 - alpha_bar[t]).sqrt().view(-1, 1, 1, 1)
  x_t = alpha_bar[t].sqrt().view(-1, 1, 1, 1) * x_0 + sigma_t * eps
  eps_hat = eps_fn(x_t, t)
  loss = (eps_hat - eps).square().mean()
  if config.objective.name == "ddpm":
    return loss
  r = (sigma_t.amax() - sigma_t) ** 2 + config.objective.beta
  w = r * (2 * torch.rand_like(x_t) - 1)
  if config.objective.name == "robust_adv":
    w = _fgsm(eps_fn, params, x_t, t, sigma_t, eps_hat.detach(), w, r)
  regulariser = (eps_fn(x_t + sigma_t * w, t) - (eps_hat + w)).square().mean()
  return loss + config.objective.lam * regulariser


def _fgsm(eps_fn, params, x_t, t, sigma_t, eps_hat, w, r) -> Tensor:
  w = w.requires_grad_()
  for p in params:
    p.requires_grad_(False)
  goal = (eps_fn(x_t + sigma_t * w, t) - (eps_hat + w)).square().sum()
  (gradient,) = torch.autograd.grad(goal, w)
  for p in params:
    p.requires_grad_(True)
  w = w.detach() + r * gradient.sign()
  return torch.minimum(torch.maximum(w, -r), r)
