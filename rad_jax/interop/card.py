"""A run's model as a folder for others: its card, weights and checkpoint."""

import logging
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from jaxtyping import PyTree

from rad_jax import files
from rad_jax.interop import pretrained
from rad_jax.interop.descriptions import Fields, MismatchError

_LOG = logging.getLogger("rad_jax")
# Of evaluation.*: what the measures of every protocol depend on.
_SETTINGS = (
  "num_samples",
  "num_reference",
  "subspace_rank",
  "frechet_dims",
  "extractor",
  "held_out",
)


def write(
  workdir: pathlib.Path,
  params: PyTree,
  step: int,
  fields: Fields,
  name: str,
  license: str,
) -> pathlib.Path:
  """Fills and returns workdir/hub, for owner/name.

  In it are README.md, what diffusers reads (where it has such a network), and
  the checkpoint of that step with config.json and evaluation.json.
  """
  folder = workdir / "hub"
  shutil.rmtree(folder, ignore_errors=True)
  try:
    pretrained.export(params, folder, fields)
    in_diffusers = True
  except MismatchError as error:
    _LOG.info("without a folder for diffusers: %s", error)
    in_diffusers = False
  evaluation = files.read_json(workdir / "evaluation.json")
  card = write_card(fields, evaluation, step, name, license, in_diffusers)
  files.write_text(folder / "README.md", card)
  checkpoint = pathlib.Path("checkpoints", str(step))
  shutil.copytree(workdir / checkpoint, folder / checkpoint)
  for file in ("config.json", "evaluation.json"):
    if (workdir / file).exists():
      shutil.copyfile(workdir / file, folder / file)
  return folder


def write_card(
  fields: Fields,
  evaluation: Mapping[str, Any],
  step: int,
  name: str,
  license: str,
  in_diffusers: bool,
) -> str:
  """The model card, Markdown below YAML; `evaluation` is evaluation.json."""
  of = fields.__getitem__
  weights = "moving average" if of("sampling.ema") else "raw weights"
  tuned = " from a trained model" if of("train.init_from") else ""
  rows = {
    "Data": _data(fields),
    "Corruption": _corruption(fields),
    "Method": f"{of('objective.name')}, lambda {of('objective.lam'):g}",
    "Network": f"{of('model.name')}, predicts {of('diffusion.prediction')}",
    "Process": _process(fields),
    "Training": f"step {step}, {of('train.batch_size')} examples a step{tuned}",
    "Weights": weights,
  }
  library = "diffusers" if in_diffusers else "rad_jax"
  return f"""---
license: {license}
library_name: {library}
pipeline_tag: unconditional-image-generation
tags: [diffusion, rad_jax, {of("objective.name")}]
---

# {name.rpartition("/")[2]}

An unconditional diffusion model, trained with rad_jax.

| | |
|---|---|
{_rows(rows)}

All fields of the training are in `config.json`.

## Measures

{_measures(evaluation, step)}
## Use
{_in_diffusers(name) if in_diffusers else ""}
In rad_jax, to fine-tune it; the network is taken from here:

```bash
python -m rad_jax.main --config=CONFIG.py --config.train.init_from=hf:{name}
```
"""


def _rows(cells: Mapping[str, Any]) -> str:
  return "\n".join(f"| {key} | {value} |" for key, value in cells.items())


def _data(fields: Fields) -> str:
  side, channels = fields["data.image_size"], fields["data.num_channels"]
  if fields["model.name"] == "mlp":
    return f"{fields['data.name']}, points"
  return f"{fields['data.name']}, {side} x {side} pixels, {channels} channel(s)"


def _corruption(fields: Fields) -> str:
  of = lambda name: fields[f"data.corruption.{name}"]
  if not of("fraction"):
    return "none was added"
  severity, sigma = of("severity"), of("sigma")
  strength = f"severity {severity}" if severity else f"strength {sigma:g}"
  return f"{of('fraction'):.0%} of the examples: {of('kind')}, {strength}"


def _process(fields: Fields) -> str:
  of = lambda name: fields[f"diffusion.{name}"]
  if of("process") != "ddpm":
    return of("process")
  return f"ddpm, {of('schedule')} schedule, {of('num_timesteps')} timesteps"


def _measures(evaluation: Mapping[str, Any], step: int) -> str:
  """The figures of evaluation.json, and what they were measured with."""
  if not evaluation.get("measures"):
    return "None were taken.\n"
  measured, settings = evaluation["measures"], evaluation["evaluation"]
  used = evaluation["sampling"] | {name: settings[name] for name in _SETTINGS}
  shown = ", ".join(
    f"{key} {value}"
    for key, value in used.items()
    if value != "" and key != "batch_size"
  )
  figures = {key: f"{value:.4g}" for key, value in measured.items()}
  at = evaluation["step"]
  note = "" if at == step else f" (this is step {step})"
  return f"""| measure | at step {at}{note}, {evaluation["weights"]} |
|---|---|
{_rows(figures)}

With {shown}.
"""


def _in_diffusers(name: str) -> str:
  return f"""
In diffusers:

```python
from diffusers import DDPMPipeline

DDPMPipeline.from_pretrained("{name}")().images[0].save("sample.png")
```
"""
