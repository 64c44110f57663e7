"""What is known of chips: peak arithmetic, and the options of XLA that pay."""

import contextlib
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

# Dense bfloat16 FLOP/s of one JAX device (of TPU v2 and v3 half a chip), from
# nvidia.com (A100, H100 SXM, H200) and cloud.google.com/tpu/docs.
_PEAK_FLOPS = {
  312e12: ("A100",),
  989e12: ("H100", "H200"),
  22.5e12: ("TPU v2",),
  61.5e12: ("TPU v3",),
  275e12: ("TPU v4",),
  197e12: ("TPU v5 lite", "TPU v5e"),
  459e12: ("TPU v5p", "TPU v5"),
  918e12: ("TPU v6 lite", "TPU v6e"),
}


def peak_flops(device: jax.Device) -> float | None:
  """Peak bfloat16 FLOP/s of a device, or None where it is not known."""
  kind = device.device_kind.lower()
  for peak, names in _PEAK_FLOPS.items():
    if any(name.lower() in kind for name in names):
      return peak
  return None


@functools.cache
def compiler_options() -> dict[str, str | bool]:
  """This platform's XLA options; not those unknown, or set by XLA_FLAGS."""
  given, known = os.environ.get("XLA_FLAGS", ""), {}
  for name, value in _COMPILER_OPTIONS.get(jax.default_backend(), {}).items():
    if name not in given:
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.jit(lambda x: x).lower(0.0).compile({name: value})
        known[name] = value
  return known
