"""What a figure was measured on."""

import importlib.metadata
import os
import pathlib
import platform

import jax

_PACKAGES = ("rad_jax", "jax", "jaxlib", "flax", "torch", "diffusers")


def describe() -> dict[str, str]:
  """Device, processor and versions, for the head of a table."""
  device = jax.devices()[0]
  return {
    "device": f"{jax.device_count()} x {device.device_kind}",
    "processor": f"{os.cpu_count()} x {_processor()}",
    "python": platform.python_version(),
    **{name: _version(name) for name in _PACKAGES},
  }


def _processor() -> str:
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.processor()
  names = [line for line in lines if line.startswith("model name")]
  return names[0].partition(": ")[2] if names else platform.machine()


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "-"
