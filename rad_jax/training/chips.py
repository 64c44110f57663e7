"""Peak arithmetic of the chips that are known, for utilisation."""

import jax

# Dense bfloat16 FLOP/s of one JAX device, from the makers' data sheets:
# nvidia.com (A100, H100 SXM, H200), cloud.google.com/tpu/docs. Of TPU v2 and v3
# a device is one of a chip's two cores.
_PEAK_FLOPS = {
  "A100": 312e12,
  "H100": 989e12,
  "H200": 989e12,
  "TPU v2": 22.5e12,
  "TPU v3": 61.5e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5p": 459e12,
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
}


def peak_flops(device: jax.Device) -> float | None:
  """Peak bfloat16 FLOP/s of a device, or None where it is not known."""
  return next(
    (
      peak
      for name, peak in _PEAK_FLOPS.items()
      if name.lower() in device.device_kind.lower()
    ),
    None,
  )
