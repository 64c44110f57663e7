"""What is known of chips: peak arithmetic, and the options of XLA that pay."""

import functools
import os

import jax

# By platform, what paid when it was measured: docs/performance.md.
_COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {
  "cpu": {
    "xla_cpu_experimental_ynn_fusion_type": (
      "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    )
  },
  "gpu": {"xla_gpu_experimental_enable_fusion_autotuner": False},
}

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


@functools.cache
def compiler_options() -> dict[str, str | bool]:
  """XLA's options on this platform, for `jax.jit(compiler_options=...)`.

  An option that this XLA does not know is left out, and one that is in the
  environment's XLA_FLAGS stays as it is there.
  """
  options = _COMPILER_OPTIONS.get(jax.default_backend(), {})
  given = os.environ.get("XLA_FLAGS", "")
  return {
    name: value
    for name, value in options.items()
    if name not in given and _is_known({name: value})
  }


def _is_known(options: dict[str, str | bool]) -> bool:
  try:
    jax.jit(lambda x: x).lower(0.0).compile(compiler_options=options)
  except jax.errors.JaxRuntimeError:
    return False
  return True
