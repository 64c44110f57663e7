"""Reading of published weights, which are files that the user gives."""

import importlib
import pathlib
import pickle
from collections.abc import Callable, Mapping

import numpy as np
import safetensors
from jaxtyping import PyTree
from safetensors.numpy import load_file

State = Mapping[str, np.ndarray]
SUFFIXES = (".safetensors", ".pt", ".pth")
_SAFE_TORCH = 2, 6


class WeightsError(ValueError):
  """The weights file is missing, unreadable, or of another network."""


def load(
  path: str | pathlib.Path,
  convert: Callable[[dict[str, np.ndarray]], PyTree],
  to_fetch: str,
) -> PyTree:
  """Params, converted from a file of a state dict; no code in it is run.

  Raises WeightsError if no file fits; `to_fetch` says what to give instead.
  """
  if not str(path):
    raise WeightsError(to_fetch)
  path = pathlib.Path(path)
  if not path.is_file():
    raise WeightsError(f"{path} is no file; {to_fetch}")
  if path.suffix not in SUFFIXES:
    raise WeightsError(f"{path} is neither .safetensors nor .pth nor .pt")
  try:
    state = load_file(path) if path.suffix == SUFFIXES[0] else _torchs(path)
  except safetensors.SafetensorError as error:
    raise WeightsError(f"{path} is no safetensors file: {error}") from error
  try:
    return convert(state)
  except WeightsError as error:
    raise WeightsError(f"in {path}, {error}; {to_fetch}") from error


def _torchs(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    torch = importlib.import_module("torch")
  except ImportError as error:
    raise WeightsError(
      f"reading {path} needs PyTorch: pip install torch, or give the weights"
      " as .safetensors"
    ) from error
  # Before it, weights_only did not keep a file's code from being run.
  if tuple(map(int, torch.__version__.split(".")[:2])) < _SAFE_TORCH:
    raise WeightsError(
      f"reading {path} with torch {torch.__version__} could run code that is in"
      " it: pip install 'torch>=2.6', or give the weights as .safetensors"
    )
  damaged = AttributeError, EOFError, RuntimeError, pickle.UnpicklingError
  try:
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {key: value.numpy() for key, value in state.items()}
  except damaged as error:
    raise WeightsError(f"{path} is no PyTorch state dict: {error}") from error


def take(state: State, key: str, shape: tuple[int, ...]) -> np.ndarray:
  """The array of that key and shape; WeightsError if there is none."""
  if key not in state:
    raise WeightsError(f"the weights have no {key}")
  if state[key].shape != shape:
    raise WeightsError(
      f"the weights' {key} has shape {state[key].shape}, not {shape}"
    )
  return state[key]
