"""Purifies images with a run's newest checkpoint (robustness.purification)."""

import dataclasses
import logging
import pathlib

import numpy as np
from tqdm import tqdm

from rad_jax import files
from rad_jax.config import ConfigError
from rad_jax.data import examples, images, sources
from rad_jax.data import folder as folders
from rad_jax.diffusion import samplers
from rad_jax.diffusion.process import Level
from rad_jax.evaluation import measures, sampling
from rad_jax.evaluation.subject import Subject, open_subject
from rad_jax.robustness import purification
from rad_jax.run import Run

_LOG = logging.getLogger("rad_jax")


def purify(run: Run, workdir: pathlib.Path) -> pathlib.Path:
  """Purifies purify.num_examples inputs; returns the folder written.

  In it are samples.npz, inputs and results; of images the results as images/,
  of the inputs' names; and purification.json.
  """
  folder = workdir / "purified"
  _refuse_own_folder(run.purify.input, folder)
  subject = open_subject(run, workdir)
  x, names = inputs(subject)
  after = purified(subject, x)
  files.write_npz(folder / "samples.npz", x_0=np.concatenate([x, after]))
  if not run.is_synthetic:
    sampling.write_images(folder / "images", after, names)
  rms = [
    measures.support_rms(part.reshape(len(x), -1), subject.reference.project)
    for part in (x, after)
  ]
  result = {
    "step": subject.model.step,
    **run.purify._asdict(),
    "num_examples": len(x),
    "num_levels": len(_levels(run).sigma),
    "support_rms_before": rms[0],
    "support_rms_after": rms[1],
  }
  files.write_json(folder / "purification.json", result)
  return folder


def purified(subject: Subject, x: np.ndarray) -> np.ndarray:
  """x [n, ...] in model units, purified as the run's section purify says."""
  run = subject.run
  update = sampling.update(sampling.changed(run, sampler=run.purify.sampler))
  return there_and_back(subject, x, _levels(run), update)


def there_and_back(
  subject: Subject, x: np.ndarray, levels: Level, update: samplers.Update
) -> np.ndarray:
  """x [n, ...] noised up to levels[0] and brought back by the sampler."""
  run = subject.run

  def noise_and_reverse(params, x, index):
    return purification.purify(
      sampling.eps_fn(run, params),
      levels,
      update,
      x,
      samplers.sample_keys(run.keys.sampling, index),
      run.sampling.clip_x_0 or None,
    )

  mesh = subject.model.mesh
  compiled = sampling.over_devices(noise_and_reverse, mesh, num_split=2)
  size = min(run.sampling.batch_size, mesh.size * -(-len(x) // mesh.size))
  index = np.arange(size * -(-len(x) // size), dtype=np.int32)
  filled = np.resize(x, (len(index), *x.shape[1:]))
  parts = [
    np.asarray(compiled(subject.model.params, filled[rows], rows))
    for rows in tqdm(
      index.reshape(-1, size), desc="purify", unit="batch", disable=None
    )
  ]
  return np.concatenate(parts)[: len(x)]


def inputs(subject: Subject) -> tuple[np.ndarray, list[str]]:
  """What purify.input holds, [n, ...] in model units, and names of its images.

  Without it, training examples as the run saw them. Raises ConfigError.
  """
  run, path = subject.run, pathlib.Path(subject.run.purify.input).expanduser()
  count = run.purify.num_examples
  if not run.purify.input:
    x = subject.first(count)[1]
  elif (path.is_dir() or path.suffix == ".zip") and not run.is_synthetic:
    return _of_folder(run, path, count)
  else:
    x = _of_file(run, path, count)
  return x, [f"{i:06}" for i in range(len(x))]


def _of_folder(
  run: Run, path: pathlib.Path, count: int
) -> tuple[np.ndarray, list[str]]:
  """Images, read as those of a training set are."""
  size, channels = run.data.image_size, run.data.num_channels
  source = folders.open_folder(
    str(path),
    "train",
    channels,
    run.data.crop_size,
    size,
    run.data.max_megapixels,
  )
  if len(source) > count:
    _LOG.warning(
      "%s holds %d images: the first %d are taken, purify.num_examples",
      path,
      len(source),
      count,
    )
    source = dataclasses.replace(source, records=source.records[:count])
  fit = lambda image: images.fit(image, 0, size, channels)
  x = np.empty((len(source), *run.example_shape), np.uint8)
  sources.fill(x, source, fit)
  names = [
    pathlib.PurePosixPath(record.name).with_suffix("").as_posix()
    for record in source.records
  ]
  if len(set(names)) < len(names):
    raise ConfigError(
      f"config.purify.input={str(path)!r} has images whose names differ only by"
      " their suffixes, such as a.jpg and a.png: rename them"
    )
  return examples.to_model_range(x), names


def _of_file(run: Run, path: pathlib.Path, count: int) -> np.ndarray:
  field = f"config.purify.input={str(path)!r}"
  try:
    with np.load(path) as saved:
      x = examples.to_model_range(saved["x_0"][:count])
  except (OSError, KeyError, ValueError) as error:
    raise ConfigError(
      f"{field} cannot be read ({error}): it must be an .npz file that holds"
      " x_0 [n, ...], or a folder of images for a run on images"
    ) from error
  if x.shape[1:] != run.example_shape:
    raise ConfigError(
      f"{field} holds examples of shape {x.shape[1:]}, and the run's are"
      f" {run.example_shape}"
    )
  finite = np.isfinite(x.reshape(len(x), -1)).all(axis=1)
  if not finite.all():
    raise ConfigError(
      f"{field} has a NaN or an infinity in {np.sum(~finite)} of its"
      f" {len(x)} examples, the first of them number {np.argmin(finite)}"
    )
  return x


def _refuse_own_folder(given: str, folder: pathlib.Path) -> None:
  """Raises ConfigError if what is written would replace what is read."""
  path, written = pathlib.Path(given).expanduser().resolve(), folder.resolve()
  if given and (path.is_relative_to(written) or written.is_relative_to(path)):
    raise ConfigError(
      f"config.purify.input={given!r} and {folder}, where the results go, are"
      " one inside the other: move the input, or choose another --workdir"
    )


def _levels(run: Run) -> Level:
  grid = run.process.grid(run.purify.num_steps)
  return purification.from_level(grid, run.purify.t_star)
