"""The Hugging Face Hub: sources of parameters from there, folders to there."""

import contextlib
import importlib
import pathlib
import re
from collections.abc import Iterator
from typing import Any

_PREFIX = "hf:"
# What is read of a repository: no weights of other libraries, no samples.
_READ = ["*.json", "*.safetensors", "*.pt", "*.pth", "checkpoints/*"]
# What a push replaces whole.
_OURS = [
  "checkpoints/*",
  "unet/*",
  "scheduler/*",
  "evaluation.json",
  "model_index.json",
]


class HubError(ValueError):
  """The hub refused, could not be reached, or its library is missing."""


def local(source: str | pathlib.Path) -> pathlib.Path:
  """The path of a source; hf:owner/name, or hf:owner/name@revision, fetched.

  It is fetched once; without the network, what was fetched is taken. HubError.
  """
  if not str(source).startswith(_PREFIX):
    return pathlib.Path(source)
  name, _, revision = str(source).removeprefix(_PREFIX).partition("@")
  with _opened(name) as hub:
    return pathlib.Path(
      hub.snapshot_download(
        name, revision=revision or None, allow_patterns=_READ
      )
    )


def upload(folder: pathlib.Path, name: str) -> str:
  """Makes a folder the newest commit of owner/name; the address of its page.

  A repository that is not there is made, and is private. HubError.
  """
  with _opened(name) as hub:
    hub.create_repo(name, private=True, exist_ok=True)
    hub.upload_folder(
      repo_id=name,
      folder_path=folder,
      delete_patterns=_OURS,
      commit_message="rad_jax --mode=push",
    )
    return f"{hub.endpoint}/{name}"


@contextlib.contextmanager
def _opened(name: str) -> Iterator[Any]:
  """The library's HfApi; its errors as one line, without what it sent."""
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
    raise HubError(
      f"{name!r} is no repository: type --hub=owner/name, or hf:owner/name"
    )
  try:
    huggingface_hub = importlib.import_module("huggingface_hub")
  except ImportError:
    raise HubError(
      f"{_PREFIX}{name} needs huggingface_hub: pip install huggingface_hub"
    ) from None
  try:
    yield huggingface_hub.HfApi()
  except Exception as error:  # those of its HTTP library, too
    own = type(error).__module__.startswith(("huggingface_hub", "httpx"))
    if own or isinstance(error, OSError):
      raise HubError(f"{_PREFIX}{name}: {_said(error)}") from None
    raise


def _said(error: Exception) -> str:
  """An error in our words: theirs can hold addresses and what was sent."""
  status = getattr(getattr(error, "response", None), "status_code", None)
  kind = type(error).__name__
  if status in (401, 403, 404) or kind == "LocalTokenNotFoundError":
    return (
      "the hub has no such repository, or none that you may use"
      f" ({status or 'no token'}): check the name, and log in with `hf auth"
      " login`"
    )
  if status:
    return f"the hub answered with status {status}: try again later"
  reason = getattr(error, "strerror", None) or kind
  return f"the hub cannot be reached, or the disk cannot be used ({reason})"
